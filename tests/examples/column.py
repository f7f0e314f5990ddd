"""A table column: a metric of an evaluator of your own, as the results of one run."""

from __future__ import annotations

from pathlib import Path

from intl_transfer.runs import write_json


def write_results(folder: Path, method: str, seed: int, boundary_f1: float) -> None:
    """Writes a run of which tables make a row, and of its metric a column.

    Args:
        folder: the run directory.
        method: the pretraining, as tables call it.
        seed: of the fine-tuning; runs that differ in it alone are one row, mean ± std.
        boundary_f1: in %, higher is better.
    """
    folder.mkdir(parents=True)
    results = {
        "stage": "detection",
        "external": "boundary evaluator 1.0",
        "dataset": {"name": "cells_test"},
        "architecture": {"backbone": "resnet50", "head": "U-Net"},
        "initialization": {"method": method},
        "seed": seed,
        "metrics": {"boundary": {"F1": boundary_f1}},
    }
    write_json(folder / "results.json", results)
