"""Counts the operations of a pretraining step, for costs that cannot be measured here.

    python benchmarks/collectives.py [--json] [--cases two_views multicrop] [--set KEY=VALUE ...]

`pretrain/train.py` itself trains on two ranks of gloo, ResNet-50 with the views and the loss of the
published recipes, at images a quarter of their size and a narrow hidden projector, neither of which
changes a count. In one step, on each rank, all that Python hands to torch is counted by part of the
step:

- **collectives**, those of DistributedDataParallel included, and the bytes handed to them;
- **waits**: what would make the host wait for a GPU, as `.item()`, `bool(tensor)`, `.tolist()`,
  `.cpu()`, `nonzero`. A TorchDispatchMode sees the operators (`aten::_local_scalar_dense` and so
  on) and a TorchFunctionMode the methods that are none on a CPU;
  (Signals to stop are agreed on over the host alone: their one waits for no GPU.)
- **operators**: all others but views, which launch nothing: of each one Python-level dispatch and,
  on a GPU, at least one kernel.

Gradients, whose bytes follow from the parameters, are counted with the narrow projector's.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import pickle
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import intl_transfer.data.unreadable
import intl_transfer.runs.stopping
import pretrain.learner
import pretrain.monitor
import pretrain.train
from intl_transfer.data.datasets import Batch
from intl_transfer.data.shapes import ShapesSpec, make_shapes
from intl_transfer.runs.config import load_config
from intl_transfer.runs.distributed import Ranks
from intl_transfer.runs.finite import StepGuard
from pretrain.config import PretrainConfig

ROOT = Path(__file__).resolve().parents[1]
RANKS = 2
BATCH = 128  # with 8192 columns: enough that ranks share the loss head, as at 256
#: Steps before those that are counted: DistributedDataParallel sets itself up in the first ones.
WARM_UP = 4
#: Parts of a step, and what makes them; what is in none of them is "the rest".
PARTS: dict[str, list[tuple[Any, str]]] = {
    "forward": [(pretrain.learner.Learner, "_embed"), (pretrain.learner, "loss_of")],
    "backward": [(torch.Tensor, "backward")],
    "finite?": [(StepGuard, "remember"), (StepGuard, "is_finite")],
    "optimizer": [(pretrain.learner.Learner, "_step_optimizer")],
    "log line": [
        (pretrain.monitor.Monitor, "step"),
        (intl_transfer.data.unreadable.Unreadable, "check"),
    ],
    "signals": [(intl_transfer.runs.stopping.StopRequest, "agreed")],
}
CASES = {
    "two_views": ("imagenet_r50_ep800", "two views"),
    "multicrop": ("imagenet_r50_ep200_multicrop_ema", "six crops, moving average"),
}
#: Where each collective has what this rank gives.
GIVEN = {"allreduce_": 0, "broadcast_": 0}
COLUMNS = ("collectives", "MB", "waits", "operators")

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.equal.default,
    aten.masked_select.default,
    aten._unique2.default,
}
METHODS = {Tensor.tolist, Tensor.cpu, Tensor.numpy}


class Counts(TorchDispatchMode):
    """Counts what is dispatched within its block, by part of the step."""

    def __init__(self, kinds: Counter[tuple[str, str]], counts: Counter[tuple[str, str]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.part = "the rest"
        self.counts, self.kinds = counts, kinds

    def add(self, column: str, number: float = 1) -> None:
        """Adds to the present part of the step."""
        # Bytes are counted in MiB.
        self.counts[self.part, column] += number  # type: ignore[assignment]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # torch's signature
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::")
            given = tree_leaves(args[GIVEN.get(name, 1)])
            size = sum(t.numel() * t.element_size() for t in given if isinstance(t, Tensor))
            self.add("collectives")
            self.add("MB", size / 1e6)
            self.kinds[self.part, name.strip("_")] += 1
        elif func in WAITS:
            # Of a static graph DistributedDataParallel reads, for each parameter, whether it was
            # used, in a table that lies in the host's memory wherever parameters do.
            is_table = args[0].dtype == torch.int32 and args[0].untyped_storage().nbytes() > 4
            self.add("host reads" if is_table else "waits")
        elif not func.is_view:
            self.add("operators")
        return func(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    """Counts the methods that wait for a GPU and are no operators on a CPU."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in METHODS:
            self._counts.add("waits")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def parts_of(counts: Counts) -> Iterator[None]:
    """Within the block, ``counts`` knows which part of the step is made."""

    def within(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def made(*args: Any, **kwargs: Any) -> Any:
            before, counts.part = counts.part, part
            try:
                return call(*args, **kwargs)
            finally:
                counts.part = before

        return made

    with contextlib.ExitStack() as stack:
        for part, places in PARTS.items():
            for owner, name in places:
                original = getattr(owner, name)
                setattr(owner, name, within(part, original))
                stack.callback(setattr, owner, name, original)
        yield


class CountedBatches:
    """A loader that counts what happens between two of its batches."""

    def __init__(self, batch: Batch, counted: dict[int, Counts]) -> None:
        self._batch, self._counted = batch, counted

    def __iter__(self) -> Iterator[Batch]:
        step = 0
        while True:
            step += 1
            counts = self._counted.get(step)
            if counts is None:
                yield self._batch
                continue
            with parts_of(counts), counts, Methods(counts):
                yield self._batch


def on_a_rank(rank: int, folder: str, name: str, overrides: list[str]) -> None:
    """Trains a few steps, counts one without and one with a log line."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store_{name}",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(minutes=10),
    )
    recipe, _ = CASES[name]
    sizes = load_config(PretrainConfig, recipe, [], ROOT / "configs" / "pretrain").views
    config = load_config(
        PretrainConfig,
        recipe,
        [
            f"data.root={folder}/data/classification/train",
            f"output_dir={folder}/{name}",
            f"views=[{', '.join(f'{{size: {view.size // 4}}}' for view in sizes)}]",
            "model.projector_hidden=64",
            f"optim.batch_size={BATCH}",
            f"engine.stop_after_steps={WARM_UP + 2}",
            f"log.steps={WARM_UP + 2}",
            "log.seconds=1000000",
            "log.diagnostics_steps=0",
            "log.tensorboard=false",
            "log.pictures=false",
            "data.workers=0",
            *overrides,
        ],
        ROOT / "configs" / "pretrain",
    )
    generator = torch.Generator().manual_seed(rank)
    rows = BATCH // RANKS
    views = [
        torch.randint(0, 256, (rows, v.size, v.size, 3), dtype=torch.uint8, generator=generator)
        for v in config.views
    ]
    counted = {step: Counts(Counter(), Counter()) for step in (WARM_UP + 1, WARM_UP + 2)}
    loader = CountedBatches(Batch(views, torch.arange(rows), [], False), counted)
    ranks = Ranks(rank, RANKS, rank, torch.device("cpu"))
    feed = mock.patch.object(pretrain.train, "build_loader", return_value=loader)
    with feed, contextlib.redirect_stdout(io.StringIO()):
        pretrain.train.train(config, recipe, ranks)
    plain, logged = (counted[step] for step in sorted(counted))
    found = {
        "counts": dict(plain.counts),
        "kinds": dict(plain.kinds),
        "log": {column: logged.counts["log line", column] for column in COLUMNS},
    }
    Path(folder, f"{name}_{rank}.pkl").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


def count(name: str, folder: str, overrides: list[str]) -> list[dict[str, Any]]:
    """What every rank counted in a step of one case."""
    mp.spawn(on_a_rank, (folder, name, overrides), nprocs=RANKS)
    files = [Path(folder, f"{name}_{rank}.pkl") for rank in range(RANKS)]
    return [pickle.loads(file.read_bytes()) for file in files]


def show(title: str, rank: int, found: dict[str, Any]) -> None:
    """Prints one rank's step."""
    counts, kinds = found["counts"], found["kinds"]
    print(f"\n{title}, one step of rank {rank}")
    print(f"{'':12s}" + "".join(f"{column:>12s}" for column in COLUMNS) + "  kinds")
    for part in ("the rest", *PARTS):
        values = [counts.get((part, column), 0) for column in COLUMNS]
        listed = ", ".join(f"{n} {kind}" for (own, kind), n in kinds.items() if own == part)
        if any(values):
            print(f"{part:12s}" + "".join(_number(value) for value in values) + f"  {listed}")
    print(f"{'all':12s}" + "".join(_number(total(found, column)) for column in COLUMNS))
    print("with a log line, more:" + "".join(f" {_number(n).strip()} {c}" for c, n in log(found)))


def _number(value: float) -> str:
    return f"{value:12.2f}" if isinstance(value, float) else f"{value:12d}"


def log(found: dict[str, Any]) -> list[tuple[str, float]]:
    """What a log line adds, by column."""
    return list(found["log"].items())


def total(found: dict[str, Any], column: str) -> float:
    """Of all parts of a step."""
    found_in_all: float = sum(n for (_, own), n in found["counts"].items() if own == column)
    return found_in_all


def main() -> int:
    """Prints the tables; with ``--json`` one object on the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=list(CASES), help="cases to count"
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="override a setting of the run"
    )
    arguments = parser.parse_args()
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        spec = ShapesSpec(
            objects_train=BATCH * (WARM_UP + 3), objects_val=8, scenes_train=1, scenes_val=1
        )
        make_shapes(Path(folder) / "data", spec)
        for name in arguments.cases:
            every = count(name, folder, arguments.set)
            for rank, found in enumerate(every):
                if not rank or found["counts"] != every[0]["counts"]:
                    show(f"ResNet-50, {CASES[name][1]}", rank, found)
            if all(found["counts"] == every[0]["counts"] for found in every):
                print("the other ranks: the same")
            cases.append(
                {
                    "case": CASES[name][1],
                    **{column: total(every[0], column) for column in COLUMNS},
                    **{
                        f"{part.replace(' ', '_')}_{column}": every[0]["counts"].get(
                            (part, column), 0
                        )
                        for part in ("the rest", *PARTS)
                        for column in COLUMNS
                    },
                    **{f"per_log_line_{column}": n for column, n in log(every[0])},
                }
            )
    if arguments.json:
        print(json.dumps({"benchmark": "collectives", "cases": cases}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
