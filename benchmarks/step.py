"""Overhead of the training loop over forward, backward and optimizer step; cost of lockstep.

    python benchmarks/step.py [--json] [--parts overhead lockstep] [--steps 50] [--pairs 40]
                              [--backbone resnet18] [--batch 16] [--size 64]

**Overhead.** `pretrain/train.py` itself trains, with everything it logs and watches, on batches
that are ready when it asks for them (the input pipeline has its own benchmark,
`benchmarks/views.py`). Between its steps, in the same process, the bare step is made on a copy of
the same network with the same batch, as floats in memory. What it takes from one batch to asking
for the next is compared with that.

**Lockstep.** Two learners of the same configuration, views one by one and in lockstep
(`engine.lockstep`), take steps in turns on the same batch, one thread a rank, alone and as two
ranks of gloo: ResNet-18, two views and six crops against a moving average.

Ratios are of processor time, all of the process's threads together: other work on the machine does
not count. Those of the wall clock are also printed; they are meaningful only on idle cores. Each is
the median over pairs of neighboring steps.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import io
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import intl_transfer.data.unreadable
import pretrain.learner
import pretrain.monitor
import pretrain.session
import pretrain.train
from intl_transfer.data.datasets import Batch
from intl_transfer.data.shapes import ShapesSpec, make_shapes
from intl_transfer.data.views import normalize
from intl_transfer.models import Encoder
from intl_transfer.runs.config import load_config
from intl_transfer.runs.distributed import Ranks
from intl_transfer.runs.finite import StepGuard
from intl_transfer.runs.stopping import StopRequest
from intl_transfer.spectral import intl_loss
from pretrain.config import PretrainConfig

ROOT = Path(__file__).resolve().parents[1]
#: Parts of a step that the bare one does not have.
PARTS = {
    "bytes to floats (normalize)": (pretrain.learner, "normalize"),
    "keep statistics of batch norm": (StepGuard, "remember"),
    "look at loss, gradients, statistics": (StepGuard, "is_finite"),
    "metrics, progress, TensorBoard": (pretrain.monitor.Monitor, "step"),
    "spectrum diagnostics": (pretrain.monitor.Monitor, "diagnostics"),
    "signals": (StopRequest, "agreed"),
    "count unreadable images": (intl_transfer.data.unreadable.Unreadable, "check"),
}
WARM_UP = 3
#: Sides of the views and the loss, a quarter of the published sizes.
LOCKSTEP = {
    "two views": ([56, 56], "intl"),
    "six crops": ([56, 56, 48, 40, 32, 24], "intl_ema"),
}
LOCKSTEP_BATCH = 8  # a rank
UNIT = "reference time / our time"


def clocks() -> tuple[float, float]:
    """Processor time of this process and the wall clock, in seconds."""
    return time.process_time(), time.perf_counter()


def since(start: tuple[float, float]) -> tuple[float, float]:
    """Seconds of both since then."""
    now = clocks()
    return now[0] - start[0], now[1] - start[1]


class BareStep:
    """Forward, loss, backward and optimizer step, and nothing else."""

    def __init__(self, encoder: Encoder, config: PretrainConfig) -> None:
        self._encoder = copy.deepcopy(encoder)
        groups = pretrain.learner.parameter_groups(self._encoder, config.optim)
        self._optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, fused=True)

    def __call__(self, views: list[torch.Tensor]) -> None:
        """Learns from views that are floats in memory."""
        loss = intl_loss(self._encoder(views))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()


class ReadyBatches:
    """A loader whose batch is there at once, and which times both kinds of step."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._floats = [normalize(view) for view in batch.views]
        self.bare_step: BareStep | None = None
        self.ours: list[tuple[float, float]] = []
        self.bare: list[tuple[float, float]] = []

    def __iter__(self) -> Iterator[Batch]:
        assert self.bare_step is not None
        while True:
            start = clocks()
            yield self._batch
            self.ours.append(since(start))
            start = clocks()
            self.bare_step(self._floats)
            self.bare.append(since(start))


