"""Words of the launchers' command lines; nothing is launched."""

from __future__ import annotations

import argparse
import re

import pytest

from slurm import launch_benchmark, launch_detection, launch_pretrain, status

PRETRAIN = ["--config", "shapes_r18"]
DETECTION = ["--config", "shapes_coco_R18_C4", "--weights", "random"]


def given(monkeypatch, module, *words):
    """What a launcher would launch."""
    seen = []
    monkeypatch.setattr("sys.argv", ["launch", "--cluster", "slurm", *words])
    monkeypatch.setattr(module, "launch", lambda *arguments: seen.append(arguments[0]) or 0)
    assert module.main() == 0
    return seen[0]


@pytest.mark.parametrize(
    ("module", "words", "message"),
    [
        # The stages' --seed is a seed, --seeds a number of them: it launched the seeds 0, 1, 2.
        (launch_detection, [*DETECTION, "--seed", "3"], "for the seed 3 alone give --seeds 3,"),
        (launch_pretrain, [*PRETRAIN, "--seed=5"], "for the seed 5 alone give --seeds 5,"),
        # SLURM's --gpus is all GPUs of a job; it was taken for --gpus-per-node.
        (launch_pretrain, [*PRETRAIN, "--gpus", "8"], "unrecognized arguments: --gpus."),
        (launch_benchmark, ["shapes_smoke", "--profil", "x"], "Did you mean '--profile'"),
        (launch_detection, [*DETECTION, "KEY", "1", "--sedes", "5"], "Did you mean '--seeds'"),
    ],
)
def test_options_are_taken_by_their_whole_names_alone(monkeypatch, capsys, module, words, message):
    monkeypatch.setattr("sys.argv", ["launch", *words, "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--wait"], "--wait is of --retry-failed; --watch waits until all jobs have ended"),
        (["--watch", "--cancel"], "--watch, --cancel and --retry-failed exclude each other"),
    ],
)
def test_status_ignores_no_option(monkeypatch, capsys, words, message):
    """`status.py --wait && next` went on at once."""
    monkeypatch.setattr("sys.argv", ["status.py", *words])
    with pytest.raises(SystemExit) as ended:
        status.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_options_may_follow_settings(monkeypatch):
    """They were settings of the stage then: a dry run was submitted, and failed in its job."""
    words = ["SOLVER.MAX_ITER", "10", "--dry-run", "--seeds", "5", "MODEL.MASK_ON", "False"]
    found = given(monkeypatch, launch_detection, *DETECTION, *words)
    assert (found.dry_run, found.seeds) == (True, "5")
    assert found.opts == ["SOLVER.MAX_ITER", "10", "MODEL.MASK_ON", "False"]
    words = ["--lr", "0.01", "SOLVER.MAX_ITER", "10", "--check-expected", "--seeds", "2"]
    found = given(monkeypatch, launch_detection, *DETECTION, *words)
    assert found.opts == ["SOLVER.MAX_ITER", "10", "--lr", "0.01", "--check-expected"]
    assert found.seeds == "2"
    found = given(monkeypatch, launch_pretrain, *PRETRAIN, "seed=1", "--dry-run", "optim.epochs=2")
    assert found.overrides == ["seed=1", "optim.epochs=2"]


def test_what_the_launchers_offer_is_what_the_stage_takes():
    from detection.settings import NORMS, add_arguments

    assert launch_detection.NORMS == NORMS

    stage = argparse.ArgumentParser()
    add_arguments(stage)
    options = set(re.findall(r"--[a-z-]+", stage.format_help())) - {"--help", "--seed"}
    assert options <= set(launch_detection.OF_STAGE)
