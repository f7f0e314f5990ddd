"""Published results, each with its source, from a data file."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from intl_transfer.files.yamls import parse_yaml
from intl_transfer.results.rows import Column, Metrics, Row
from intl_transfer.results.run import METRICS
from intl_transfer.results.statistics import Summary


@dataclass(frozen=True)
class PublishedRow:
    """One published row of a detection table.

    Attributes:
        method: its name.
        epochs: of pretraining.
        schedule: ``1x``, ``2x``, ``24k`` or ``unknown``.
        metrics: by (task, metric), in %.
        source: of the metrics.
        note: what to know when comparing, or "".
        norm: the batch norm in its authors' fine-tuning files, or "" if not stated.
    """

    method: str
    epochs: int
    schedule: str
    metrics: dict[tuple[str, str], Summary]
    source: str
    note: str = ""
    norm: str = ""


@functools.cache
def read_published() -> dict[str, Any]:
    """The content of the file of published results."""
    text = resources.files("intl_transfer.results").joinpath("published.yaml").read_text()
    content: dict[str, Any] = parse_yaml(text, "published.yaml")
    return content


def published_detection() -> list[PublishedRow]:
    """All published detection rows; unpublished metrics are missing."""
    rows = []
    for entry in read_published()["detection"]:
        metrics: dict[tuple[str, str], Summary] = {}
        for task in ("box", "mask", "voc"):
            spread = entry.get(f"{task}_std") or [None] * len(METRICS)
            for metric, value, std in zip(METRICS, entry.get(task) or [], spread, strict=False):
                if value is not None:
                    seeds = int(entry.get("n_seeds") or 0)
                    metrics[task, metric] = Summary(float(value), std, seeds)
        rows.append(
            PublishedRow(
                entry["method"],
                entry["pretrain_epochs"],
                entry["schedule"],
                metrics,
                entry["source"],
                entry.get("note", ""),
                entry.get("norm", ""),
            )
        )
    return rows


@dataclass(frozen=True)
class PublishedClassification:
    """A published row of a classification with a frozen or fine-tuned backbone.

    Attributes:
        method: its name.
        metrics: by (task, metric), in %.
        source: of the metrics.
        epochs: of pretraining; None if not stated, or if columns differ.
        batch_size: of pretraining; None if not stated.
        evaluation: the protocol, or "" if not stated.
        note: what to know when comparing, or "".
    """

    method: str
    metrics: dict[Column, float]
    source: str
    epochs: int | None = None
    batch_size: int | None = None
    evaluation: str = ""
    note: str = ""

    def row(self, *unstated: str) -> Row:
        """As a table row, with facts that its source does not state.

        Args:
            unstated: of ``epochs``, ``batch_size`` and ``evaluation``, those that the table's
                other rows state, or that would have to agree.
        """
        words = {
            "epochs": "epochs of pretraining",
            "batch_size": "batch size of pretraining",
            "evaluation": "protocol of the evaluation",
        }
        missing = [words[name] for name in unstated if not getattr(self, name)]
        return published_row(
            self.method,
            ", ".join(
                [
                    *([f"{self.epochs} ep"] if self.epochs else []),
                    *([f"batch {self.batch_size}"] if self.batch_size else []),
                ]
            ),
            {key: Summary(value, None, 0) for key, value in self.metrics.items()},
            self.source,
            (self.evaluation, self.note),
            (*missing, "number of runs"),
        )


def published_row(
    method: str,
    detail: str,
    metrics: Metrics,
    source: str,
    notes: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> Row:
    """A table row with published metrics.

    Args:
        method: its name.
        detail: of its pretraining.
        metrics: by (task, metric).
        source: of the metrics.
        notes: what to know when comparing; "" is ignored.
        missing: facts that the source does not state.
    """
    footnotes = [f"published: {source}", *(note for note in notes if note)]
    if missing:
        footnotes.append(f"not stated here: {', '.join(missing)}")
    n = max((value.n for value in metrics.values()), default=0)
    return Row(
        method, detail, metrics, n, True, tuple(footnotes), source=source, cite=key_of(source)
    )


def key_of(source: str) -> str:
    """The key of a source in ``published.bib``; "" if it has none."""
    keys: dict[str, str] = read_published()["citations"]
    return next((key for start, key in keys.items() if source.startswith(start)), "")


def bibliography() -> str:
    """The content of ``published.bib``."""
    return resources.files("intl_transfer.results").joinpath("published.bib").read_text()


def published_linear() -> list[PublishedClassification]:
    """All published rows of linear evaluation on ImageNet, one column per number of epochs."""
    return [
        PublishedClassification(
            entry["method"],
            {("linear", f"{e} ep"): float(v) for e, v in entry["epochs"].items() if v is not None},
            entry["source"],
            batch_size=entry.get("batch_size"),
        )
        for entry in read_published()["imagenet_linear_top1"]
    ]


def published_small() -> list[PublishedClassification]:
    """Published results on small data sets with ResNet-18.

    One row per method, source, number of epochs and evaluation.
    """
    rows: dict[tuple[Any, ...], PublishedClassification] = {}
    for entry in read_published()["small_datasets"]:
        key = tuple(entry.get(k) for k in ("method", "source", "epochs", "evaluation"))
        row = rows.setdefault(key, _classification(entry, {}))
        for metric, value in zip(("top-1", "5-NN", "top-5"), entry["values"], strict=True):
            if value is not None:
                row.metrics[entry["dataset"], metric] = float(value)
    return list(rows.values())


#: Benchmarks of one code base each, on ImageNet with ResNet-50: their key in the file, their
#: source, and their columns.
_BENCHMARKS: dict[str, tuple[str, tuple[Column, ...]]] = {
    "imagenet_100_epochs_lightly": (
        "lightly",
        (("linear", "top-1"), ("fine-tuned whole", "top-1"), ("k-NN (InstDisc)", "top-1")),
    ),
    "imagenet_100_epochs_solo_learn": ("solo-learn", (("linear", "top-1"), ("linear", "top-5"))),
}


def published_benchmarks() -> dict[str, list[PublishedClassification]]:
    """Rows of benchmarks by code base, by its name."""
    found = {}
    for part, (name, columns) in _BENCHMARKS.items():
        found[name] = [
            _classification(
                entry,
                {
                    column: float(value)
                    for column, value in zip(columns, entry["values"], strict=True)
                    if value is not None
                },
            )
            for entry in read_published()[part]
        ]
    return found


def _classification(
    entry: Mapping[str, Any], metrics: dict[Column, float]
) -> PublishedClassification:
    return PublishedClassification(
        entry["method"],
        metrics,
        entry["source"],
        entry.get("epochs"),
        entry.get("batch_size"),
        entry.get("evaluation", ""),
        entry.get("note", ""),
    )
