"""The stages on a GPU, as a user starts them, against the same on the CPU."""

from __future__ import annotations

import functools
import json
import math
import signal
import subprocess
import sys

import pytest
import torch

from intl_transfer.cli import main
from intl_transfer.runs import read_manifest, read_metrics, read_results
from tests.detection.conftest import TINY, train_net
from tests.evaluation.test_stage import KINDS, words
from tests.pretrain.running import backbone, environment, train
from tests.pretrain.test_resume import newest_step, start, wait_for

LONG = ["optim.epochs=10", "engine.checkpoint_steps=1"]


def losses(output):
    return [row["loss"] for row in read_metrics(output) if "loss" in row]


def apart(found, expected):
    """The largest relative difference of two lists of losses."""
    assert len(found) == len(expected) > 0
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


#: Feature maps of more than one pixel.
LARGE = "views=[{size: 64}, {size: 64}]"


@pytest.fixture(scope="module")
def on_cpu(images, tmp_path_factory):
    """Losses of six steps on the CPU, by method and views."""

    @functools.cache
    def found(method, *views):
        output = tmp_path_factory.mktemp("cpu") / method
        settings = (f"loss.method={method}", "optim.base_lr=0.02", *views)
        train(images, output, "engine.device=cpu", *settings)
        return losses(output)

    return found


@pytest.mark.parametrize("method", ["intl", "intl_ema"])
@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ((), 0.01),
        (("engine.precision=bf16",), 0.05),
        (("engine.precision=fp16",), 0.01),
        (("engine.channels_last=false", "engine.activation_checkpointing=true"), 0.01),
        (("engine.lockstep=true",), 0.01),
        (("engine.lockstep=true", "engine.precision=bf16"), 0.05),
        (("engine.lockstep=true", "engine.precision=fp16"), 0.01),
        (("engine.compile=inductor", LARGE), 0.01),
        (("engine.compile=inductor", "engine.channels_last=false"), 0.01),
        (("data.workers=2", "engine.precision=bf16"), 0.05),
    ],
    ids=[
        *("fp32", "bf16", "fp16", "checkpointing", "lockstep", "lockstep-bf16", "lockstep-fp16"),
        *("compiled", "compiled-small", "workers"),
    ],
)
def test_pretraining_has_the_losses_of_the_cpu(
    images, tmp_path, device, on_cpu, method, settings, tolerance
):
    if device.type == "cpu" and "engine.precision=fp16" in settings:
        pytest.skip("of GPUs alone")
    train(
        *(images, tmp_path / "run", f"engine.device={device.type}", f"loss.method={method}"),
        *("optim.base_lr=0.02", *settings),
    )
    manifest = read_manifest(tmp_path / "run")
    assert manifest["status"] == "finished"
    assert all(torch.isfinite(value).all() for value in backbone(tmp_path / "run").values())
    views = [setting for setting in settings if setting.startswith("views")]
    found, expected = losses(tmp_path / "run"), on_cpu(method, *views)
    assert apart(found[:1], expected[:1]) < tolerance, (found, expected)
    # Steps of eight images make much of rounding; the losses of other images differ by more.
    assert apart(found, expected) < 0.5, (found, expected)


def test_pretraining_stopped_and_continued_ends_where_it_would_have(
    images, tmp_path, device, monkeypatch
):
    # cuDNN chooses kernels anew in each process; of TF32 that would be thousandths of a loss
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    settings = [*LONG, f"engine.device={device.type}", "optim.base_lr=0.02", "data.workers=1"]
    train(images, tmp_path / "whole", *settings)
    process = start(images, tmp_path / "parts", *settings)
    wait_for(lambda: newest_step(tmp_path / "parts") > 3, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 75, process.communicate()[0]
    train(images, tmp_path / "parts", *settings)
    assert len(read_manifest(tmp_path / "parts")["sessions"]) == 2
    whole, parts = (losses(tmp_path / name) for name in ("whole", "parts"))
    assert apart(parts, whole) < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_evaluations_give_what_the_cpu_gives(kind, classes, trained, tmp_path, device):
    found = {}
    for place in ("cpu", device.type):
        more = [*KINDS[kind], f"engine.device={place}"]
        assert main(words(classes, trained, tmp_path / place, *more)) == 0
        found[place] = read_results(tmp_path / place)["metrics"]["top1"]
    cpu, here = (found[place] for place in ("cpu", device.type))
    assert abs(cpu - here) <= 100 * 2 / 21 + 1e-6, found  # two of 21 images


@pytest.mark.parametrize("config", ["shapes_coco_R18_C4", "shapes_voc_R18_C4"])
def test_a_detector_trains_and_is_evaluated(data, backbone_file, tmp_path, device, config):
    amp = ["SOLVER.AMP.ENABLED", "True"] if device.type == "cuda" else []
    budget = [
        "SOLVER.MAX_ITER",
        "6",
        "SOLVER.CHECKPOINT_PERIOD",
        "3",
        "DATALOADER.NUM_WORKERS",
        "1",
    ]
    arguments = ["--config", config, "--weights", backbone_file, "--seed", 1]
    out = tmp_path / "run"
    done = train_net(
        *(data, *arguments, "--output-dir", out, *TINY, *budget, *amp),
        *("MODEL.DEVICE", device.type),
    )
    assert "no GPU found" not in done.stdout
    results = read_results(out)
    assert results["iteration"] == 6
    rows = [row for row in read_metrics(out) if "total_loss" in row]
    assert all(math.isfinite(row["total_loss"]) for row in rows)
    # The same weights, evaluated on the CPU: six iterations detect nothing well, but equally.
    again = tmp_path / "again"
    train_net(
        *(data, "--config", config, "--weights", out / "model_final.pth", "--eval-only"),
        *("--output-dir", again, *TINY, "MODEL.DEVICE", "cpu"),
    )
    found = json.loads((again / "evaluation.json").read_text())["metrics"]
    for task, metrics in results["metrics"].items():
        assert metrics["AP50"] == pytest.approx(found[task]["AP50"], abs=2), task
    if "coco" in config:
        here, cpu = scores(out), scores(again)
        assert here.keys() == cpu.keys()
        for image in here:
            assert here[image][:5] == pytest.approx(cpu[image][:5], abs=0.02)


def scores(folder):
    """Of the detections of each image, highest first."""
    found = {}
    for one in json.loads((folder / "coco_instances_results.json").read_text()):
        found.setdefault(one["image_id"], []).append(one["score"])
    return {image: sorted(values, reverse=True) for image, values in found.items()}


@pytest.mark.cuda
def test_the_doctor_finds_the_gpu_well(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "intl_transfer", "doctor", "--gpu", "--json"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    report = json.loads(done.stdout)
    rows = {(row["place"], row["name"]): row for row in report["checks"]}
    assert done.returncode == 0, report
    assert {row["outcome"] for (place, _), row in rows.items() if place == "GPU"} == {"ok"}
