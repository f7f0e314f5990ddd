"""``doctor --gpu``: here on the CPU; what belongs to GPUs is listed, and its rules are tested."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from torchvision.models import ResNet50_Weights

from intl_transfer import devices
from intl_transfer.cli import main
from intl_transfer.machine import gpu, throughput
from intl_transfer.machine.drivers import compare_driver, installed_driver, minimum_driver
from intl_transfer.machine.outcomes import Checklist, FailedCheckError, SkippedCheckError, as_json
from intl_transfer.machine.ranks import in_processes

GPU_CHECKS = [
    *("driver", "compiled operators", "AMP step", "NCCL all-reduce", "sharded loss head"),
    *("torch.compile", "throughput"),
]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_without_a_gpu_each_is_listed_and_all_else_is_checked(capsys, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")  # compiling takes most of a minute
    assert main(["doctor", "--gpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    rows = {(row["place"], row["name"]): row for row in report["checks"]}
    assert [name for place, name in rows if place == "GPU"] == GPU_CHECKS
    assert {rows["GPU", name]["outcome"] for name in GPU_CHECKS} == {"not here"}
    here = {name: row for (place, name), row in rows.items() if place == "CPU"}
    assert here.pop("torch.compile")["outcome"] == "skipped"
    assert {row["outcome"] for row in here.values()} == {"ok"}, here
    assert all(row["figure"] for row in here.values())
    assert all(row["seconds"] >= 0 for name, row in here.items() if name != "sharded loss head")
    assert "no expectation recorded" in here["throughput"]["figure"]
    assert report["failed"] == 0


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC",
            "535.104.05",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build",
            "580.65.06",
        ),
    ],
)
def test_the_drivers_version_is_what_its_module_says(tmp_path, text, version):
    (tmp_path / "version").write_text(f"{text}\nGCC version:  gcc version 12.2.0\n")
    assert installed_driver(tmp_path / "version") == version


def test_a_driver_is_held_against_the_minimum_of_its_cuda():
    assert minimum_driver("13.0") == "580"  # NVIDIA's table
    assert minimum_driver("12.8") == "525"
    assert "needs 580" in compare_driver("580.65.06", "13.0")
    assert "needs 450.80.02" in compare_driver("450.80.02", "11.8")
    for driver, cuda in (("575.57.08", "13.0"), ("450.51", "11.8"), ("99.1", "12.1")):
        with pytest.raises(FailedCheckError, match=rf"driver {driver}; .* or newer"):
            compare_driver(driver, cuda)
    with pytest.raises(FailedCheckError, match="built without CUDA"):
        compare_driver("580.65.06", None)
    with pytest.raises(SkippedCheckError, match=r"recorded for CUDA 99\.0"):
        compare_driver("580.65.06", "99.0")


def test_a_gpu_that_cannot_start_fails_and_the_others_say_why(monkeypatch):
    found = devices.Gpus((), "a GPU is there, and CUDA cannot start on it (too old)")
    monkeypatch.setattr(gpu, "gpus", lambda: found)
    monkeypatch.setattr(gpu, "installed_driver", lambda: "470.1")
    for name in ("compiled_operators", "amp_step", "throughput", "compiled_projector"):
        monkeypatch.setattr(gpu, name, lambda *_: "stood in")
    monkeypatch.setattr(gpu.Collectives, "all_reduce", lambda _: "stood in")
    rows = {row.name: row for row in gpu.check_gpus() if row.place == "GPU"}
    assert rows["driver"].outcome == "failed"
    assert "470.1" in rows["driver"].detail
    assert {rows[name].outcome for name in GPU_CHECKS[1:]} == {"skipped"}


def test_wrong_results_fail(monkeypatch):
    """Each check against a fault put into what it checks."""
    import torchvision.ops

    device = torch.device("cpu")
    with monkeypatch.context() as patch:
        patch.setattr(torchvision.ops, "nms", lambda *_: torch.tensor([0, 1, 2]))
        with pytest.raises(FailedCheckError, match="nms keeps"):
            gpu.compiled_operators(device)
    real = torchvision.ops.roi_align
    with monkeypatch.context() as patch:  # the old default: shifted by half a pixel
        patch.setattr(torchvision.ops, "roi_align", lambda *a, **_: real(*a, 1.0, 2, False))
        with pytest.raises(FailedCheckError, match="roi_align"):
            gpu.compiled_operators(device)
    losses = {None: [1.0, 0.9], torch.bfloat16: [1.0, 0.95]}
    monkeypatch.setattr(gpu, "pretraining_losses", lambda _, half: losses[half])
    with pytest.raises(FailedCheckError, match="off float32 by 5"):
        gpu.amp_step(device)
    losses[torch.bfloat16] = [1.0, float("nan")]
    with pytest.raises(FailedCheckError, match="off float32 by nan"):
        gpu.amp_step(device)


def test_a_head_that_is_off_fails():
    collectives = gpu.Collectives("cpu", 2)
    with pytest.raises(SkippedCheckError, match="did not come so far"):
        collectives.sharded_head()
    for errors in ([1e-7, 2e-3], [float("nan"), 1e-7]):
        collectives._errors = [[1e-7, 1e-7], errors]
        with pytest.raises(FailedCheckError, match="allowed 1e-04"):
            collectives.sharded_head()


def ends_badly(rank, device, how):
    if how == "raises":
        raise ValueError("a reason\nand more")
    if how == "dies":
        os.write(2, b"a library's last words\n")
        os._exit(3)
    import time

    time.sleep(60)


@pytest.mark.parametrize(
    ("how", "seconds", "message"),
    [
        ("raises", 60, r"rank 0 of 1: ValueError: a reason$"),
        ("dies", 60, r"rank 0 of 1 died with exit status 3 \(a library's last words\)"),
        ("hangs", 6, r"rank 0 of 1 had not ended after 6 s"),
    ],
)
def test_a_rank_that_ends_badly_is_named(how, seconds, message):
    with pytest.raises(FailedCheckError, match=message):
        in_processes(ends_badly, 1, "cpu", (how,), seconds)


def test_rates_are_held_against_published_ones_and_each_other(tmp_path):
    work = throughput.WORKLOADS["cuda"]
    table = tmp_path / "table.yaml"
    row = f"{{device: A, workload: {work.name}, images_per_s: 100, source: here}}"
    table.write_text(f"least: 0.5\nmost: 1.2\npublished:\n  - {row}\n")
    assert throughput.judged(100, "A", work, table).endswith("expected 50 to 120 (100 in here)")
    assert throughput.judged(130, "A", work, table).endswith("(100 in here), which it exceeds")
    assert "no expectation recorded" in throughput.judged(10, "B", work, table)
    assert "no expectation recorded" in throughput.judged(10, "A MIG 1g.10gb", work, table)
    with pytest.raises(FailedCheckError, match=r"49 images/s .*expected 50"):
        throughput.judged(49, "A", work, table)
    assert throughput.slow_ones({"0": 100.0, "1": 98.0, "2": 60.0}) == ["2"]
    assert throughput.slow_ones({"0": 100.0}) == []


def test_published_rates_are_of_a_workload_that_is_measured_and_of_one_order():
    """Against what a GPU can multiply: torchvision's count forward, twice that backward."""
    products = 1e9 * ResNet50_Weights.IMAGENET1K_V1.meta["_ops"]
    # Dense half-precision TFLOP/s of the makers' data sheets (accumulated in float32).
    peak = {"A100-SXM4": 312, "V100-SXM2": 125, "RTX 3090": 71}
    content = yaml.safe_load(Path(throughput.__file__).with_name("throughput.yaml").read_text())
    assert 0 < content["least"] < 1 < content["most"]
    assert len({(row["device"], row["workload"]) for row in content["published"]}) == 4
    for row in content["published"]:
        assert row["workload"] == throughput.WORKLOADS["cuda"].name
        assert row["source"]
        (limit,) = (value for name, value in peak.items() if name in row["device"])
        used = row["images_per_s"] * 3 * 2 * products / (limit * 1e12)
        assert 0.1 < used < 0.6, row
        assert "expected" in throughput.judged(
            row["images_per_s"], row["device"], throughput.WORKLOADS["cuda"]
        )


def test_a_check_that_raises_does_not_end_the_others():
    checklist = Checklist()

    def broken():
        raise ZeroDivisionError("of nothing")

    assert not checklist.attempt("one", "CPU", broken)
    assert checklist.attempt("two", "CPU", lambda: ("figure", "detail"))
    report = as_json(checklist.checks)
    assert report["failed"] == 1
    assert report["checks"][0]["detail"] == "ZeroDivisionError: of nothing"


def test_checks_are_told_as_they_come():
    told = []
    checklist = Checklist(
        announce=lambda name, place: told.append(f"{place} {name} ..."),
        report=lambda check: told.append(f"{check.name} {check.outcome}"),
    )
    checklist.attempt("sum", "CPU", lambda: told.append("summing") or "2")
    checklist.leave_out("driver", "GPU", "not here", "no GPU")
    assert told == ["CPU sum ...", "summing", "sum ok", "driver not here"]
