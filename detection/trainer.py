"""The fine-tuning loop: Detectron2's trainer with a run directory."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from fvcore.nn.precise_bn import get_bn_modules

from detection.config import as_dict
from detection.detector import statement
from detection.evaluators import build_evaluator, summarize
from detection.hooks import (
    PERIOD,
    Checkpoints,
    Costs,
    Evaluation,
    LRScheduler,
    PreciseStatistics,
    Seeds,
    moving_averages,
    set_moving_averages,
)
from detection.images import TestImages
from detection.roi_heads import Res5ROIHeadsExtraNorm
from detection.stream import TrainingStream, build_stream
from detection.weights import read_weights
from detection.writers import writers
from intl_transfer.optim import load_optimizer
from intl_transfer.runs import RunDirectory, write_atomically
from intl_transfer.runs.architectures import architecture
from intl_transfer.runs.finite import require_finite
from intl_transfer.runs.records import Detector, ImageSet, Initialization
from intl_transfer.runs.stopping import StopRequest

#: Advice for non-finite training.
ADVICE = (
    "Use a lower learning rate (--lr), a longer warm-up (SOLVER.WARMUP_ITERS) or clip gradients "
    "(SOLVER.CLIP_GRADIENTS.ENABLED True); --allow-config-change continues from the "
    "last checkpoint"
)

# The box head is named so that importing the trainer registers it with Detectron2.
__all__ = ["AtomicCheckpointer", "Res5ROIHeadsExtraNorm", "Trainer"]


class AtomicCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with atomic writes and plain values only.

    Attributes:
        statement: metadata of each file.
    """

    statement: Mapping[str, Any] = MappingProxyType({})

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``name.pth`` atomically.

        Raises:
            StateNotFiniteError: if it contains NaN or infinity; nothing is written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        content = {key: value.state_dict() for key, value in self.checkpointables.items()}
        content = {"model": self.model.state_dict(), **content, **kwargs, **self.statement}
        path = Path(self.save_dir) / f"{name}.pth"
        require_finite(content, f"{path} was not written", f". {ADVICE}")
        write_atomically(path, lambda file: torch.save(content, file))
        self.tag_last_checkpoint(path.name)

    def _load_file(self, filename: str) -> dict[str, Any]:
        return read_weights(filename)


