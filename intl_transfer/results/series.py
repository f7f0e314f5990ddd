"""Combines curves of several runs: a mean line, and the range over seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intl_transfer.runs.folders import METRICS_JSON
from intl_transfer.runs.metrics import METRICS, read_metrics

Points = tuple[NDArray[np.float64], NDArray[np.float64]]
_MOST_POINTS = 200
#: Keys of lines that figures draw over training, which `archive` keeps.
CURVES = ("total_loss", "lr", "evaluation", "loss", "knn_accuracy")


@dataclass(frozen=True)
class Band:
    """A curve over several runs.

    Attributes:
        x: steps, iterations or epochs.
        mean: over the repetitions that have a value.
        low: the lowest run that has one.
        high: the highest.
        n: number of repetitions.
    """

    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    n: int


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``, or of Detectron2's ``metrics.json``."""
    file = folder / METRICS
    return read_metrics(file if file.exists() else folder / METRICS_JSON)


def curve(
    rows: Iterable[dict[str, Any]], x: str, value: Callable[[dict[str, Any]], Any]
) -> Points | None:
    """One run's curve.

    If a continued run logged steps again, the last line is used.

    Args:
        rows: from :func:`lines_of`.
        x: key of the position: ``step``, ``epoch`` or ``iteration``.
        value: extracts the value of a line; lines without a finite one are skipped.

    Returns:
        Positions and values in order, or None if there are fewer than two.
    """
    found: dict[float, float] = {}
    for row in rows:
        position, y = row.get(x), value(row)
        if all(isinstance(v, (int, float)) and np.isfinite(v) for v in (position, y)):
            # Both are numbers, by the line above.
            found[float(position)] = float(y)  # type: ignore[arg-type]
    if len(found) < 2:
        return None
    order = sorted(found)
    return np.array(order), np.array([found[position] for position in order])


def band(curves: Sequence[Points], units: Sequence[str] | None = None) -> Band:
    """Mean and range of several curves, in at most 200 points.

    If there are few positions (evaluations), all are kept; otherwise neighboring ones are averaged
    within each curve first.

    Args:
        curves: of runs, at least one.
        units: the repetition that each run is of; by default each is its own. As in tables, the
            mean is over means of repetitions.
    """
    positions = np.unique(np.concatenate([x for x, _ in curves]))
    if len(positions) > _MOST_POINTS:
        edges = np.linspace(positions[0], positions[-1], _MOST_POINTS + 1)
        centers = (edges[:-1] + edges[1:]) / 2
        values = np.stack([_binned(x, y, edges) for x, y in curves])
    else:
        centers = positions
        values = np.full((len(curves), len(positions)), np.nan)
        for row, (x, y) in zip(values, curves, strict=True):
            row[np.searchsorted(positions, x)] = y
    filled = ~np.isnan(values).all(axis=0)
    values = values[:, filled]
    members: dict[str, list[int]] = {}
    for index, unit in enumerate(units or map(str, range(len(curves)))):
        members.setdefault(unit, []).append(index)
    each = np.stack([_mean(values[indices]) for indices in members.values()])
    return Band(
        centers[filled],
        _mean(each),
        np.nanmin(values, axis=0),
        np.nanmax(values, axis=0),
        len(members),
    )


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the rows that have a value; NaN where none has."""
    there = ~np.isnan(values).all(axis=0)
    found = np.full(values.shape[1], np.nan)
    found[there] = np.nanmean(values[:, there], axis=0)
    return found


def _binned(
    x: NDArray[np.float64], y: NDArray[np.float64], edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean of the values in each bin; NaN if there are none."""
    index = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, len(edges) - 2)
    count = np.bincount(index, minlength=len(edges) - 1)
    total = np.bincount(index, weights=y, minlength=len(edges) - 1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
