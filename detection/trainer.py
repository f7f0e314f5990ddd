"""The fine-tuning loop: Detectron2's trainer with the run directory beside it."""

from __future__ import annotations

import os
import resource
import time
import weakref
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.utils import comm
from fvcore.nn.precise_bn import get_bn_modules

from detection.evaluators import build_evaluator
from detection.roi_heads import Res5ROIHeadsExtraNorm
from intl_transfer.runs import RunDirectory, read_metrics

# The box head is named so that importing the trainer registers it with Detectron2.
__all__ = ["AtomicCheckpointer", "Res5ROIHeadsExtraNorm", "Trainer"]

_PERIOD = 20  # iterations between progress lines


class AtomicCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, whose files are whole or absent whenever the process dies."""

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``name.pth`` under a temporary name first."""
        if not self.save_dir or not self.save_to_disk:
            return
        part = f".{name}.part"
        super().save(part, **kwargs)
        folder = Path(self.save_dir)
        os.replace(folder / f"{part}.pth", folder / f"{name}.pth")
        self.tag_last_checkpoint(f"{name}.pth")


class Trainer(DefaultTrainer):
    """Detectron2's trainer for the transfer protocol.

    Attributes:
        evaluation: the evaluators' output after the last iteration, by task, in %.
        costs: of this training, once it has run.
    """

    def __init__(self, cfg: Any, run: RunDirectory | None) -> None:
        self._run = run
        self.evaluation: dict[str, Any] = {}
        super().__init__(cfg)
        self.costs = _Costs(run)
        self.register_hooks([self.costs])

    @classmethod
    def build_model(cls, cfg: Any) -> torch.nn.Module:
        """Builds the detector (without printing all of it)."""
        model: torch.nn.Module = build_model(cfg)
        return model

    @classmethod
    def build_evaluator(cls, cfg: Any, dataset_name: str) -> DatasetEvaluator:
        """The evaluator of a data set's layout."""
        return build_evaluator(dataset_name, cfg.OUTPUT_DIR)

    def build_hooks(self) -> list[HookBase]:
        """Timing, schedule, precise BN, checkpoints, evaluation, progress; in this order.

        Precise BN comes before the checkpoint, which then holds the statistics evaluated.
        """
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0  # precise BN sees few batches
        built: list[HookBase] = [hooks.IterationTimer(), hooks.LRScheduler()]
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            loader = self.build_train_loader(cfg)
            iterations = cfg.TEST.PRECISE_BN.NUM_ITER
            built.append(hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, self.model, loader, iterations))
        # In place of the one that the base class made, before any hook holds on to that.
        self.checkpointer = AtomicCheckpointer(
            self.checkpointer.model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        if comm.is_main_process():
            period = cfg.SOLVER.CHECKPOINT_PERIOD
            built.append(hooks.PeriodicCheckpointer(self.checkpointer, period, max_to_keep=2))
        built.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate))
        if comm.is_main_process():
            built.append(hooks.PeriodicWriter(self.build_writers(), period=_PERIOD))
        return built

    def _evaluate(self) -> dict[str, Any]:
        self.evaluation = self.test(self.cfg, self.model) or {}
        # Figures that do not exist (a class without objects) have no place in the event storage.
        return {
            task: {k: v for k, v in figures.items() if v == v}
            for task, figures in self.evaluation.items()
        }


class _Costs(HookBase):
    """Writes ``metrics.jsonl`` and keeps account of time and memory."""

    def __init__(self, run: RunDirectory | None) -> None:
        self._run = run
        self.seconds = 0.0
        self.iterations = 0
        self._began = 0.0

    def before_train(self) -> None:
        """Goes on with the account where an earlier session left it."""
        self.take_up()

    def take_up(self) -> None:
        """Reads the account of earlier sessions, up to the iteration that this one starts from."""
        rows = read_metrics(self._run.path) if self._run else []
        done = [r for r in rows if r.get("iteration", 0) <= self.trainer.start_iter]
        if done:
            self.seconds = float(done[-1]["train_seconds"])
            self.iterations = int(done[-1]["iteration"])

    def before_step(self) -> None:
        """Starts the clock."""
        self._began = time.perf_counter()

    def after_step(self) -> None:
        """Stops the clock, and writes a line every few iterations."""
        self.seconds += time.perf_counter() - self._began
        self.iterations += 1
        iteration = self.trainer.iter + 1
        if self._run is None or (iteration % _PERIOD and iteration != self.trainer.max_iter):
            return
        latest = {k: v for k, (v, _) in self.trainer.storage.latest().items()}
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
        """Over the whole training, evaluation left out."""
        images = self.iterations * self.trainer.cfg.SOLVER.IMS_PER_BATCH
        return images / max(1e-9, self.seconds)

    def peak_memory_mb(self) -> float:
        """Of the GPU, or of this process on a CPU."""
        if torch.cuda.is_available() and self.trainer.cfg.MODEL.DEVICE != "cpu":
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
