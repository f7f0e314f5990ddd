"""Tables as CSV and JSON, with all digits, paths and hashes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from intl_transfer.results.longform import cell
from intl_transfer.results.rows import Column, Row, Table
from intl_transfer.results.run import METRICS, TASKS, Run

_STATISTICS = ("mean", "std")
_FURTHER = ("n", "low", "high", "p", "p_holm", "difference", "difference_low", "difference_high")


def as_csv(tables: Sequence[Table]) -> str:
    """One line per row of any table; metrics of detection tables have fixed columns.

    Without control characters or formulas for spreadsheets. ``low`` and ``high`` are the ends of
    the 95 % t interval, ``p`` and ``p_holm`` belong to the test against the baseline.
    """
    columns: list[Column] = [(task, metric) for task in TASKS for metric in METRICS]
    for table in tables:
        columns += [column for column in table.columns() if column not in columns]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    statistics = [f"{t}_{m}_{s}" for t, m in columns for s in _STATISTICS]
    further = [f"{t}_{m}_{s}" for t, m in columns for s in _FURTHER]
    head = ["table", "initialization", "pretraining", "published", "n", *statistics]
    head += ["notes", "runs", "external", "baseline", *further, "group"]
    writer.writerow(map(cell, head))
    for table in tables:
        for row in table.rows:
            described = [_cell(table, row, column) for column in columns]
            runs = " ".join(str(run.path) for run in row.runs)
            first: list[Any] = [
                table.title,
                row.name,
                row.detail,
                int(row.published),
            ]
            usual = [values.get(key) for values in described for key in _STATISTICS]
            more = [values.get(key) for values in described for key in _FURTHER]
            notes = "; ".join(row.notes)
            tail = [notes, runs, int(row.external), int(row.baseline), *more, row.group]
            writer.writerow(map(cell, [*first, row.n or None, *usual, *tail]))
    return out.getvalue()


def as_json(tables: Sequence[Table]) -> str:
    """All data of all rows."""
    value = [
        {
            "title": table.title,
            "family": table.family,
            "dataset": table.dataset,
            "architecture": table.architecture,
            "schedule": table.schedule,
            "parts": [asdict(part) for part in table.parts],
            "columns": [list(column) for column in table.columns()],
            "legend": list(table.legend),
            "rows": [_row(table, row) for row in table.rows],
        }
        for table in tables
    ]
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)


def _row(table: Table, row: Row) -> dict[str, Any]:
    metrics: dict[str, dict[str, Any]] = {}
    for task, metric in row.metrics:
        metrics.setdefault(task, {})[metric] = _cell(table, row, (task, metric), always=True)
    return {
        "initialization": row.name,
        "pretraining": row.detail,
        "published": row.published,
        "external": row.external,
        "baseline": row.baseline,
        "group": row.group or None,
        "n": row.n or None,
        "figures": metrics,
        "notes": list(row.notes),
        "source": row.source or None,
        "runs": [{**_run(run), "figures": _metrics_of(row, run)} for run in row.runs],
    }


def _cell(table: Table, row: Row, column: Column, always: bool = False) -> dict[str, Any]:
    summary = row.metrics.get(column)
    if summary is None or not (always or column in table.columns()):
        return {}
    value: dict[str, Any] = {"mean": summary.mean, "std": summary.std, "n": summary.n or None}
    if summary.values:
        value |= {"values": list(summary.values), "seeds": list(summary.seeds)}
    if summary.each:
        value["runs_of_each_pretraining"] = list(summary.each)
    ends = summary.interval()
    if ends is not None:
        value["low"], value["high"] = ends
    mark = row.marks.get(column)
    if mark is not None:
        value["best"] = mark.best
        if mark.comparison is not None:
            value |= {
                "difference": mark.comparison.difference,
                "difference_low": mark.comparison.low,
                "difference_high": mark.comparison.high,
                "p": mark.comparison.p,
                "p_holm": mark.comparison.p_holm,
                "test": mark.comparison.test,
            }
    return value


def _metrics_of(row: Row, run: Run) -> dict[str, dict[str, float]]:
    """The metrics of one run, by task and metric."""
    found: dict[str, dict[str, float]] = {}
    for (task, metric), values in row.each.items():
        if run.path in values:
            found.setdefault(task, {})[metric] = values[run.path]
    return found


def _run(run: Run) -> dict[str, Any]:
    start = run.results.initialization
    return {
        "path": str(run.path),
        "id": run.manifest.id,
        "seed": run.seed,
        "weights_sha256": start.weights_sha256,
        "provenance": None if start.provenance is None else start.provenance.as_json(),
        "pretraining_run": str(run.parent) if run.parent else None,
    }
