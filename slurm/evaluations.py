"""Kinds of evaluation that a benchmark can name. Another kind is one more entry of ``KINDS``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from omegaconf import MISSING

from intl_transfer.errors import UserError, did_you_mean
from slurm import launch_detection
from slurm.ledger import Node
from slurm.resources import Resources

RANDOM = launch_detection.RANDOM


@dataclass
class Evaluation:
    """One evaluation of every initialisation.

    Attributes:
        kind: one of ``KINDS``.
        config: its configuration, for ``detection`` a name in ``configs/detection/``.
        overrides: ``KEY VALUE`` pairs, for example ``[SOLVER.MAX_ITER 1000]``.
        seeds: one run each.
        learning_rates: one run each; empty takes the configuration's.
        resources: fields of ``Resources`` that its jobs need.
    """

    kind: str = "detection"
    config: str = MISSING
    overrides: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    learning_rates: list[float] = field(default_factory=list)
    resources: dict[str, Any] = field(default_factory=dict)


class Kind(Protocol):
    """What a kind of evaluation has to know."""

    #: Name of the stage, and of the folder of its runs.
    stage: str

    def check(self, evaluation: Evaluation, where: str) -> None:
        """Raises UserError, beginning with ``where``, for what cannot be."""

    def resources(self, wanted: Resources) -> Resources:
        """What its jobs ask for, given what one process a GPU would."""

    def node(
        self,
        evaluation: Evaluation,
        weights: str,
        seed: int,
        rate: float | None,
        folder: Path,
        wanted: Resources,
        code: Path,
        title: str,
    ) -> Node:
        """The node of one run, from converted weights or ``random``."""


class Detection:
    """Fine-tuning by `detection/train_net.py`."""

    stage = "detection"

    def check(self, evaluation: Evaluation, where: str) -> None:
        """Reads the configuration with its overrides."""
        try:
            launch_detection.check(evaluation.config, pairs(evaluation.overrides))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None

    def resources(self, wanted: Resources) -> Resources:
        """One task a node."""
        return launch_detection.one_task_a_node(wanted)

    def node(
        self,
        evaluation: Evaluation,
        weights: str,
        seed: int,
        rate: float | None,
        folder: Path,
        wanted: Resources,
        code: Path,
        title: str,
    ) -> Node:
        """The node of one fine-tuning."""
        opts = pairs(evaluation.overrides)
        if rate is not None:
            opts += ["--lr", f"{rate:g}"]  # as it is, also where a batch is scaled
        config = evaluation.config
        return launch_detection.fine_tuning(
            config, weights, seed, opts, folder, wanted, code, title
        )


KINDS: dict[str, Kind] = {"detection": Detection()}


def kind_of(evaluation: Evaluation, where: str) -> Kind:
    """The kind that an evaluation names.

    Raises:
        UserError: if there is none of that name.
    """
    if evaluation.kind not in KINDS:
        hint = did_you_mean(evaluation.kind, KINDS)
        raise UserError(f"{where}: no kind '{evaluation.kind}'; expected {', '.join(KINDS)}.{hint}")
    return KINDS[evaluation.kind]


def pairs(overrides: list[str]) -> list[str]:
    """``["KEY VALUE", ...]`` or ``["KEY", "VALUE", ...]`` as single words."""
    words: list[str] = []
    for item in overrides:
        words += item.split(maxsplit=1) if " " in item and item.split()[0].isupper() else [item]
    return words
