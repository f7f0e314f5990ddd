"""A fine-tuning that was stopped or killed is, once resumed, the uninterrupted one."""

from __future__ import annotations

import json
import re
import signal
import time

import pytest
import torch

from intl_transfer.cli import main
from intl_transfer.runs import read_manifest, read_metrics, read_results
from intl_transfer.runs.stopping import CONTINUE
from tests.detection.conftest import TINY, start_train_net, train_net

ITERATIONS = 10
BASE = ["--config", "shapes_coco_R18_C4", "--weights", "random", "--seed", "1"]
BOXES = ["--config", "shapes_coco_R18_C4_boxes", "--weights", "random", "--seed", "1"]


def budget(period: int, workers: int, iterations: int = ITERATIONS) -> list[str]:
    return [
        *TINY,
        *["SOLVER.MAX_ITER", str(iterations), "SOLVER.CHECKPOINT_PERIOD", str(period)],
        *["DATALOADER.NUM_WORKERS", str(workers), "TEST.EVAL_PERIOD", "4"],
    ]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The final weights of an uninterrupted run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train_net(data, *BASE, "--output-dir", out, *budget(100, workers=0))
    return out


@pytest.fixture(scope="module")
def whole_boxes(data, tmp_path_factory):
    """The same without masks: the configuration for sets of boxes alone."""
    out = tmp_path_factory.mktemp("runs") / "boxes"
    train_net(data, *BOXES, "--output-dir", out, *budget(100, workers=0))
    return out


def final(folder):
    content = torch.load(folder / "model_final.pth", weights_only=True)
    return content["model"], content["trainer"]["optimizer"]["state"]


def assert_same(one, other):
    (weights, optimizer), (weights_too, optimizer_too) = final(one), final(other)
    assert all(torch.equal(weights[name], weights_too[name]) for name in weights)
    for number, state in optimizer.items():
        assert torch.equal(state["momentum_buffer"], optimizer_too[number]["momentum_buffer"])
    same = read_results(one)["metrics"], read_results(other)["metrics"]
    assert same[0] == same[1]


def interrupt(data, out, number, *arguments, base=BASE):
    """Sends a signal once the run has a checkpoint; returns the exit status."""
    process = start_train_net(data, *base, "--output-dir", out, *arguments)
    deadline = time.monotonic() + 240
    while not list(out.glob("model_0*.pth")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    return process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "first", "second", "parts"),
    [(signal.SIGTERM, 2, 0, ["box", "mask"]), (signal.SIGUSR2, 0, 2, ["box"])],
    ids=["masks", "boxes"],
)
def test_asked_to_stop_it_saves_and_goes_on_to_the_same_end(
    data, request, tmp_path, number, first, second, parts
):
    """With loading processes in one session, and none in the other; with masks, and without."""
    base = BASE if "mask" in parts else BOXES
    whole = request.getfixturevalue("whole" if "mask" in parts else "whole_boxes")
    out = tmp_path / "run"
    assert interrupt(data, out, number, *budget(2, first), base=base) == CONTINUE
    manifest = read_manifest(out)
    assert manifest["status"] == "interrupted"
    found = re.fullmatch(rf"stopped by {number.name} after iteration (\d+)", manifest["error"])
    made = int(found.group(1))
    assert made < ITERATIONS
    assert (out / f"model_{made - 1:07d}.pth").exists()
    assert not (out / "results.json").exists()
    done = train_net(data, *base, "--output-dir", out, "--resume", *budget(100, second))
    assert f"Starting training from iteration {made}" in done.stdout + done.stderr
    assert len(list(out.glob("model_0*.pth"))) <= 2
    assert_same(whole, out)
    assert sorted(read_results(out)["metrics"]) == parts
    evaluated = [row["iteration"] for row in read_metrics(out) if "evaluation" in row]
    assert evaluated[-1] == ITERATIONS
    assert read_results(out)["wall_time_s"] > read_metrics(out)[-2]["train_seconds"]


@pytest.mark.slow
def test_boxes_alone_land_in_a_table(whole_boxes, capsys):
    results = read_results(whole_boxes)
    assert results["architecture"]["meta"] == "Faster R-CNN"
    assert set(results["metrics"]) == {"box"}
    assert main(["collect", str(whole_boxes), "--format", "json", "--layout", "dataset"]) == 0
    (table,) = json.loads(capsys.readouterr().out)
    assert len(table["rows"]) == 1


@pytest.mark.slow
def test_killed_without_warning_it_goes_on_to_the_same_end(data, whole, tmp_path):
    out = tmp_path / "run"
    assert interrupt(data, out, signal.SIGKILL, *budget(2, 0)) == -signal.SIGKILL
    assert read_manifest(out)["status"] == "running"
    (out / ".model_0000005.pth.abc.part").write_bytes(b"half")
    train_net(data, *BASE, "--output-dir", out, "--resume", *budget(100, workers=2))
    assert_same(whole, out)
    assert not list(out.glob(".*.part"))


@pytest.mark.slow
def test_stopped_during_its_last_evaluation_it_only_evaluates(data, whole, tmp_path):
    import shutil

    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "results.json").unlink()
    manifest = (out / "manifest.json").read_text()
    (out / "manifest.json").write_text(manifest.replace('"finished"', '"interrupted"'))
    done = train_net(data, *BASE, "--output-dir", out, "--resume", *budget(100, 0))
    assert "Starting training" not in done.stdout
    assert_same(whole, out)
    assert read_results(out)["images_per_second"] == read_results(whole)["images_per_second"]


@pytest.mark.slow
def test_fewer_iterations_than_are_done_are_refused_before_anything_changes(data, whole, tmp_path):
    import shutil

    out = tmp_path / "run"
    shutil.copytree(whole, out)
    before = (out / "manifest.json").read_bytes()
    shorter = ["--resume", "--allow-config-change", *budget(100, 0, iterations=6)]
    done = train_net(data, *BASE, "--output-dir", out, *shorter, check=False)
    assert done.returncode == 2
    assert f"{out} has 10 iterations; SOLVER.MAX_ITER is 6. Expected more, or" in done.stderr
    assert (out / "manifest.json").read_bytes() == before


@pytest.mark.slow
def test_two_runs_in_one_folder_are_refused(data, tmp_path):
    from intl_transfer.runs.lock import directory_lock

    with directory_lock(tmp_path / "run"):
        done = train_net(data, *BASE, "--output-dir", tmp_path / "run", *budget(9, 0), check=False)
    assert done.returncode == 2
    assert re.search(r"is in use by process \d+", done.stderr)
