"""Kinds of evaluation in a benchmark. To add one, extend ``KINDS``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from omegaconf import MISSING

from intl_transfer.data.loaders import rank_batch_size
from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.evaluation.command import configuration
from intl_transfer.evaluation.config import EvaluationConfig
from intl_transfer.runs.changes import as_begun
from intl_transfer.runs.controls import ControlConfig
from intl_transfer.runs.given import WORDS
from slurm import launch_detection
from slurm.configs import config_of_job
from slurm.executors import with_sources
from slurm.ledger import Job
from slurm.made import WEIGHTS, job_settings
from slurm.module import command as of_module
from slurm.plan import OF_PLAN, refuse_own
from slurm.resources import Resources, fitting, tasks_per_node


@dataclass
class Evaluation:
    """One evaluation of every initialization.

    Attributes:
        kind: one of ``KINDS``.
        config: its configuration: a name in ``configs/detection/`` or, for ``classification``, in
            ``configs/evaluation/``.
        overrides: for ``detection`` ``KEY VALUE`` pairs, for example ``[SOLVER.MAX_ITER 1000]``;
            for ``classification`` ``key=value``.
        seeds: one run per seed.
        learning_rates: one run per learning rate; empty for the configuration's.
        resources: fields of ``Resources`` for its jobs.
    """

    kind: str = "detection"
    config: str = MISSING
    overrides: list[str] = field(default_factory=list, metadata=WORDS)
    seeds: list[int] = field(default_factory=lambda: [0])
    learning_rates: list[float] = field(default_factory=list)
    resources: dict[str, Any] = field(default_factory=dict)


class Kind(Protocol):
    """Interface of a kind of evaluation."""

    #: Name of the stage and of its runs' parent folder.
    stage: str

    def check(self, evaluation: Evaluation, where: str) -> None:
        """Raises UserError, beginning with ``where``, for an invalid evaluation."""

    def resources(self, requested: Resources) -> Resources:
        """Resources of its jobs, from those with one task per GPU."""

    def control(self, control: ControlConfig) -> list[str]:
        """The overrides that turn an evaluation into a control."""

    def job(
        self,
        evaluation: Evaluation,
        weights: str,
        seed: int,
        rate: float | None,
        folder: Path,
        requested: Resources,
        code: Path,
        title: str,
    ) -> Job:
        """The job of one run, from converted weights or ``random``."""


def _active(control: ControlConfig) -> dict[str, Any]:
    """The fields of a control that are set."""
    found = {
        field.name: getattr(control, field.name) for field in dataclasses.fields(ControlConfig)
    }
    return {key: value for key, value in found.items() if value}


class Detection:
    """Fine-tuning by `detection/train_net.py`."""

    stage = "detection"

    def check(self, evaluation: Evaluation, where: str) -> None:
        """Reads the configuration with its overrides."""
        try:
            launch_detection.check(evaluation.config, pairs(evaluation.overrides))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None

    def resources(self, requested: Resources) -> Resources:
        """One task per node."""
        return launch_detection.one_task_per_node(requested)

    def control(self, control: ControlConfig) -> list[str]:
        """``CONTROL.*``."""
        return [f"CONTROL.{key.upper()} {value}" for key, value in _active(control).items()]

    def job(
        self,
        evaluation: Evaluation,
        weights: str,
        seed: int,
        rate: float | None,
        folder: Path,
        requested: Resources,
        code: Path,
        title: str,
    ) -> Job:
        """The job of one fine-tuning."""
        opts = pairs(evaluation.overrides)
        if rate is not None:
            opts += ["--lr", rate_text(rate)]  # absolute, also if the batch size is scaled
        config = evaluation.config
        return launch_detection.fine_tuning(
            config, weights, seed, opts, folder, requested, code, title
        )


@cache
def _read(name: str, *overrides: str) -> EvaluationConfig:
    """An evaluation's configuration, cached for all its jobs."""
    return configuration(name, list(overrides))


class Classification:
    """Linear evaluation, few labels or nearest neighbors, by `intl-transfer evaluate`."""

    stage = "evaluation"

    def check(self, evaluation: Evaluation, where: str) -> None:
        """Reads the configuration with its overrides."""
        try:
            refuse_own(evaluation.overrides, OF_PLAN, "overrides")
            config = _read(evaluation.config, *evaluation.overrides)
            if evaluation.learning_rates and config.kind == "knn":
                raise UserError("learning_rates: k nearest neighbors has none")
        except UserError as error:
            raise UserError(f"{where}: {error}") from None

    def resources(self, requested: Resources) -> Resources:
        """One task per GPU."""
        return requested

    def control(self, control: ControlConfig) -> list[str]:
        """``control.*``."""
        return [f"control.{key}={value}" for key, value in _active(control).items()]

    def job(
        self,
        evaluation: Evaluation,
        weights: str,
        seed: int,
        rate: float | None,
        folder: Path,
        requested: Resources,
        code: Path,
        title: str,
    ) -> Job:
        """The job of one evaluation."""
        config = evaluation.config
        settings = _read(config, *evaluation.overrides)
        if begun := as_begun(folder, "evaluation"):
            settings = configuration(config, evaluation.overrides, begun)
        if settings.kind != "knn":
            rank_batch_size(settings.optim.batch_size, requested.nodes * tasks_per_node(requested))
        decided = {**job_settings("evaluation", dataclasses.asdict(settings)), "seed": seed}
        if rate is not None:
            decided["optim.lr"] = rate
        overrides = [*evaluation.overrides, f"seed={seed}"]
        if rate is not None:
            overrides.append(f"optim.lr={rate_text(rate)}")
        command = [*of_module(code, "intl_transfer"), "evaluate"]
        command += ["--weights", weights, "--config", config_of_job(code, "evaluation", config)]
        command += ["--output-dir", str(folder)]
        command += [
            *fitting(settings.data.workers, "data.workers", overrides, requested),
            *overrides,
        ]
        environment = with_sources(requested.environment, code)
        return Job(
            key=f"evaluation/{folder.name}",
            stage=self.stage,
            target=str(folder),
            command=command,
            resources=dataclasses.asdict(dataclasses.replace(requested, environment=environment)),
            folder=str(Path.cwd()),
            settings={**decided, WEIGHTS: weights},
            title=title,
        )


KINDS: dict[str, Kind] = {"detection": Detection(), "classification": Classification()}


def kind_of(evaluation: Evaluation, where: str) -> Kind:
    """The kind of an evaluation.

    Raises:
        UserError: if it is unknown.
    """
    if evaluation.kind not in KINDS:
        hint = did_you_mean(evaluation.kind, KINDS)
        raise UserError(f"{where}: no kind '{evaluation.kind}'; expected {', '.join(KINDS)}.{hint}")
    return KINDS[evaluation.kind]


def rate_text(rate: float) -> str:
    """A learning rate in as few digits as state it exactly."""
    return f"{rate:g}" if float(f"{rate:g}") == rate else repr(rate)


def pairs(overrides: list[str]) -> list[str]:
    """``["KEY VALUE", ...]`` or ``["KEY", "VALUE", ...]`` as separate arguments."""
    found: list[str] = []
    for item in overrides:
        found += item.split(maxsplit=1) if " " in item and item.split()[0].isupper() else [item]
    return found