@contextlib.contextmanager
def timed_parts() -> Iterator[dict[str, float]]:
    """Seconds spent in each of :data:`PARTS` while the block runs."""
    seconds: dict[str, float] = defaultdict(float)
    originals = {}
    for name, (owner, attribute) in PARTS.items():
        original = getattr(owner, attribute)
        originals[name] = original

        def timed(*args: Any, _name: str = name, _call: Any = original, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return _call(*args, **kwargs)
            finally:
                seconds[_name] += time.perf_counter() - start

        setattr(owner, attribute, timed)
    try:
        yield seconds
    finally:
        for name, (owner, attribute) in PARTS.items():
            setattr(owner, attribute, originals[name])


def main() -> int:
    """Prints the comparisons; with ``--json`` one object on the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parts = {"overhead": overhead, "lockstep": lockstep}
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts), help="of these")
    parser.add_argument("--steps", type=int, default=50, help="timed steps of each, in turns")
    parser.add_argument("--backbone", default="resnet18", help="backbone for the overhead part")
    parser.add_argument("--batch", type=int, default=16, help="batch size for the overhead part")
    parser.add_argument("--size", type=int, default=64, help="side of their images, in pixels")
    parser.add_argument(
        "--pairs", type=int, default=40, help="pairs of steps for the lockstep part"
    )
    arguments = parser.parse_args()
    cases = [case for part in arguments.parts for case in parts[part](arguments)]
    if arguments.json:
        print(json.dumps({"benchmark": "step", "cases": cases}))
    return 0


def overhead(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Compares a step of train.py with the bare one."""
    torch.set_num_threads(1)  # several would wait for one another, and spend processor time on it
    with tempfile.TemporaryDirectory() as folder:
        loader, seconds, checkpoint = measure(arguments, Path(folder))
    steps = min(len(loader.ours), len(loader.bare))
    ours, bare = (np.array(times[WARM_UP:steps]) for times in (loader.ours, loader.bare))
    print(
        f"{arguments.backbone}, batch {arguments.batch} x 2 views of {arguments.size} px, "
        f"{len(ours)} steps, float32, one thread, medians\n\n"
        f"{'':17s}{'processor':>12s}{'wall clock':>14s}"
    )
    for name, taken in (("bare step", bare), ("step of train.py", ours)):
        processor, wall = np.median(taken, axis=0) * 1e3
        print(f"{name:17s}{processor:9.1f} ms{wall:11.1f} ms")
    share = 100 * (np.quantile(ours / bare, (0.25, 0.5, 0.75), axis=0) - 1)
    print(
        f"{'overhead':17s}{share[1, 0]:10.2f} %{share[1, 1]:12.2f} %  (aim: at most 3 %; quartiles "
        f"{share[0, 0]:.2f} to {share[2, 0]:.2f} %, {share[0, 1]:.2f} to {share[2, 1]:.2f} %)"
    )
    mean = float(ours[:, 1].mean())
    print("\nWhere it goes, mean over the steps, wall clock:")
    for name, total in sorted(seconds.items(), key=lambda item: -item[1]):
        each = total / len(loader.ours)
        print(f"{name:34s} {each * 1e3:7.2f} ms {100 * each / mean:6.2f} %")
    print(f"\nA checkpoint, not in the above: {checkpoint * 1e3:.0f} ms each\n")
    return [case_of(f"{arguments.backbone}, step of train.py", bare, ours)]


def case_of(
    name: str, reference: np.ndarray[Any, Any], ours: np.ndarray[Any, Any]
) -> dict[str, Any]:
    """A case of the JSON from steps' seconds, processor and wall."""
    processor, wall = (reference / ours).T
    low, high = np.quantile(processor, (0.25, 0.75))
    reference_ms, our_ms = (1e3 * float(np.median(taken[:, 0])) for taken in (reference, ours))
    return {
        "case": name,
        "ratio": float(np.median(processor)),
        "min": float(processor.min()),
        "max": float(processor.max()),
        "quartile_1": float(low),
        "quartile_3": float(high),
        "wall_ratio": float(np.median(wall)),
        "unit": UNIT,
        "reference_ms": reference_ms,
        "our_ms": our_ms,
    }


def lockstep(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Compares steps in lockstep with steps of views one by one."""
    print(
        f"ResNet-18, {LOCKSTEP_BATCH} images a rank, {arguments.pairs} pairs of steps, float32, "
        f"one thread a rank, medians\n\n{'':22s}{'one by one':>12s}{'lockstep':>12s}"
        f"{'processor':>12s}{'quartiles':>16s}{'wall clock':>12s}"
    )
    cases = []
    for name in LOCKSTEP:
        for ranks in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                mp.spawn(steps_in_turns, (ranks, folder, name, arguments.pairs), nprocs=ranks)
                taken = np.mean([np.load(file) for file in Path(folder).glob("*.npy")], axis=0)
            single, together = taken[WARM_UP:, 0], taken[WARM_UP:, 1]
            case = case_of(f"lockstep, {name}, {ranks} rank{'s' * (ranks > 1)}", single, together)
            cases.append(case)
            print(
                f"{case['case'].removeprefix('lockstep, '):22s}"
                f"{case['reference_ms']:9.0f} ms{case['our_ms']:9.0f} ms"
                f"{case['ratio']:11.2f}x{case['quartile_1']:9.2f} to {case['quartile_3']:.2f}"
                f"{case['wall_ratio']:11.2f}x"
            )
    return cases


def steps_in_turns(rank: int, world_size: int, folder: str, name: str, pairs: int) -> None:
    """One rank's seconds of steps one by one and in lockstep, (pairs, 2, processor and wall)."""
    torch.set_num_threads(1)
    if world_size > 1:
        store = f"file://{folder}/store"
        wait = timedelta(minutes=10)
        dist.init_process_group(
            "gloo", init_method=store, rank=rank, world_size=world_size, timeout=wait
        )
    sizes, method = LOCKSTEP[name]
    config = load_config(
        PretrainConfig,
        "shapes_r50",
        [
            *("model.backbone=resnet18", f"loss.method={method}"),
            f"views=[{', '.join(f'{{size: {size}}}' for size in sizes)}]",
            f"optim.batch_size={LOCKSTEP_BATCH * world_size}",
        ],
        ROOT / "configs" / "pretrain",
    )
    ranks = Ranks(rank, world_size, rank, torch.device("cpu"))
    learners = []
    for together in (False, True):
        torch.manual_seed(0)
        engine = dataclasses.replace(config.engine, lockstep=together)
        learner = pretrain.learner.Learner(dataclasses.replace(config, engine=engine), ranks, 100)
        learner.prepare()
        learners.append(learner)
    generator = torch.Generator().manual_seed(rank)
    shapes = [(LOCKSTEP_BATCH, size, size, 3) for size in sizes]
    views = [torch.randint(0, 256, s, dtype=torch.uint8, generator=generator) for s in shapes]
    batch = Batch(views, torch.arange(LOCKSTEP_BATCH), [], False)
    taken = np.zeros((pairs + WARM_UP, 2, 2))
    for pair in range(len(taken)):
        for which in (0, 1) if pair % 2 else (1, 0):
            ranks.barrier()
            start = clocks()
            learners[which].step(pair, batch)
            taken[pair, which] = since(start)
    np.save(Path(folder, f"{rank}.npy"), taken)
    if world_size > 1:
        dist.destroy_process_group()


def measure(
    arguments: argparse.Namespace, folder: Path
) -> tuple[ReadyBatches, dict[str, float], float]:
    """Trains by ``train()`` and by the bare step in turns."""
    spec = ShapesSpec(objects_train=256, objects_val=8, scenes_train=1, scenes_val=1)
    make_shapes(folder / "data", spec)
    steps, batch = arguments.steps + WARM_UP, arguments.batch
    config = load_config(
        PretrainConfig,
        "shapes_r50",
        [
            f"data.root={folder}/data/classification/train",
            f"output_dir={folder}/run",
            f"model.backbone={arguments.backbone}",
            "model.projector_hidden=2048",
            "model.embedding=2048",
            f"views=[{{size: {arguments.size}}}, {{size: {arguments.size}}}]",
            f"optim.batch_size={batch}",
            f"optim.epochs={-(-steps // (256 // batch))}",
            f"engine.stop_after_steps={steps}",
            "engine.checkpoint_epochs=1000",
            "log.pictures=false",
        ],
        ROOT / "configs" / "pretrain",
    )
    generator = torch.Generator().manual_seed(0)
    shape = (batch, arguments.size, arguments.size, 3)
    views = [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in "ab"]
    loader = ReadyBatches(Batch(views, torch.arange(len(views[0])), [], False))

    prepare, save = pretrain.learner.Learner.prepare, pretrain.session.State.save
    saving: list[float] = []

    def prepare_both(learner: pretrain.learner.Learner) -> None:
        loader.bare_step = BareStep(learner.encoder, config)
        prepare(learner)

    def timed_save(*args: Any) -> None:
        start = time.perf_counter()
        save(*args)
        saving.append(time.perf_counter() - start)

    ranks = Ranks(0, 1, 0, torch.device("cpu"))
    with (
        mock.patch.object(pretrain.learner.Learner, "prepare", prepare_both),
        mock.patch.object(pretrain.session.State, "save", timed_save),
        mock.patch.object(pretrain.train, "build_loader", return_value=loader),
        timed_parts() as seconds,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        pretrain.train.train(config, "shapes_r50", ranks)
    return loader, dict(seconds), statistics.median(saving)


if __name__ == "__main__":
    sys.exit(main())
