"""``metrics.jsonl`` as curves of a few hundred points."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from intl_transfer.results.report.values import mapping, number, sequence
from intl_transfer.runs.metrics import METRICS, read_lines

SPECTRA = 5  # per run; more would overlap
POINTS = 500  # per curve; more are indistinguishable at the width of a page
_LINES = 8  # lines read per point, so that a run of months opens as fast as one of minutes
# Rare lines, which are all read.
_RARE = (b'"evaluation"', b'"spectrum/', b'"knn_accuracy"', b'"bbox/AP"')
_NOT_FIGURES = ("time", "step", "iteration", "epoch", "train_seconds", "eta_seconds")
_DETECTRON2 = {"bbox": "box", "segm": "mask"}


def read_series(folder: Path, points: int = POINTS, name: str = METRICS) -> dict[str, Any]:
    """Reads a run's metrics over its steps.

    If a resumed run logs a step twice, the later line is used. Longer curves are averaged within
    equal intervals; non-finite values leave a gap.

    Args:
        folder: the run directory.
        points: of a curve, at most.
        name: of the file; Detectron2's own ``metrics.json`` has the same form.

    Returns:
        ``unit`` (``step`` or ``iteration``), ``curves`` (groups of curves that share their ``x``,
        each ``{"x": [...], "y": {NAME: [...]}}``; an evaluation's metrics are called
        ``evaluation/TASK/METRIC``), and ``last``: step, epoch and time of the last line.
    """
    values: dict[str, dict[int, float]] = defaultdict(dict)
    unit, last = "step", {}
    for row in read_lines(folder / name, _LINES * points, _RARE):
        unit = "iteration" if "iteration" in row else "step"
        at = row.get(unit)
        if not isinstance(at, int) or number(at) is None:
            continue
        last = {"step": at, "epoch": number(row.get("epoch")), "time": number(row.get("time"), 12)}
        for metric, value in _metrics(row):
            values[metric][at] = value
    shared: dict[tuple[int, ...], dict[str, list[float]]] = defaultdict(dict)
    for metric, curve in values.items():
        steps = sorted(curve)
        shared[tuple(steps)][metric] = [curve[at] for at in steps]
    curves = [
        {"x": _thin(steps, points), "y": {key: _thin(y, points) for key, y in group.items()}}
        for steps, group in shared.items()
    ]
    return {"unit": unit, "curves": curves, "last": last}


def read_spectra(folder: Path, most: int = SPECTRA) -> list[dict[str, Any]]:
    """Spectra of the embeddings logged by pretraining: first, last, and some between.

    Args:
        folder: the run directory.
        most: maximum number, evenly spaced.

    Returns:
        Of each ``step``, ``ranks`` (1: the largest eigenvalue), ``values`` (over the largest).
    """
    found: dict[int, dict[str, Any]] = {}
    for row in read_lines(folder / METRICS, 1, _RARE):
        step, ranks = row.get("step"), sequence(row.get("spectrum/ranks"))
        values = [number(value) for value in sequence(row.get("spectrum/eigenvalues"))]
        if not (isinstance(step, int) and ranks and len(ranks) == len(values)):
            continue
        if all(isinstance(rank, int) and 0 < rank < 2**31 for rank in ranks):
            found[step] = {"step": step, "ranks": list(ranks), "values": values}
    steps = sorted(found)
    chosen = {round(i * (len(steps) - 1) / max(1, most - 1)) for i in range(most)} if steps else ()
    return [found[steps[index]] for index in sorted(chosen)]


def _metrics(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if name == "evaluation":
            for task, metrics in mapping(value).items():
                for metric, raw in mapping(metrics).items():
                    if number(raw) is not None:
                        yield f"evaluation/{task}/{metric}", float(raw)
        elif (ours := _DETECTRON2.get(name.split("/")[0])) is not None:
            if "-" not in name and number(value) is not None:  # those per class contain one
                yield f"evaluation/{ours}/{name.split('/')[-1]}", float(value)
        elif name not in _NOT_FIGURES:
            if isinstance(value, float):
                yield name, value
            elif value in ("nan", "inf", "-inf"):
                yield name, float("nan")
            elif number(value) is not None:
                yield name, float(value)


def _thin(values: tuple[int, ...] | list[float], points: int) -> list[float | int | None]:
    if len(values) <= points:
        return [number(value) for value in values]
    array = np.asarray(values, dtype=float)
    bins = np.arange(len(array)) * points // len(array)
    finite = np.isfinite(array)
    count = np.bincount(bins, finite, points)
    total = np.bincount(bins, np.where(finite, array, 0), points)
    means = np.divide(total, count, out=np.full(points, np.nan), where=count > 0)
    return [number(float(mean)) for mean in means]
