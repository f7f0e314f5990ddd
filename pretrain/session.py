"""What surrounds the loop: checks, checkpoints, the run directory, the exported backbone."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intl_transfer.data.statistics import statistics_of
from intl_transfer.data.views import build_views
from intl_transfer.errors import UserError
from intl_transfer.models import PRECISIONS, STEMS
from intl_transfer.runs import RunDirectory
from intl_transfer.runs.changes import changed_midway
from intl_transfer.runs.checkpoint import (
    CheckpointNotWrittenError,
    list_checkpoints,
    resume,
    save_checkpoint,
)
from intl_transfer.runs.config import check_values
from intl_transfer.runs.distributed import Ranks
from intl_transfer.runs.finite import first_nonfinite
from intl_transfer.runs.private import portable
from intl_transfer.runs.progress import Progress
from intl_transfer.runs.records import ImageSet
from intl_transfer.runs.settings import Differences, below, deciding
from intl_transfer.runs.wording import METHODS, method_title
from intl_transfer.spectral import default_trace_weight
from pretrain.baselines import check_options
from pretrain.config import PretrainConfig
from pretrain.learner import Learner


class State:
    """All that a checkpoint holds, so that a resumed run is the uninterrupted one.

    Attributes:
        run: the run directory, on rank 0 once it is open.
        last: figures of the results that a session takes over from the one before.
    """

    def __init__(
        self, learner: Learner, config: PretrainConfig, name: str, steps_per_epoch: int
    ) -> None:
        self.encoder, self.target = learner.encoder, learner.target
        self.optimiser, self.scaler = learner.optimiser, learner.scaler
        self.config, self.name = config, name
        self.run: RunDirectory | None = None
        self.last: dict[str, float] = {}
        self._steps_per_epoch = steps_per_epoch
        self.seconds = 0.0  # of training in earlier sessions

    def _trained(self) -> dict[str, Any]:
        """What has been learned, and what learning needs to go on."""
        return {
            "model": self.encoder.state_dict(),
            "target": self.target.encoder.state_dict() if self.target else None,
            "optimizer": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def not_finite(self, ranks: Ranks) -> str | None:
        """What holds NaN or infinity on any rank; the same answer on all."""
        found = ranks.gather_objects(first_nonfinite(self._trained()))
        return next((name for name in found if name is not None), None)

    def save(self, folder: Path, step: int, progress: Progress, ranks: Ranks) -> bool:
        """Writes a checkpoint from global rank 0; every rank contributes its random state.

        Where that fails (a full disk), the run goes on with the checkpoints that it has.

        Returns:
            Whether it was written, the same on every rank.
        """
        rng = ranks.gather_objects(random_state(ranks.device))
        written = self.run is not None and self._write(self.run, folder, step, progress, rng)
        return bool(ranks.gather_objects(written)[0])

    def _write(
        self, run: RunDirectory, folder: Path, step: int, progress: Progress, rng: list[Any]
    ) -> bool:
        state = {
            **self._trained(),
            "progress": {
                "step": step,
                "seconds": self.seconds + progress.elapsed(),
                "last": self.last,
            },
            "rng": rng,
            "config": dataclasses.asdict(self.config),
            "run": describe(run, self.config, self.name),
        }
        try:
            keep = self.config.engine.keep_checkpoints
            save_checkpoint(folder, step, state, keep, self.is_milestone)
        except CheckpointNotWrittenError as error:
            older = list_checkpoints(folder)
            has = f"the newest is {older[0].name}" if older else "there is none yet"
            print(f"warning: {error}; the run goes on, {has}", file=sys.stderr, flush=True)
            run.save_failed(str(error))
            return False
        run.save_succeeded()
        return True

    def is_milestone(self, step: int) -> bool:
        """Whether the checkpoint of a step stays for good."""
        every = self.config.engine.milestone_epochs
        return every is not None and step % (every * self._steps_per_epoch) == 0

    def resume(self, folder: Path, ranks: Ranks) -> int:
        """Takes up the newest whole checkpoint; returns the number of steps already made."""
        return resume(folder, lambda state: self._load(state, ranks), ranks) or 0

    def _load(self, state: dict[str, Any], ranks: Ranks) -> int:
        """Takes up a checkpoint's content, all of it; returns its number of steps."""
        self.encoder.load_state_dict(state["model"])
        if self.target is not None:
            self.target.encoder.load_state_dict(state["target"])
        self.optimiser.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        # The random streams of a run on another number of ranks have no owner here; views and
        # order do not depend on them.
        if len(state["rng"]) == ranks.world_size:
            restore_random_state(state["rng"][ranks.rank], ranks.device)
        self.seconds = float(state["progress"]["seconds"])
        self.last = dict(state["progress"].get("last", {}))
        return int(state["progress"]["step"])


