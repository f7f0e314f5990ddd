"""One finished run as tables see it: what it measured, by which protocol, from which start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from intl_transfer.runs.changes import changed_midway
from intl_transfer.runs.records import DetectionResults, EvaluationResults, Labels, Manifest
from intl_transfer.runs.settings import below, deciding, flatten

# Figures in the order in which the literature prints them.
METRICS = ("AP50", "AP", "AP75")
#: Tasks in that order; others follow by name.
TASKS = ("box", "mask", "voc")


@dataclass(frozen=True)
class Start:
    """What a run began from.

    Attributes:
        kind: ``pretrained``, ``supervised``, ``random``, or of others' folders.
        method: the pretraining method.
        detail: the pretraining's configuration, epochs and data.
        settings: what decided it, by dotted key.
        key: the same for runs whose starts are one experiment.
        label: a word of the user's own for it.
        word: what its file or run is called.
        unit: the pretraining among repetitions; None where each run is its own.
        unit_seed: of that pretraining, where known.
        notes: footnotes that its row needs.
        control: what was taken from the run, of a control (:mod:`intl_transfer.runs.controls`).
    """

    kind: str
    method: str
    detail: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    label: str | None = None
    word: str = ""
    unit: str | None = None
    unit_seed: int | None = None
    notes: tuple[str, ...] = ()
    control: str = ""


@dataclass(frozen=True)
class Run:
    """One finished detection run, or evaluation of frozen or fine-tuned classification.

    Attributes:
        path: its directory.
        manifest: its manifest.
        results: its results.
        start: what it began from.
        parent: directory of the pretraining run behind it, if that was found.
        parent_known: whether its weights name a pretraining run of this project.
        external: True for what was not written by this project.
    """

    path: Path
    manifest: Manifest
    results: DetectionResults | EvaluationResults
    start: Start = field(default_factory=lambda: Start("pretrained", "unknown"))
    parent: Path | None = None
    parent_known: bool = False
    external: bool = False

    @property
    def comparable(self) -> tuple[str, ...]:
        """What the results of two detection runs must share to stand in one table."""
        assert isinstance(self.results, DetectionResults)
        built, plan = self.results.architecture, self.results.schedule
        known = ("name", "iterations", "batch_size", "base_lr")
        further = {k: v for k, v in plan.as_json().items() if k not in known and v}
        labels = self.results.dataset.labels
        lr = plan.base_lr
        return (
            self.results.dataset.name,
            f"{built.meta} {built.backbone}-{built.head}".strip(" -"),
            plan.name,
            _text(plan.iterations),
            _text(plan.batch_size),
            "" if lr is None else f"{lr:g}",
            # What a schedule says beyond that, such as having been scaled to another batch; and
            # the images whose labels were used.
            ", ".join(
                [
                    *(f"{key} {value}" for key, value in sorted(further.items())),
                    *([] if labels is None else [_labels(labels)]),
                ]
            ),
        )

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """What decided the result beside the start, by dotted key: settings and data."""
        results, stage = self.results, self.manifest.stage
        found = deciding(stage, self.manifest.config) | changed_midway(self.manifest)
        if not self.manifest.config and isinstance(results, EvaluationResults):
            found |= {f"protocol.{key}": value for key, value in results.protocol.items()}
        found |= flatten(results.settings)
        facts: dict[str, Any] = {
            name: images.as_json() for name, images in self.manifest.dataset.items()
        }
        if results.dataset.images is not None:
            facts["images"] = results.dataset.images
        if results.dataset.labels is not None:
            facts["labels"] = results.dataset.labels.as_json()
        if results.dataset.train:
            facts["names"] = list(results.dataset.train)
        found |= below("dataset", facts)
        evaluator = getattr(results, "evaluator", None)
        if evaluator is not None:
            found |= below("evaluator", evaluator.as_json())
        norm = found.get("MODEL.RESNETS.NORM")
        if norm == "BN" and self.manifest.sessions:  # statistics of each process's images
            found["batch_norm.processes"] = self.manifest.sessions[-1].world_size
        return {**found, "schema": results.schema_version}

    @property
    def seed(self) -> int:
        """Of the run itself, not of the pretraining behind it."""
        return self.results.seed

    @property
    def tasks(self) -> list[str]:
        """What it measured, a group of columns each."""
        return list(self.results.metrics)

    def figure(self, task: str, metric: str) -> float | None:
        """One figure in %, or None."""
        values: Any = self.results.metrics.get(task)
        value = values.get(metric) if isinstance(values, Mapping) else None
        return None if value is None else float(value)


def _labels(used: Labels) -> str:
    """``10 % of the labels (11,829 of 118,287 images, seed 0, list 1a2b3c4d)``."""
    share = "" if used.fraction is None else f"{100 * used.fraction:g} % of the labels"
    counts = [
        _text(count) if count is None else f"{count:,}" for count in (used.images, used.available)
    ]
    facts = [
        f"{' of '.join(text for text in counts if text)} images" if any(counts) else "",
        "" if used.seed is None else f"seed {used.seed}",
        f"list {used.digest[:8]}" if used.digest else "",
    ]
    return f"{share or 'labels of a list'} ({', '.join(fact for fact in facts if fact)})"


def _text(value: Any) -> str:
    return "" if value is None else str(value)
