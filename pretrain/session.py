"""Checkpoints, the run directory, and a backbone's record of its run."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intl_transfer.errors import UserError
from intl_transfer.optim import load_optimizer
from intl_transfer.runs import RunDirectory
from intl_transfer.runs.changes import Continuation, ranks_of, run_described
from intl_transfer.runs.checkpoint import (
    list_checkpoints,
    resume,
    save_checkpoint,
    try_to_save,
)
from intl_transfer.runs.distributed import Ranks
from intl_transfer.runs.finite import first_nonfinite
from intl_transfer.runs.progress import Progress
from intl_transfer.runs.records import ImageSet
from intl_transfer.runs.wording import method_title
from pretrain.config import PretrainConfig
from pretrain.learner import Learner


class State:
    """The complete state of a checkpoint, so that a resumed run equals an uninterrupted one.

    Attributes:
        run: the run directory, on rank 0 once it is open.
        last: metrics of the results, carried over between sessions.
    """

    def __init__(
        self, learner: Learner, config: PretrainConfig, name: str, steps_per_epoch: int
    ) -> None:
        self.encoder, self.target = learner.encoder, learner.target
        self.optimizer, self.scaler = learner.optimizer, learner.scaler
        self.config, self.name = config, name
        self.run: RunDirectory | None = None
        self.last: dict[str, float] = {}
        self._steps_per_epoch = steps_per_epoch
        self.seconds = 0.0  # of training in earlier sessions

    def _trained(self) -> dict[str, Any]:
        """The state of training."""
        return {
            "model": self.encoder.state_dict(),
            "target": self.target.encoder.state_dict() if self.target else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def not_finite(self, ranks: Ranks) -> str | None:
        """The first non-finite part of the state on any rank; the same answer on all."""
        found = ranks.gather_objects(first_nonfinite(self._trained()))
        return next((name for name in found if name is not None), None)

    def save(self, folder: Path, step: int, progress: Progress, ranks: Ranks) -> bool:
        """Writes a checkpoint from global rank 0; every rank contributes its random state.

        On failure (a full disk), the run continues without it.

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
                "epoch": step / self._steps_per_epoch,
                "seconds": self.seconds + progress.elapsed(),
                "last": self.last,
            },
            "rng": rng,
            "config": dataclasses.asdict(self.config),
            "run": describe(run, self.config),
            "manifest": run.manifest.as_json(),
        }
        keep = self.config.engine.keep_checkpoints
        save = partial(save_checkpoint, folder, step, state, keep, self.is_milestone)
        return try_to_save(run, save, lambda: list_checkpoints(folder))

    def is_milestone(self, step: int) -> bool:
        """Whether the checkpoint of a step is kept permanently."""
        every = self.config.engine.milestone_epochs
        return every is not None and step % (every * self._steps_per_epoch) == 0

    def resume(self, folder: Path, ranks: Ranks, earlier: Continuation) -> int:
        """Resumes from the newest usable checkpoint; returns the number of steps done."""
        return resume(folder, lambda state: self._load(state, ranks), ranks, earlier.admit) or 0

    def _load(self, state: dict[str, Any], ranks: Ranks) -> int:
        """Loads a checkpoint's content; returns its number of steps."""
        self.encoder.load_state_dict(state["model"])
        if self.target is not None:
            if state["target"] is None:
                method = self.config.loss.method
                raise UserError(f"it has no moving average, which loss.method={method} needs")
            self.target.encoder.load_state_dict(state["target"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        # With another number of ranks the random states do not match; views and order do not depend
        # on them.
        if len(state["rng"]) == ranks.world_size:
            restore_random_state(state["rng"][ranks.rank], ranks.device)
        self.seconds = float(state["progress"]["seconds"])
        self.last = dict(state["progress"].get("last", {}))
        return int(state["progress"]["step"])


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of this rank's random generators."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restores this rank's random generators."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def open_run(
    config: PretrainConfig,
    name: str,
    ranks: Ranks,
    earlier: Continuation,
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
        changes=earlier.changes,
        origin=earlier.origin,
    )


def describe(run: RunDirectory, config: PretrainConfig) -> dict[str, Any]:
    """What a backbone says of the run it comes from, its deciding settings among it.

    The epochs are those of the whole schedule; a checkpoint's progress states those done.
    """
    manifest, further = run.manifest, dict[str, Any]()
    if not config.model.sync_batchnorm:  # statistics of each rank's share of the batch
        further["batch_norm.ranks"] = ranks_of(manifest)
    facts = {"epochs": config.optim.epochs, "dataset": config.data.name}
    settings = dataclasses.asdict(config)
    return run_described(manifest, "pretrain", settings, further, method=manifest.method, **facts)
