"""Published results, each with its source, kept as data beside the code."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from intl_transfer.results.collect import METRICS
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
    """

    method: str
    epochs: int
    schedule: str
    figures: dict[tuple[str, str], Summary]
    source: str
    note: str = ""


def read_published() -> dict[str, Any]:
    """The file of published results, as it is."""
    text = resources.files("intl_transfer.results").joinpath("published.yaml").read_text()
    content: dict[str, Any] = yaml.safe_load(text)
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
            )
        )
    return rows
