"""Curves of several runs as one band: a mean line, and the range over seeds."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intl_transfer.results.foreign import METRICS_JSON
from intl_transfer.results.reading import LARGEST_BYTES
from intl_transfer.runs import METRICS

Points = tuple[NDArray[np.float64], NDArray[np.float64]]
_MOST_POINTS = 200


@dataclass(frozen=True)
class Band:
    """A curve over several runs.

    Attributes:
        x: steps, iterations or epochs.
        mean: over the runs that have a value there.
        low: the lowest of them.
        high: the highest of them.
        n: number of runs.
    """

    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    n: int


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, or Detectron2's ``metrics.json``; damaged ones skipped.

    Args:
        folder: a run directory.

    Returns:
        The lines in file order; none where the file is absent, unreadable or larger than 64 MiB.
    """
    file = folder / METRICS
    if not file.exists():
        file = folder / METRICS_JSON
    if not file.is_file():  # absent, or a pipe, which would be waited for
        return []
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(OSError):
        if file.stat().st_size > LARGEST_BYTES:
            return []
        for line in file.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict):
                    rows.append(row)
    return rows


def curve(
    rows: Iterable[dict[str, Any]], x: str, value: Callable[[dict[str, Any]], Any]
) -> Points | None:
    """One run's curve.

    A run that was continued writes some steps again; of those the last one counts.

    Args:
        rows: from :func:`read_lines`.
        x: the key that counts: ``step``, ``epoch`` or ``iteration``.
        value: takes the figure out of a line; lines without a finite one are passed over.

    Returns:
        Positions and figures in order, or None where there are fewer than two.
    """
    found: dict[float, float] = {}
    for row in rows:
        position, figure = row.get(x), value(row)
        if all(isinstance(v, (int, float)) and np.isfinite(v) for v in (position, figure)):
            found[float(position)] = float(figure)  # type: ignore[arg-type]
    if len(found) < 2:
        return None
    order = sorted(found)
    return np.array(order), np.array([found[position] for position in order])


def band(curves: Sequence[Points]) -> Band:
    """Mean and range of several curves, in at most 200 points.

    Where the curves have few positions altogether (evaluations), each stands for itself; else
    neighbouring ones are averaged within each curve first.

    Args:
        curves: at least one.
    """
    positions = np.unique(np.concatenate([x for x, _ in curves]))
    if len(positions) > _MOST_POINTS:
        edges = np.linspace(positions[0], positions[-1], _MOST_POINTS + 1)
        centres = (edges[:-1] + edges[1:]) / 2
        values = np.stack([_binned(x, y, edges) for x, y in curves])
    else:
        centres = positions
        values = np.full((len(curves), len(positions)), np.nan)
        for row, (x, y) in zip(values, curves, strict=True):
            row[np.searchsorted(positions, x)] = y
    filled = ~np.isnan(values).all(axis=0)
    values = values[:, filled]
    return Band(
        centres[filled],
        np.nanmean(values, axis=0),
        np.nanmin(values, axis=0),
        np.nanmax(values, axis=0),
        len(curves),
    )


def _binned(
    x: NDArray[np.float64], y: NDArray[np.float64], edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean of the figures in each bin; NaN where there are none."""
    index = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, len(edges) - 2)
    count = np.bincount(index, minlength=len(edges) - 1)
    total = np.bincount(index, weights=y, minlength=len(edges) - 1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
