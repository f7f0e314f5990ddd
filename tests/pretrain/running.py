"""Runs of the pretraining stage, as a user starts them."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file

from tests.ranks import run_stage

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


def train(images, output, *overrides, launcher=None, ranks=1, check=True, **kwargs):
    """Runs the stage: in this process or in ranks; with a launcher as a user starts it."""
    arguments = command(images, output, *overrides, launcher=())
    if ranks > 1:
        every = run_stage(trained_here, ranks, arguments)
        done = subprocess.CompletedProcess(
            arguments,
            max(one.returncode for one in every),
            *("".join(getattr(one, name) for one in every) for name in ("stdout", "stderr")),
        )
    elif launcher is None and not kwargs:
        done = trained_here(arguments)
    else:
        done = subprocess.run(
            command(images, output, *overrides, launcher=launcher or (sys.executable,)),
            capture_output=True,
            text=True,
            timeout=300,
            env=environment(),
            **kwargs,
        )
    assert not check or done.returncode == 0, done.stderr + done.stdout
    return done


def trained_here(arguments):
    """The stage in this process, which has loaded its libraries (most of the time of a start)."""
    from pretrain.train import main

    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", arguments),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
        _own_state(),
    ):
        warnings.simplefilter("default")
        warnings.showwarning = lambda *a: print(warnings.formatwarning(*a[:4]), file=sys.stderr)
        try:
            status = main()
        except SystemExit as exit:  # of the parser
            status = exit.code
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _own_state():
    """Puts back what a run changes for its process."""
    threads, random = torch.get_num_threads(), np.random.get_state()
    benchmark = torch.backends.cudnn.benchmark
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)
        np.random.set_state(random)
        torch.backends.cudnn.benchmark = benchmark


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
