"""Hooks of the fine-tuning loop."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import update_bn_stats
from torch.nn.parallel import DistributedDataParallel

from detection.checkpoints import checkpoints
from detection.stream import TrainingStream, seed_iteration
from intl_transfer.runs import RunDirectory
from intl_transfer.runs.checkpoint import (
    CheckpointNotWrittenError,
    keep_newest,
    try_to_save,
)
from intl_transfer.runs.stopping import Stopped, StopRequest

if TYPE_CHECKING:
    from detection.trainer import Trainer

PERIOD = 20  # iterations between progress lines
_KEPT = 2  # checkpoints, the last iteration's aside


# Stored by one-stage detectors outside of their state dict.
_AVERAGES = ("loss_normalizer",)


def moving_averages(model: torch.nn.Module) -> dict[str, float]:
    """Moving averages outside a detector's state dict, such as RetinaNet's loss normalizer.

    Detectron2 does not save them, and updates them also in passes for statistics.
    """
    model = model.module if isinstance(model, DistributedDataParallel) else model
    return {name: float(getattr(model, name)) for name in _AVERAGES if hasattr(model, name)}


def set_moving_averages(model: torch.nn.Module, values: Mapping[str, float]) -> None:
    """Restores what :func:`moving_averages` returned."""
    model = model.module if isinstance(model, DistributedDataParallel) else model
    for name, value in values.items():
        setattr(model, name, value)


class _Hook(HookBase):
    """A hook of this project's trainer."""

    trainer: Trainer  # set when the training begins


class LRScheduler(hooks.LRScheduler):
    """Detectron2's, which continues under the learning rates of this session's configuration.

    Its own also restores the base rates and, with the optimizer's settings, the last iteration's: a
    run continued with another ``SOLVER.BASE_LR`` would go on with the one that it began with.
    """

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the position in the schedule, and sets the rates there."""
        scheduler = self.scheduler
        scheduler.last_epoch = state["last_epoch"]
        for group, rate in zip(scheduler.optimizer.param_groups, scheduler.get_lr(), strict=True):
            group["lr"] = rate


class Seeds(_Hook):
    """Seeds each iteration's random numbers from seed, rank and iteration."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def before_step(self) -> None:
        """Seeds all generators."""
        seed_iteration(self._seed, self.trainer.iter)


