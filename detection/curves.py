"""Precision-recall curves, and loss and AP during training, as numbers and as figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from intl_transfer.data.drawing import color
from intl_transfer.data.fonts import families
from intl_transfer.runs import read_metrics, write_atomically

RECALL = [round(point / 100, 2) for point in range(101)]
_LONGEST = 40  # characters of a name in a legend
_NAMED = 12  # more classes are indistinguishable by color
_TITLES = {"box": "boxes", "mask": "masks", "voc": "boxes (VOC)"}
_STYLE = {"AP": "o-", "AP50": "s--", "AP75": "^:"}
_COLORS = {"box": "#0072d2", "mask": "#e66100", "voc": "#0072d2"}


def curve_entry(curves: Mapping[str, np.ndarray | None]) -> dict[str, Any]:
    """One threshold's entry of ``curves.json``.

    Args:
        curves: by class, the maximum precision at recalls of at least 0, 0.01 ... 1; None for a
            class without objects.

    Returns:
        ``{"recall": [...], "precision": {CLASS: [...] or None, "mean": [...] or None}}``.
    """
    there = [curve for curve in curves.values() if curve is not None]
    # A class may have this name.
    named = {"mean (class)" if name == "mean" else name: curve for name, curve in curves.items()}
    precision = {
        **{name: None if curve is None else _rounded(curve) for name, curve in named.items()},
        "mean": _rounded(np.mean(there, axis=0)) if there else None,
    }
    return {"recall": RECALL, "precision": precision}


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]


def write_curves(folder: Path, curves: dict[str, Any]) -> None:
    """Writes ``curves.json``: by task, then by threshold, entries of :func:`curve_entry`."""
    text = json.dumps(curves, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    write_atomically(folder / "curves.json", lambda out: out.write(text.encode()))


def draw_curves(folder: str | Path) -> list[str]:
    """Draws the curves of a run directory.

    Args:
        folder: the run directory.

    Returns:
        Names of the files written: ``precision_recall.png`` from ``curves.json``, and
        ``training.png`` from ``metrics.jsonl``; omitted without data.
    """
    folder = Path(folder)
    written = []
    file = folder / "curves.json"
    curves = json.loads(file.read_bytes()) if file.exists() else {}
    if curves:
        _precision_recall(curves).savefig(folder / "precision_recall.png", dpi=110)
        written.append("precision_recall.png")
    rows = read_metrics(folder)
    if any("total_loss" in row for row in rows):
        _training(rows).savefig(folder / "training.png", dpi=110)
        written.append("training.png")
    return written


def _precision_recall(curves: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(4.6 * len(curves) + 1.8, 4.2), layout="constrained")
    axes = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    named = {name for one in curves.values() for name in one["0.50"]["precision"]}
    text = families("\n".join(sorted(named))) if len(named) <= _NAMED + 1 else []
    for axis, (task, thresholds) in zip(axes, curves.items(), strict=True):
        classes = {k: v for k, v in thresholds["0.50"]["precision"].items() if k != "mean"}
        for label, (name, values) in enumerate(classes.items()):
            if values is not None:
                few = len(classes) <= _NAMED
                shade = tuple(v / 255 for v in color(label)) if few else "#b8b8b8"
                shown = _as_it_is(name) if few else None
                axis.plot(RECALL, values, color=shade, lw=1, alpha=0.9, label=shown)
        if len(classes) > _NAMED:
            axis.plot([], [], color="#b8b8b8", lw=1, label=f"each of {len(classes)} classes")
        for (iou, entry), style in zip(thresholds.items(), ("-", "--"), strict=False):
            mean = entry["precision"]["mean"]
            if mean is not None:
                # VOC's average precision is a different mean of the curve, or its area.
                ap = "" if task == "voc" else f": AP {100 * np.mean(mean):.1f}"
                name = f"mean at IoU {iou}{ap}"
                axis.plot(RECALL, mean, color="black", lw=2.2, ls=style, label=name)
        axis.set(xlabel="recall", xlim=(0, 1), ylim=(0, 1.02), title=_TITLES[task])
        _tidy(axis)
    axes[0].set_ylabel("precision (classes at IoU 0.50)")
    _legends(axes, text)
    return figure


def _as_it_is(name: str) -> str:
    """Escapes a name for a legend, where ``$`` starts math and a leading ``_`` hides the entry."""
    name = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
    return ("\u200b" if name.startswith("_") else "") + name.replace("$", r"\$")


def _legends(axes: Sequence[Axes], text: Sequence[str]) -> None:
    """Legends: means in each panel, classes once next to the last.

    Args:
        axes: the panels.
        text: font families for the classes' names.
    """
    for axis in axes:
        lines = [line for line in axis.lines if not str(line.get_label()).startswith("_")]
        means = [line for line in lines if str(line.get_label()).startswith("mean at")]
        classes = [line for line in lines if line not in means]
        inside = axis.legend(handles=means, loc="lower left", fontsize=8)
        if axis is axes[-1] and classes:
            axis.add_artist(inside)
            axis.legend(
                handles=classes,
                loc="center left",
                bbox_to_anchor=(1.01, 0.5),
                frameon=False,
                prop={"size": 8, **({"family": list(text)} if text else {})},
            )


def _training(rows: list[dict[str, Any]]) -> Figure:
    # A continued run may have logged iterations twice; the later lines are used.
    losses = {row["iteration"]: row for row in rows if "total_loss" in row}
    scores = {row["iteration"]: row["evaluation"] for row in rows if "evaluation" in row}
    figure = Figure(figsize=(10 if scores else 5.6, 3.8), layout="constrained")
    axes = figure.subplots(1, 2 if scores else 1, squeeze=False)[0]
    iterations = sorted(losses)
    parts = sorted({k for row in losses.values() for k in row if k.startswith("loss_")})
    for index, key in enumerate(parts):
        values = [losses[i].get(key, np.nan) for i in iterations]
        shade = tuple(v / 255 for v in color(index))
        axes[0].plot(iterations, values, color=shade, lw=1, label=key.removeprefix("loss_"))
    total = [losses[i]["total_loss"] for i in iterations]
    axes[0].plot(iterations, total, color="black", lw=1.8, label="total")
    axes[0].set(xlabel="iteration", title="loss", xlim=(0, None), ylim=(0, None))
    axes[0].legend(fontsize=8, ncols=2)
    _tidy(axes[0])
    if scores:
        _average_precision(axes[1], scores)
    return figure


def _average_precision(axis: Axes, scores: Mapping[int, dict[str, Any]]) -> None:
    iterations = sorted(scores)
    tasks = [task for task in _TITLES if any(task in row for row in scores.values())]
    for task in tasks:
        for key, style in _STYLE.items():
            values = [scores[i].get(task, {}).get(key) for i in iterations]
            numbers = np.array([np.nan if value is None else value for value in values])
            axis.plot(
                *(iterations, numbers, style),
                color=_COLORS[task],
                ms=4.5,
                lw=1.5,
                label=f"{key} {_TITLES[task]}",
            )
    axis.set(xlabel="iteration", title="average precision in %", xlim=(0, None), ylim=(0, None))
    axis.legend(fontsize=8)
    _tidy(axis)


def _tidy(axis: Axes) -> None:
    axis.grid(color="#e6e6e6", lw=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
