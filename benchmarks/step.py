"""What the training loop costs beyond forward, backward and optimizer step.

    python benchmarks/step.py [--json] [--steps 50] [--backbone resnet50] [--batch 32] [--size 64]

`pretrain/train.py` itself trains, with everything it logs and watches, on batches that are ready
when it asks for them (the input pipeline has its own benchmark, `benchmarks/views.py`). Between its
steps, in the same process, the bare step is made on a copy of the same network with the same batch,
as floats in memory. What it takes from one batch to asking for the next is compared with that.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

import torch

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
        self.ours: list[float] = []
        self.bare: list[float] = []

    def __iter__(self) -> Iterator[Batch]:
        assert self.bare_step is not None
        while True:
            start = time.perf_counter()
            yield self._batch
            self.ours.append(time.perf_counter() - start)
            start = time.perf_counter()
            self.bare_step(self._floats)
            self.bare.append(time.perf_counter() - start)


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
    """Prints the comparison; with ``--json`` one object on the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--steps", type=int, default=50, help="steps of each, timed in turns")
    parser.add_argument("--backbone", default="resnet50", help="of both")
    parser.add_argument("--batch", type=int, default=32, help="images of a step")
    parser.add_argument("--size", type=int, default=64, help="side of the images, in pixels")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        loader, seconds, checkpoint = measure(arguments, Path(folder))
    ours, bare = loader.ours[WARM_UP:], loader.bare[WARM_UP:]
    ratios = [a / b for a, b in zip(ours, bare, strict=False)]
    ratio = statistics.median(ratios)
    spread = statistics.quantiles(ratios, n=4)
    print(
        f"{arguments.backbone}, batch {arguments.batch} x 2 views of {arguments.size} px, "
        f"{len(ours)} steps, float32, 2 threads, medians\n"
    )
    print(f"bare step        {statistics.median(bare) * 1e3:8.1f} ms")
    print(f"step of train.py {statistics.median(ours) * 1e3:8.1f} ms")
    print(
        f"overhead         {100 * (ratio - 1):8.2f} %  (aim: at most 3 %; quartiles "
        f"{100 * (spread[0] - 1):.2f} to {100 * (spread[2] - 1):.2f} %)"
    )
    mean = statistics.mean(ours)
    print("\nWhere it goes, mean over the steps:")
    for name, total in sorted(seconds.items(), key=lambda item: -item[1]):
        share = total / len(loader.ours)
        print(f"{name:34s} {share * 1e3:7.2f} ms {100 * share / mean:6.2f} %")
    print(f"\nA checkpoint, not in the above: {checkpoint * 1e3:.0f} ms each")
    if arguments.json:
        case = {
            "case": f"{arguments.backbone}, step of train.py",
            "ratio": 1 / ratio,
            "min": 1 / max(ratios),
            "max": 1 / min(ratios),
            "unit": "reference time / our time",
        }
        print(json.dumps({"benchmark": "step", "cases": [case]}))
    return 0


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
