"""Runs of the pretraining stage, as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]

# Two epochs of three steps, small enough for a second or two.
TINY = [
    "optim.epochs=2",
    "optim.batch_size=8",
    "optim.base_lr=0.5",
    "model.projector_hidden=32",
    "model.embedding=32",
    "engine.threads=1",
    "log.steps=1",
    "log.tensorboard=false",
    "log.pictures=false",
    "views=[{size: 32}, {size: 32}, {size: 24}]",
]

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")


def command(images, output, *overrides, launcher=(sys.executable,)):
    return [
        *launcher,
        str(ROOT / "pretrain" / "train.py"),
        "--config",
        "shapes_r18",
        *TINY,
        f"data.root={images}",
        f"--output-dir={output}",
        *overrides,
    ]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def train(images, output, *overrides, launcher=(sys.executable,), check=True, **kwargs):
    done = subprocess.run(
        command(images, output, *overrides, launcher=launcher),
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(),
        **kwargs,
    )
    assert not check or done.returncode == 0, done.stderr + done.stdout
    return done


def backbone(output):
    return load_file(output / "backbone.safetensors")


def assert_same(a, b, **tolerance):
    left, right = backbone(a), backbone(b)
    assert left.keys() == right.keys()
    for name in left:
        if tolerance:
            torch.testing.assert_close(left[name], right[name], **tolerance)
        else:
            assert torch.equal(left[name], right[name]), name
