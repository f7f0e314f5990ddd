"""Overhead of fine-tuning over Detectron2's own training loop on the same model and images.

    python benchmarks/finetune.py [--json] [--config shapes_coco_R50_C4] [--iterations 40]

`detection/train_net.py`'s trainer, with its hooks, its image stream and its run directory, makes an
iteration; then Detectron2's `SimpleTrainer` makes one on a copy of the model, on the same images
from Detectron2's own loader; in turns, in the same process. Evaluations, precise BN and checkpoints
come now and then only, and are left out on both sides. On a CPU the overhead is that of processor
time, which other programs on the machine disturb less than the clock on the wall.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

from detection import datasets  # isort: skip  # first: prepares Detectron2
import torch
from detectron2.data import build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import SimpleTrainer
from detectron2.engine.train_loop import TrainerBase
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage

from detection.config import as_dict, load_config
from detection.trainer import Trainer
from intl_transfer.data.shapes import ShapesSpec, make_shapes
from intl_transfer.runs import RunDirectory
from intl_transfer.runs.stopping import StopRequest

WARM_UP = 4


def main() -> int:
    """Prints the comparison; with ``--json`` one object on the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--config", default="shapes_coco_R50_C4", help="configuration of an embedded data set"
    )
    parser.add_argument("--iterations", type=int, default=40, help="iterations of each training")
    parser.add_argument("--workers", type=int, default=0, help="worker processes of each loader")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DETECTRON2_DATASETS"] = folder
        spec = ShapesSpec(objects_train=8, objects_val=8, scenes_train=120, scenes_val=1)
        make_shapes(Path(folder) / "shapes", spec)
        datasets.register()
        cfg = configuration(arguments, folder)
        ours, theirs, hooks = measure(cfg, arguments.iterations)
    report(cfg, ours, theirs, hooks, arguments)
    return 0


def configuration(arguments: argparse.Namespace, folder: str) -> Any:
    """The configuration, with nothing in it that comes only now and then."""
    iterations = arguments.iterations + WARM_UP
    options = {
        "OUTPUT_DIR": f"{folder}/run",
        "SEED": 0,
        "MODEL.DEVICE": "cuda" if torch.cuda.is_available() else "cpu",
        "MODEL.WEIGHTS": "",
        "DATALOADER.NUM_WORKERS": arguments.workers,
        # One more than are made: the last is followed by precise BN, checkpoint and evaluation.
        "SOLVER.MAX_ITER": iterations + 1,
        "SOLVER.CHECKPOINT_PERIOD": iterations + 1,
        "SOLVER.STEPS": (),
        "TEST.EVAL_PERIOD": 0,
    }
    pairs = [str(word) for pair in options.items() for word in pair]
    return load_config(arguments.config, pairs)


class Timed:
    """A trainer driven iteration by iteration, as `TrainerBase.train` does, against the clock."""

    def __init__(self, trainer: TrainerBase) -> None:
        self.trainer = trainer
        self.trainer.storage = EventStorage(0)
        self.seconds: list[float] = []
        self.work: list[float] = []  # processor seconds on a CPU, else as above
        self.data_seconds: list[float] = []

    def iteration(self, number: int) -> None:
        """Makes one iteration."""
        trainer = self.trainer
        trainer.iter = number
        with trainer.storage:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start, work = time.perf_counter(), time.process_time()
            trainer.before_step()
            trainer.run_step()
            trainer.after_step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - start)
            on_cpu = not torch.cuda.is_available()
            self.work.append(time.process_time() - work if on_cpu else self.seconds[-1])
            self.data_seconds.append(trainer.storage.latest()["data_time"][0])


