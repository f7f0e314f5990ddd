"""One finished run, as used by tables: metrics, protocol and initialization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from intl_transfer.runs.changes import changed_midway, ranks_of
from intl_transfer.runs.private import portable
from intl_transfer.runs.records import DetectionResults, EvaluationResults, Labels, Manifest
from intl_transfer.runs.settings import CHANGED, below, deciding, flatten

# Metrics in the order of the literature.
METRICS = ("AP50", "AP", "AP75")
#: Tasks in that order; others follow by name.
TASKS = ("box", "mask", "voc")
#: Spellings of ImageNet's name, the first of them standard.
IMAGENET = ("imagenet", "imagenet1k", "imagenet-1k")


@dataclass(frozen=True)
class Start:
    """The initialization of a run.

    Attributes:
        kind: ``pretrained``, ``supervised``, ``random``, or external.
        method: the pretraining method.
        detail: the pretraining's configuration, epochs and data.
        settings: deciding settings, by dotted key.
        key: equal for runs whose initializations are the same experiment.
        label: the user's name for it.
        word: name of its file or run.
        unit: the pretraining among repetitions; None if each run is one.
        unit_seed: of that pretraining, if known.
        unit_ended: when it ended, if its run is known.
        notes: footnotes for its row.
        control: for a control (:mod:`intl_transfer.runs.controls`), the factor removed.
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
    unit_ended: str | None = None
    notes: tuple[str, ...] = ()
    control: str = ""


class Repeated(Protocol):
    """What may repeat another: a run, or a pretraining alone."""

    @property
    def path(self) -> Path:
        """Its directory."""

    @property
    def manifest(self) -> Manifest:
        """Its manifest."""

    @property
    def start(self) -> Start:
        """Its initialization; of a pretraining, the one that it makes."""


@dataclass(frozen=True)
class Run:
    """One finished detection run, or evaluation of frozen or fine-tuned classification.

    Attributes:
        path: its directory.
        manifest: its manifest.
        results: its results.
        start: its initialization.
        parent: directory of its pretraining run, if found.
        parent_known: whether its weights state a pretraining run of this project.
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
        """The key on which detection runs must agree to share a table."""
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
            # Further facts of the schedule, such as scaling to another batch size, and the labels
            # used.
            ", ".join(
                [
                    *(f"{key} {value}" for key, value in sorted(further.items())),
                    *([] if labels is None else [_labels(labels)]),
                ]
            ),
        )

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """Deciding settings and data other than the initialization's, by dotted key."""
        results, stage = self.results, self.manifest.stage
        found = portable(deciding(stage, self.manifest.config)) | changed_midway(self.manifest)
        if not self.manifest.config and isinstance(results, EvaluationResults):
            found |= {f"protocol.{key}": value for key, value in results.protocol.items()}
        if any(key.startswith("pixels.") for key in self.start.settings):
            # What normalized the images is known, whatever else was configured.
            found = {k: v for k, v in found.items() if not k.startswith("data.normalize")}
        found |= told_apart(found, self.manifest.id or str(self.path))
        found |= portable(flatten(results.settings) | _further(results))
        tested = found.get("DATASETS.TEST")
        if isinstance(tested, (list, tuple)) and results.dataset.name in tested:
            found["DATASETS.TEST"] = [
                results.dataset.name
            ]  # further sets do not decide its metrics
        if isinstance(found.get("data.name"), str):
            found["data.name"] = set_name(found["data.name"])
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
        if results.evaluator is not None:
            found |= below("evaluator", results.evaluator.as_json())
        norm = found.get("MODEL.RESNETS.NORM")
        if norm == "BN" and (ranks := ranks_of(self.manifest)) is not None:
            found["batch_norm.processes"] = ranks  # statistics per process
        return {**found, "schema": results.schema_version}

    @property
    def seed(self) -> int | None:
        """The seed of the run itself, not of its pretraining; None if nobody stated it."""
        return self.results.known_seed

    @property
    def is_tested_on_training_images(self) -> bool:
        """Whether the test images are training images, by name or content."""
        images, dataset = self.manifest.dataset, self.results.dataset
        # Detection names its sets; evaluations and pretraining's k-NN have one of each.
        on_the_way = "knn_" if self.manifest.stage == "pretrain" else ""
        trained = {*dataset.train, f"{on_the_way}train"}
        tested = {dataset.name, f"{on_the_way}test"}
        known = [{images[n].digest for n in names & images.keys()} for names in (trained, tested)]
        return not trained.isdisjoint(tested) or bool(set.intersection(*known) - {None})

    @property
    def tasks(self) -> list[str]:
        """Its tasks, one column group each."""
        return list(self.results.metrics)

    def metric(self, task: str, metric: str) -> float | None:
        """One metric in %, or None."""
        values: Any = self.results.metrics.get(task)
        value = values.get(metric) if isinstance(values, Mapping) else None
        return None if value is None else float(value)


def _further(results: DetectionResults | EvaluationResults) -> dict[str, Any]:
    """Fields that no record knows, such as a network's width: what is not known decides."""
    found = flatten(results.model_extra or {})
    for name, part in (("dataset", results.dataset), ("architecture", results.architecture)):
        found |= below(name, part.model_extra or {})
    return found


def set_name(name: str) -> str:
    """The name of a data set of classification, in one spelling."""
    return IMAGENET[0] if name.lower() in IMAGENET else name


def told_apart(settings: Mapping[str, Any], run: str) -> dict[str, Any]:
    """What separates a run with a setting changed midway from others with the same change.

    No record says at which step it was changed, so two such runs may be different experiments.

    Args:
        settings: of the run, by dotted key.
        run: its id.
    """
    return {CHANGED + "run": run} if any(key.startswith(CHANGED) for key in settings) else {}


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


def pretrainings_of(runs: Sequence[Run]) -> set[str]:
    """The pretrainings of some runs, if there are several; otherwise none."""
    units = {run.start.unit for run in runs if run.start.unit is not None}
    return units if len(units) > 1 else set()