def random_state(device: torch.device) -> dict[str, Tensor]:
    """This rank's generators."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Sets this rank's generators."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def check(config: PretrainConfig) -> None:
    """Refuses values that no training could use, before anything is built."""
    loss, optim, engine = config.loss, config.optim, config.engine
    choices = {
        "loss.method": (loss.method, METHODS),
        "loss.axis": (loss.axis, ("channel", "batch")),
        "model.stem": (config.model.stem, STEMS),
        "engine.precision": (engine.precision, PRECISIONS),
        "optim.optimizer": (optim.optimizer, ("sgd", "lars")),
    }
    rules = {
        "optim.epochs": (optim.epochs, optim.epochs >= 1, "at least 1"),
        "optim.batch_size": (optim.batch_size, optim.batch_size >= 2, "at least 2"),
        "optim.base_lr": (optim.base_lr, 0 < optim.base_lr < float("inf"), "a positive number"),
        "optim.final_lr_factor": (optim.final_lr_factor, 0 <= optim.final_lr_factor <= 1, "0 to 1"),
        "optim.warmup_epochs": (optim.warmup_epochs, optim.warmup_epochs >= 0, "0 or more"),
        "optim.momentum": (optim.momentum, 0 <= optim.momentum < 1, "0 to below 1"),
        "optim.weight_decay": (optim.weight_decay, optim.weight_decay >= 0, "0 or more"),
        "optim.clip_norm": (
            optim.clip_norm,
            optim.clip_norm is None or optim.clip_norm > 0,
            "null or a positive number",
        ),
        "loss.iterations": (
            loss.iterations,
            loss.iterations >= 1,
            "at least 1 (0 only centres and scales; for that take loss.method=power "
            "loss.options.p=0)",
        ),
        "loss.ema_momentum": (loss.ema_momentum, 0 <= loss.ema_momentum <= 1, "0 to 1"),
        "data.workers": (config.data.workers, config.data.workers >= 0, "0 or more"),
        "data.max_unreadable": (
            config.data.max_unreadable,
            0 <= config.data.max_unreadable <= 1,
            "a share from 0 to 1",
        ),
        "log.steps": (config.log.steps, config.log.steps >= 1, "at least 1"),
        "log.diagnostics_steps": (
            config.log.diagnostics_steps,
            config.log.diagnostics_steps >= 0,
            "0 or more",
        ),
        "knn.epochs": (config.knn.epochs, config.knn.epochs >= 0, "0 or more"),
        "knn.k": (config.knn.k, config.knn.k >= 1, "at least 1"),
        "knn.crop_pct": (
            config.knn.crop_pct,
            0 < config.knn.crop_pct <= 1,
            "a share above 0, up to 1",
        ),
        **{
            f"engine.{key}": (
                getattr(engine, key),
                getattr(engine, key) is None or getattr(engine, key) >= 1,
                "at least 1",
            )
            for key in (
                "checkpoint_steps",
                "checkpoint_epochs",
                "keep_checkpoints",
                "milestone_epochs",
                "nonfinite_steps",
                "stop_after_steps",
                "threads",
            )
        },
    }
    check_values(choices, rules)
    if engine.recompute and engine.compile is not None:
        raise UserError(
            "engine.recompute and engine.compile exclude each other: torch.compile cannot trace "
            "the recomputation. Leave one of them out"
        )
    if engine.lockstep and engine.compile is not None:
        raise UserError(
            "engine.lockstep and engine.compile exclude each other: the compiler takes the network "
            "as a whole, one view after the other. Leave one of them out"
        )
    check_options(loss)
    if loss.method in ("intl", "intl_ema") and loss.trace_weight is None:
        try:
            axis: Any = loss.axis
            default_trace_weight(optim.batch_size, config.model.embedding, axis)
        except ValueError as error:
            raise UserError(f"loss.trace_weight is null: {error}") from None
    statistics_of(config.data.normalize)
    if len(config.views) < 2:
        raise UserError(f"views has {len(config.views)} entry; INTL needs at least two views")
    try:
        build_views(config.views)
    except ValueError as error:
        raise UserError(f"views: {error}") from None


def open_run(
    config: PretrainConfig,
    name: str,
    ranks: Ranks,
    changed: Differences,
    details: dict[str, Any],
    dataset: dict[str, ImageSet],
) -> RunDirectory:
    """Opens the run directory for a new session."""
    return RunDirectory.start(
        config.output_dir or "",
        stage="pretrain",
        name=f"{name} seed {config.seed}",
        config_name=name,
        config=dataclasses.asdict(config),
        seed=config.seed,
        method=method_title(dataclasses.asdict(config.loss)),
        world_size=ranks.world_size,
        details=details,
        dataset=dataset,
        changes=changed,
    )


def describe(run: RunDirectory, config: PretrainConfig, name: str) -> dict[str, Any]:
    """What a backbone says of the run it comes from, its deciding settings among it."""
    manifest = run.manifest
    settings = deciding("pretrain", dataclasses.asdict(config)) | changed_midway(manifest)
    facts = {"train": manifest.dataset["train"].as_json()} if "train" in manifest.dataset else {}
    if not config.model.sync_batchnorm:  # statistics of each rank's share of the batch
        settings["batch_norm.ranks"] = manifest.sessions[-1].world_size
    return {
        "id": manifest.id,
        "name": manifest.name,
        "config_name": name,
        "method": manifest.method,
        "epochs": config.optim.epochs,
        "dataset": config.data.name,
        "seed": config.seed,
        "settings": {**portable(settings), **below("dataset", facts)},
    }