def measure(cfg: Any, iterations: int) -> tuple[Timed, Timed, dict[str, float]]:
    """Makes iterations by both trainers in turns; also the seconds spent in each hook of ours."""
    run = RunDirectory.start(
        cfg.OUTPUT_DIR, stage="detection", name="x", config_name="x", config=as_dict(cfg), seed=0
    )
    with StopRequest() as stop:
        trainer = Trainer(cfg, run, stop)
        model = copy.deepcopy(trainer.model)
        records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN)
        sampler = TrainingSampler(len(records), seed=cfg.SEED)
        loader = build_detection_train_loader(cfg, dataset=records, sampler=sampler)
        ours = Timed(trainer)
        theirs = Timed(SimpleTrainer(model, loader, build_optimizer(cfg, model)))
        pair = (ours, theirs)
        with timed_hooks(trainer) as hooks:
            for timed in pair:
                timed.trainer.before_train()
            for number in range(iterations + WARM_UP):
                # Who comes first changes, so that neither always finds the caches as the other
                # left them.
                for timed in pair if number % 2 else pair[::-1]:
                    timed.iteration(number)
        stop.close()
    return ours, theirs, hooks


@contextmanager
def timed_hooks(trainer: Trainer) -> Iterator[dict[str, float]]:
    """Seconds spent in each kind of hook while the block runs."""
    seconds: dict[str, float] = defaultdict(float)

    def watch(hook: Any, name: str) -> None:
        call: Callable[[], None] = getattr(hook, name)

        def timed() -> None:
            start = time.perf_counter()
            call()
            seconds[type(hook).__name__] += time.perf_counter() - start

        setattr(hook, name, timed)

    for hook in trainer._hooks:
        watch(hook, "before_step")
        watch(hook, "after_step")
    yield seconds


def report(
    cfg: Any, ours: Timed, theirs: Timed, hooks: dict[str, float], arguments: argparse.Namespace
) -> None:
    """Prints medians, the overhead with its quartiles, and where it goes."""
    mine, reference = ours.seconds[WARM_UP:], theirs.seconds[WARM_UP:]
    work, work_too = ours.work[WARM_UP:], theirs.work[WARM_UP:]
    ratios = [a / b for a, b in zip(work, work_too, strict=True)]
    ratio = statistics.median(work) / statistics.median(work_too)
    spread = statistics.quantiles(ratios, n=4)
    images = cfg.SOLVER.IMS_PER_BATCH
    print(
        f"{arguments.config}, batch {images}, {len(mine)} iterations each, {cfg.MODEL.DEVICE}, "
        f"{arguments.threads} threads, {arguments.workers} loading processes, medians\n"
    )
    for name, timed, seconds in (
        ("SimpleTrainer", theirs, reference),
        ("train_net.py", ours, mine),
    ):
        data = sum(timed.data_seconds[WARM_UP:]) / sum(seconds)
        print(
            f"{name:14s} {statistics.median(seconds) * 1e3:8.1f} ms "
            f"{images / statistics.median(seconds):7.2f} images/s, "
            f"{100 * data:5.2f} % of it waiting for data"
        )
    print(
        f"overhead       {100 * (ratio - 1):8.2f} %  (aim: at most 2 %; quartiles of single "
        f"iterations {100 * (spread[0] - 1):.2f} to {100 * (spread[2] - 1):.2f} %)"
    )
    print("\nHooks, mean over the iterations:")
    total = statistics.mean(ours.seconds)
    for name, spent in sorted(hooks.items(), key=lambda item: -item[1]):
        share = spent / len(ours.seconds)
        print(f"{name:18s} {share * 1e3:7.3f} ms {100 * share / total:6.3f} %")
    if arguments.json:
        case = {
            "case": f"{arguments.config}, iteration of train_net.py",
            "ratio": 1 / ratio,
            "min": 1 / max(ratios),
            "max": 1 / min(ratios),
            "quartile_1": 1 / spread[2],
            "quartile_3": 1 / spread[0],
            "unit": "reference time / our time",
            "reference_ms": 1e3 * statistics.median(work_too),
            "our_ms": 1e3 * statistics.median(work),
            "hooks_share": sum(hooks.values()) / len(ours.seconds) / total,
            "data_share": sum(ours.data_seconds[WARM_UP:]) / sum(mine),
        }
        print(json.dumps({"benchmark": "finetune", "cases": [case]}))


if __name__ == "__main__":
    sys.exit(main())
