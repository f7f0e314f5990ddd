"""Published results, each with its source, kept as data beside the code."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from intl_transfer.files.yamls import parse_yaml
from intl_transfer.results.rows import Column, Figures, Row
from intl_transfer.results.run import METRICS
from intl_transfer.results.statistics import Summary


@dataclass(frozen=True)
class PublishedRow:
    """One published row of a detection table.

    Attributes:
        method: its name.
        epochs: of pretraining.
        schedule: ``1x``, ``2x``, ``24k`` or ``unknown``.
        figures: by (task, metric), in %.
        source: where the figures were read.
        note: what to know when comparing, or "".
        norm: the batch norm in its authors' fine-tuning files, or "" where that is not stated.
    """

    method: str
    epochs: int
    schedule: str
    figures: dict[tuple[str, str], Summary]
    source: str
    note: str = ""
    norm: str = ""


@functools.cache
def read_published() -> dict[str, Any]:
    """The file of published results, as it is."""
    text = resources.files("intl_transfer.results").joinpath("published.yaml").read_text()
    content: dict[str, Any] = parse_yaml(text, "published.yaml")
    return content


def published_detection() -> list[PublishedRow]:
    """Every published detection row; figures that were not published are absent."""
    rows = []
    for entry in read_published()["detection"]:
        figures: dict[tuple[str, str], Summary] = {}
        for task in ("box", "mask", "voc"):
            spread = entry.get(f"{task}_std") or [None] * len(METRICS)
            for metric, value, std in zip(METRICS, entry.get(task) or [], spread, strict=False):
                if value is not None:
                    seeds = int(entry.get("n_seeds") or 0)
                    figures[task, metric] = Summary(float(value), std, seeds)
        rows.append(
            PublishedRow(
                entry["method"],
                entry["pretrain_epochs"],
                entry["schedule"],
                figures,
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
        figures: by (task, metric), in %.
        source: where the figures were read.
        epochs: of pretraining; None where not stated, or where each column has its own.
        batch_size: of pretraining; None where not stated.
        evaluation: how it was measured, or "" where that is not stated.
        note: what to know when comparing, or "".
    """

    method: str
    figures: dict[Column, float]
    source: str
    epochs: int | None = None
    batch_size: int | None = None
    evaluation: str = ""
    note: str = ""

    def row(self, *unstated: str) -> Row:
        """As a row of a table, with what its source does not state.

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
            {key: Summary(value, None, 0) for key, value in self.figures.items()},
            self.source,
            (self.evaluation, self.note),
            (*missing, "number of runs"),
        )


def published_row(
    method: str,
    detail: str,
    figures: Figures,
    source: str,
    notes: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> Row:
    """A row of a table whose figures were published.

    Args:
        method: its name.
        detail: of its pretraining.
        figures: by (task, metric).
        source: where they were read.
        notes: what to know when comparing; "" is left out.
        missing: what the source does not state.
    """
    said = [f"published: {source}", *(note for note in notes if note)]
    if missing:
        said.append(f"not stated here: {', '.join(missing)}")
    n = max((value.n for value in figures.values()), default=0)
    return Row(method, detail, figures, n, True, tuple(said), source=source, cite=key_of(source))


def key_of(source: str) -> str:
    """The key of a source in ``published.bib``; "" if it has none."""
    keys: dict[str, str] = read_published()["citations"]
    return next((key for start, key in keys.items() if source.startswith(start)), "")


def bibliography() -> str:
    """``published.bib``, as it ships."""
    return resources.files("intl_transfer.results").joinpath("published.bib").read_text()


def published_linear() -> list[PublishedClassification]:
    """Every published row of linear evaluation on ImageNet, a column for each number of epochs."""
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
    """Published figures on small data sets with ResNet-18.

    One row for each method, source, number of epochs and evaluation: of these, none is known to
    differ within a row.
    """
    rows: dict[tuple[Any, ...], PublishedClassification] = {}
    for entry in read_published()["small_datasets"]:
        key = tuple(entry.get(k) for k in ("method", "source", "epochs", "evaluation"))
        row = rows.setdefault(key, _classification(entry, {}))
        for metric, value in zip(("top-1", "5-NN", "top-5"), entry["values"], strict=True):
            if value is not None:
                row.figures[entry["dataset"], metric] = float(value)
    return list(rows.values())


#: Benchmarks of one code base each, on ImageNet with ResNet-50: their part of the file, whose they
#: are, and their columns.
_BENCHMARKS: dict[str, tuple[str, tuple[Column, ...]]] = {
    "imagenet_100_epochs_lightly": (
        "lightly",
        (("linear", "top-1"), ("fine-tuned whole", "top-1"), ("k-NN (InstDisc)", "top-1")),
    ),
    "imagenet_100_epochs_solo_learn": ("solo-learn", (("linear", "top-1"), ("linear", "top-5"))),
}


def published_benchmarks() -> dict[str, list[PublishedClassification]]:
    """Rows of benchmarks that one code base made, by its name; what they share is theirs alone."""
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
    entry: Mapping[str, Any], figures: dict[Column, float]
) -> PublishedClassification:
    return PublishedClassification(
        entry["method"],
        figures,
        entry["source"],
        entry.get("epochs"),
        entry.get("batch_size"),
        entry.get("evaluation", ""),
        entry.get("note", ""),
    )