class Trainer(DefaultTrainer):
    """Detectron2's trainer for the transfer protocol.

    Args:
        cfg: the configuration.
        run: the run directory, on global rank 0.
        stop: checked after every iteration.
        start: the initialization.
        images: content of its data sets, by name.

    Attributes:
        evaluation: the evaluators' output after the last iteration, by task, in %.
        saved: whether the last due checkpoint was written.
        costs: of this training, afterwards.
    """

    # Set by the base class without types.
    cfg: Any
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    data_loader: TrainingStream
    checkpointer: AtomicCheckpointer

    def __init__(
        self,
        cfg: Any,
        run: RunDirectory | None,
        stop: StopRequest,
        start: Initialization | None = None,
        images: Mapping[str, ImageSet] | None = None,
    ) -> None:
        self._run, self._stop = run, stop
        self.evaluation: dict[str, Any] = {}
        self.saved = True
        self.costs = Costs(run)
        super().__init__(cfg)  # type: ignore[no-untyped-call]  # Detectron2's
        # Replaces the base class's.
        self.checkpointer = AtomicCheckpointer(
            self.model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        config, sets = as_dict(cfg), images or {}
        record = Detector(
            config=config,
            # In the order of the training records.
            classes=list(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes),
            architecture=architecture(config),
            initialization=start or Initialization(),
            train=list(cfg.DATASETS.TRAIN),
            dataset={name: sets[name] for name in cfg.DATASETS.TRAIN if name in sets},
            seed=cfg.SEED,
            run=None if run is None else run.manifest.id,
        )
        self.checkpointer.statement = statement(record)

    @classmethod
    def build_model(cls, cfg: Any) -> torch.nn.Module:
        """Builds the detector (without printing it)."""
        model: torch.nn.Module = build_model(cfg)
        return model

    @classmethod
    def build_train_loader(cls, cfg: Any) -> TrainingStream:
        """Training images in a resumable order."""
        return build_stream(cfg)

    @classmethod
    def build_test_loader(cls, cfg: Any, dataset_name: str) -> TestImages:
        """Test images, read as in training."""
        return TestImages(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: Any, dataset_name: str) -> DatasetEvaluator:
        """The evaluator of a data set's layout."""
        return build_evaluator(dataset_name, cfg.OUTPUT_DIR)

    @classmethod
    def test(cls, cfg: Any, model: torch.nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """Evaluates a model; with ``TEST.AUG.ENABLED``, over sizes and flips of each image."""
        if cfg.TEST.AUG.ENABLED:
            model = GeneralizedRCNNWithTTA(cfg, model)
        test = super().test
        # Detectron2's.
        found: dict[str, Any] = test(cfg, model, evaluators)  # type: ignore[no-untyped-call]
        return found

    def build_hooks(self) -> list[HookBase]:
        """Schedule, costs, precise BN, checkpoints, evaluation, progress; in this order.

        Precise BN comes before the checkpoint, which then contains the evaluated statistics, and
        the checkpoint before the evaluation, which may be interrupted.
        """
        cfg = self.cfg
        period = cfg.TEST.EVAL_PERIOD
        built: list[HookBase] = [
            hooks.IterationTimer(),
            Seeds(cfg.SEED),
            LRScheduler(),
            self.costs,
        ]
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            stream = self.data_loader.for_statistics()
            built.append(PreciseStatistics(stream, cfg.TEST.PRECISE_BN.NUM_ITER, period))
        built.append(Checkpoints(self._stop, cfg.SOLVER.CHECKPOINT_PERIOD, period, self._run))
        built.append(Evaluation(self._stop, period))
        if comm.is_main_process():
            built.append(hooks.PeriodicWriter(self.build_writers(), period=PERIOD))
        return built

    def build_writers(self) -> list[EventWriter]:
        """Detectron2's, none of which ends the run."""
        return writers(Path(self.cfg.OUTPUT_DIR), self.max_iter)

    def load(self, checkpoint: Path | None) -> None:
        """Resumes from a checkpoint of this run, or loads ``MODEL.WEIGHTS``."""
        if checkpoint is None:
            self.checkpointer.load(self.cfg.MODEL.WEIGHTS, checkpointables=[])
        else:
            self.checkpointer.load(str(checkpoint))
            self.start_iter = self.iter + 1  # it stores the last completed iteration

    def train(self) -> None:  # type: ignore[override]  # as DefaultTrainer's
        """Trains from ``start_iter`` on, with the same images as an uninterrupted run."""
        self.data_loader.start = self.start_iter
        TrainerBase.train(self, self.start_iter, self.max_iter)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: iteration, hooks, optimizer, scaler, moving averages of the model.

        Detectron2 v0.6 saves only the first two, and resumes without momentum.
        """
        state: dict[str, Any] = TrainerBase.state_dict(self)
        state |= {name: part.state_dict() for name, part in self._parts().items()}
        kept = moving_averages(self.model)
        return {**state, **({"moving_averages": kept} if kept else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned, under this session's settings."""
        TrainerBase.load_state_dict(self, state_dict)  # the hook of the rates among it
        for name, part in self._parts().items():
            if name == "optimizer":
                load_optimizer(part, state_dict[name])
            else:
                part.load_state_dict(state_dict[name])
        set_moving_averages(self.model, state_dict.get("moving_averages", {}))

    def _parts(self) -> dict[str, Any]:
        scaler = getattr(self._trainer, "grad_scaler", None)  # with SOLVER.AMP
        return {"optimizer": self.optimizer, **({"grad_scaler": scaler} if scaler else {})}

    def evaluate(self, iteration: int) -> None:
        """Evaluates the current weights, and logs the metrics for an iteration."""
        self.evaluation = self.test(self.cfg, self.model) or {}
        if self._run is not None:
            metrics = summarize(self.evaluation, self.cfg.DATASETS.TEST[0])
            short = {
                task: {key: values[key] for key in ("AP", "AP50", "AP75")}
                for task, values in metrics.items()
            }
            self._run.log(iteration=iteration, evaluation=short)
            if self.start_iter < self.max_iter:  # otherwise nothing was trained
                self._to_storage(short)
        comm.synchronize()  # ranks start the next iteration together

    def _to_storage(self, metrics: dict[str, Any]) -> None:
        """Logs metrics to TensorBoard, except undefined ones."""
        for task, values in metrics.items():
            for key, value in values.items():
                if value is not None:
                    self.storage.put_scalar(f"{task}/{key}", value, smoothing_hint=False)
