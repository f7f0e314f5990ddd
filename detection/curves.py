"""Precision against recall, and loss and AP over the training: as numbers and as pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from intl_transfer.runs import write_atomically

RECALL = [round(point / 100, 2) for point in range(101)]


def curve_entry(curves: Mapping[str, np.ndarray | None]) -> dict[str, Any]:
    """One threshold's entry of ``curves.json``.

    Args:
        curves: by class, the best precision at recalls 0, 0.01 ... 1 or greater ones; None for
            a class without objects.

    Returns:
        ``{"recall": [...], "precision": {CLASS: [...] or None, "mean": [...] or None}}``.
    """
    there = [curve for curve in curves.values() if curve is not None]
    precision = {
        **{name: None if curve is None else _rounded(curve) for name, curve in curves.items()},
        "mean": _rounded(np.mean(there, axis=0)) if there else None,
    }
    return {"recall": RECALL, "precision": precision}


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]


def write_curves(folder: Path, curves: dict[str, Any]) -> None:
    """Writes ``curves.json``: by task, then by threshold, entries of :func:`curve_entry`."""
    text = json.dumps(curves, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    write_atomically(folder / "curves.json", lambda out: out.write(text.encode()))
