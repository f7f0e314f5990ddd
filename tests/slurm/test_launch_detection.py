"""Fine-tuning through a real SLURM, from a pretraining run to results that lead back to it."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest

from intl_transfer.runs import read_manifest, read_results
from tests.detection.conftest import TINY as TINY_DETECTOR
from tests.pretrain.running import ROOT, train

LAUNCH = [sys.executable, str(ROOT / "slurm" / "launch_detection.py")]
CONFIG = ["--config", "shapes_coco_R18_C4.yaml"]
CPU = ["--gpus-per-node", "0", "--cpus-per-gpu", "1", "--time", "60"]


def budget(iterations, period=100):
    return [
        *TINY_DETECTOR,
        *("SOLVER.MAX_ITER", str(iterations), "SOLVER.CHECKPOINT_PERIOD", str(period)),
    ]


def launch(cluster, data, *arguments, check=True):
    environment = {**cluster.environment(), "DETECTRON2_DATASETS": str(data)}
    done = subprocess.run(
        [*LAUNCH, *CONFIG, *CPU, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    done.jobs = re.findall(r"^job (\S+): /", done.stdout, re.MULTILINE)
    return done


def logs(folder):
    return "\n".join(file.read_text()[-3000:] for file in folder.rglob("*_log.*"))


@pytest.mark.slow
def test_seeds_of_a_pretraining_run(cluster, images, data, tmp_path):
    pretrained = tmp_path / "pretrained"
    train(images, pretrained)
    arguments = ["--weights", pretrained, "--seeds", 2, "--output-dir", tmp_path / "runs"]
    done = launch(cluster, data, *arguments, *budget(2))
    assert len(done.jobs) == 2
    for seed, job in enumerate(done.jobs):
        state = cluster.wait_for(job, "COMPLETED", "FAILED", seconds=240)
        assert state == "COMPLETED", logs(tmp_path)
        run = tmp_path / "runs" / f"shapes_coco_R18_C4_pretrained_seed{seed}"
        results = read_results(run)
        assert results["seed"] == seed
        # From the table's row back to the pretraining run.
        provenance = results["initialization"]["provenance"]
        assert provenance["pretrain_run"]["id"] == read_manifest(pretrained)["id"]
        assert provenance["source_sha256"] == read_results(pretrained)["backbone_sha256"]
    again = launch(cluster, data, *arguments, "--dry-run", *budget(2))
    assert "--machine-rank {machine_rank}" in again.stdout
    assert again.jobs == []


@pytest.mark.slow
def test_an_interrupted_fine_tuning_on_two_nodes_goes_on(cluster, data, tmp_path):
    """All ranks stop at the same iteration, go back into the queue together, and end together."""
    arguments = ["--weights", "random", "--output-dir", tmp_path / "runs", "--nodes", 2]
    (job,) = launch(cluster, data, *arguments, *budget(8, period=1)).jobs
    run = tmp_path / "runs" / "shapes_coco_R18_C4_random_seed0"
    deadline = time.monotonic() + 240
    while not list(run.glob("model_0*.pth")):
        assert time.monotonic() < deadline, logs(tmp_path)
        time.sleep(0.1)
    cluster.run("scancel", "--signal=USR2", job, check=True)
    assert cluster.wait_for(job, "COMPLETED", "FAILED", seconds=300) == "COMPLETED", logs(tmp_path)
    manifest = read_manifest(run)
    assert [session["world_size"] for session in manifest["sessions"]] == [2, 2]
    assert read_results(run)["iteration"] == 8
    for rank in range(2):
        (log,) = (tmp_path / "runs" / "slurm").rglob(f"*_{rank}_log.out")
        output = log.read_text()
        assert "start 1:" in output  # the log of the first start is still there
        assert "start 2:" in output
    first = (tmp_path / "runs" / "slurm" / job / f"{job}_0_log.out").read_text()
    stopped = re.search(r"stopped by SIGUSR2 after iteration (\d+)", first)
    assert f"Starting training from iteration {stopped.group(1)}" in first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "absent.pth"], "no such run or file"),
        (["--weights", "random", "SEED", "5"], "SEED: the launcher sets it for each run"),
        (["--weights", "random", "--seeds", "0"], "expected at least one seed"),
        (["--weights", "random", "--seeds", "x"], "--seeds x: expected a number of seeds"),
        (["--weights", "random", "--config", "coco_R50.yaml"], "Did you mean 'coco_R50_C4'"),
        (["--weights", "random", "--ranks-per-node", "2"], "one task per node"),
        (["--weights", "random", "SOLVER.MAX_ITR", "9"], "Did you mean SOLVER.MAX_ITER"),
    ],
)
def test_what_cannot_be_is_one_clear_line(cluster, data, tmp_path, arguments, message):
    done = launch(cluster, data, "--output-dir", tmp_path / "runs", *arguments, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_run_that_has_not_finished_is_no_source(cluster, images, data, tmp_path):
    train(images, tmp_path / "part", "engine.stop_after_steps=1")
    done = launch(cluster, data, "--weights", tmp_path / "part", check=False)
    assert done.returncode == 2
    assert "is a 'pretrain' run, interrupted; expected a finished pretraining run" in done.stderr
