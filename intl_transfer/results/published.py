"""Published results, each with its source, kept as data beside the code."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources
from typing import Any

from intl_transfer.files.yamls import parse_yaml
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
class PublishedLinear:
    """Published linear top-1 on ImageNet with ResNet-50.

    Attributes:
        method: its name.
        epochs: top-1 in % by epochs of pretraining.
        batch_size: of pretraining; None where not noted.
        source: where the figures were read.
    """

    method: str
    epochs: dict[int, float]
    batch_size: int | None
    source: str


def published_linear() -> list[PublishedLinear]:
    """Every published row of linear evaluation on ImageNet."""
    return [
        PublishedLinear(
            entry["method"],
            {int(e): float(v) for e, v in entry["epochs"].items() if v is not None},
            entry.get("batch_size"),
            entry["source"],
        )
        for entry in read_published()["imagenet_linear_top1"]
    ]


@dataclass(frozen=True)
class PublishedSmall:
    """Published figures of one method on small data sets with ResNet-18.

    Attributes:
        method: its name.
        figures: by (data set, ``top-1``, ``5-NN`` or ``top-5``), in %.
        sources: where the figures were read.
    """

    method: str
    figures: dict[tuple[str, str], float]
    sources: tuple[str, ...]


def published_small() -> list[PublishedSmall]:
    """One row a method of the published figures on small data sets."""
    rows: dict[str, PublishedSmall] = {}
    for entry in read_published()["small_datasets"]:
        method, source = entry["method"], entry["source"]
        row = rows.setdefault(method, PublishedSmall(method, {}, (source,)))
        if source not in row.sources:
            rows[method] = row = PublishedSmall(method, row.figures, (*row.sources, source))
        for metric, value in zip(("top-1", "5-NN", "top-5"), entry["values"], strict=True):
            if value is not None:
                row.figures[entry["dataset"], metric] = float(value)
    return list(rows.values())