class Costs(_Hook):
    """Writes ``metrics.jsonl`` and measures time and memory over all sessions.

    Attributes:
        seconds: spent in iterations: data, forward, backward, optimizer.
        data_seconds: of these, spent waiting for data.
    """

    def __init__(self, run: RunDirectory | None) -> None:
        self._run = run
        self.seconds = self.data_seconds = 0.0
        self._iterations = 0
        self._wall = 0.0  # earlier sessions
        self._peak = 0.0
        self._began = self._session = time.perf_counter()

    def before_train(self) -> None:
        """Starts the session's clock."""
        self._session = time.perf_counter()

    def before_step(self) -> None:
        """Starts the iteration's clock."""
        self._began = time.perf_counter()

    def after_step(self) -> None:
        """Stops the clock, and writes a line every few iterations."""
        self.seconds += time.perf_counter() - self._began
        self._iterations += 1
        latest = {k: v for k, (v, _) in self.trainer.storage.latest().items()}
        self.data_seconds += latest.get("data_time", 0.0)
        iteration = self.trainer.iter + 1
        if self._run is None or (iteration % PERIOD and iteration != self.trainer.max_iter):
            return
        losses = {k: v for k, v in latest.items() if k == "total_loss" or k.startswith("loss_")}
        self._run.log(
            iteration=iteration,
            lr=latest.get("lr"),
            data_time=latest.get("data_time"),
            train_seconds=round(self.seconds, 3),
            images_per_second=self.images_per_second(),
            **losses,
        )

    def images_per_second(self) -> float:
        """Over the whole training, without evaluations, statistics and checkpoints."""
        images: int = self._iterations * self.trainer.cfg.SOLVER.IMS_PER_BATCH
        return images / max(1e-9, self.seconds)

    def data_share(self) -> float:
        """The fraction of iteration time spent waiting for data."""
        return self.data_seconds / max(1e-9, self.seconds)

    def wall_seconds(self) -> float:
        """All sessions from their first iteration on, including evaluations."""
        return self._wall + time.perf_counter() - self._session

    def peak_memory_mb(self) -> float:
        """Of the GPU, or of this process on a CPU."""
        if torch.cuda.is_available() and self.trainer.cfg.MODEL.DEVICE != "cpu":
            now = torch.cuda.max_memory_allocated() / 2**20
        else:
            now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return max(self._peak, now)

    def state_dict(self) -> dict[str, Any]:
        """The measurements so far, for a checkpoint."""
        return {
            "seconds": self.seconds,
            "data_seconds": self.data_seconds,
            "iterations": self._iterations,
            "wall_seconds": self.wall_seconds(),
            "peak_memory_mb": self.peak_memory_mb(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the measurements of earlier sessions."""
        self.seconds, self.data_seconds = state["seconds"], state["data_seconds"]
        self._iterations, self._wall = state["iterations"], state["wall_seconds"]
        self._peak = state["peak_memory_mb"]


class PreciseStatistics(_Hook):
    """Batch-norm statistics as true averages, before each evaluation.

    Like Detectron2's hook, but on the same images every time, so that results do not depend on the
    number of evaluations or interruptions.

    Args:
        stream: batches to average over.
        batches: number of them.
        period: iterations between evaluations; 0 for the last iteration only.
    """

    def __init__(self, stream: TrainingStream, batches: int, period: int) -> None:
        self._stream, self._batches, self._period = stream, batches, period

    def after_step(self) -> None:
        """Replaces the running averages if an evaluation follows."""
        if evaluation_due(self.trainer, self._period):
            kept = moving_averages(self.trainer.model)
            with EventStorage():  # the model's logs of these passes are discarded
                update_bn_stats(self.trainer.model, self._stream, self._batches)
            set_moving_averages(self.trainer.model, kept)


class Checkpoints(_Hook):
    """Saves periodically, before evaluations, at the end, and on a request to stop."""

    def __init__(
        self,
        stop: StopRequest,
        period: int,
        evaluation_period: int,
        run: RunDirectory | None = None,
    ) -> None:
        self._stop, self._period, self._evaluation_period = stop, period, evaluation_period
        self._run = run

    def after_step(self) -> None:
        """Saves if due, and sets ``trainer.saved`` to its success.

        Raises:
            Stopped: on all ranks after the same iteration, if any received a request to stop.
        """
        iteration = self.trainer.iter + 1
        last = iteration == self.trainer.max_iter
        stopped = self._stop.agreed()
        due = (
            stopped
            or last
            or iteration % self._period == 0
            or evaluation_due(self.trainer, self._evaluation_period)
        )
        if due:
            written = True
            if comm.is_main_process():
                name = "model_final" if last else f"model_{self.trainer.iter:07d}"
                written = self._save(name, last)
            self.trainer.saved = comm.all_gather(written)[0]
        if stopped:
            raise Stopped

    def after_train(self) -> None:
        """Completes pending exchanges between ranks."""
        self._stop.close()

    def _save(self, name: str, last: bool) -> bool:
        checkpointer = self.trainer.checkpointer
        folder = Path(checkpointer.save_dir)

        def save() -> None:
            try:
                checkpointer.save(name, iteration=self.trainer.iter)
            except OSError as error:  # a full disk
                text = f"{folder / name}.pth was not written ({error.strerror or error})"
                raise CheckpointNotWrittenError(text) from error

        written = try_to_save(self._run, save, lambda: checkpoints(folder), is_needed=last)
        if written and not last:
            keep_newest([p for p in checkpoints(folder) if p.stem[6:].isdigit()], _KEPT)
        return written


class Evaluation(_Hook):
    """Evaluates periodically and after the last iteration, after saving."""

    def __init__(self, stop: StopRequest, period: int) -> None:
        self._stop, self._period = stop, period

    def after_step(self) -> None:
        """Evaluates if due; a request to stop meanwhile takes effect at once."""
        if evaluation_due(self.trainer, self._period):
            with self._stop.at_once():
                self.trainer.evaluate(self.trainer.iter + 1)


def evaluation_due(trainer: Trainer, period: int) -> bool:
    """Whether to evaluate after the current iteration."""
    iteration = trainer.iter + 1
    return iteration == trainer.max_iter or (period > 0 and iteration % period == 0)
