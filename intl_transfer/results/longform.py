"""Tables in long form: one line per run and metric, as CSV or Parquet, for pandas and the like."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.results.alike import protocols
from intl_transfer.results.grid import clean
from intl_transfer.results.rows import Column, Row, Table
from intl_transfer.results.run import Run

#: The columns, with their types in Parquet.
COLUMNS: dict[str, str] = {
    "table": "string",
    "family": "string",
    "dataset": "string",
    "architecture": "string",
    "schedule": "string",
    "protocol": "string",
    "lr": "string",
    "labels": "string",
    "initialization": "string",
    "pretraining": "string",
    "source": "string",
    "task": "string",
    "metric": "string",
    "value": "float64",
    "std": "float64",
    "n": "Int64",
    "seed": "Int64",
    "pretraining_seed": "Int64",
    "run": "string",
    "run_id": "string",
    "weights_sha256": "string",
    "pretraining_run": "string",
    "notes": "string",
}
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def records(
    tables: Sequence[Table], text: Callable[[str], str] = clean
) -> Iterator[dict[str, Any]]:
    """One record per run and metric; for published rows, one per metric.

    Args:
        tables: from :func:`intl_transfer.results.tables.build_tables`.
        text: applied to every text; control characters are always removed.
    """
    for table in tables:
        protocol = protocols(table)
        for row in table.rows:
            for column in row.metrics:
                described = {**_described(table, row, column), "protocol": protocol[column]}
                for own in _measured(row, column) if row.each else _summarized(row, column):
                    found = {**described, **own}
                    yield {
                        key: text(value) if isinstance(value, str) else value
                        for key, value in ((key, found.get(key)) for key in COLUMNS)
                    }


def _described(table: Table, row: Row, column: Column) -> dict[str, Any]:
    part = table.part_of(column[0])
    return {
        "table": table.key,
        "family": table.family,
        "dataset": table.dataset_of(column[0]),
        "architecture": (part or table).architecture,
        "schedule": (part or table).schedule,
        "lr": part.lr or None if part else None,
        "labels": part.labels or None if part else None,
        "initialization": row.name,
        "pretraining": row.detail,
        "source": row.source if row.published else "external" if row.external else "measured",
        "task": column[0],
        "metric": column[1],
        "notes": "; ".join(row.notes),
    }


def _measured(row: Row, column: Column) -> Iterator[dict[str, Any]]:
    values = row.each.get(column, {})
    for run in row.runs:
        if (value := values.get(run.path)) is not None:
            yield {"value": value, "n": 1, **_of_run(run)}


def _of_run(run: Run) -> dict[str, Any]:
    return {
        "seed": run.seed,
        "pretraining_seed": run.start.unit_seed,
        "run": str(run.path),
        "run_id": run.manifest.id or None,
        "weights_sha256": run.results.initialization.weights_sha256,
        "pretraining_run": str(run.parent) if run.parent else None,
    }


def _summarized(row: Row, column: Column) -> Iterator[dict[str, Any]]:
    summary = row.metrics[column]
    yield {"value": summary.mean, "std": summary.std, "n": summary.n or None}


def cell(value: Any) -> Any:
    """A value for CSV, without control characters or formulas for spreadsheets."""
    if not isinstance(value, str):
        return value
    text = clean(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def as_long_csv(tables: Sequence[Table]) -> str:
    """Long form as CSV, all digits."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records(tables, cell))
    return out.getvalue()


def as_parquet(tables: Sequence[Table], text: Callable[[str], str] = clean) -> bytes:
    """Long form as Parquet, typed.

    Args:
        tables: from :func:`intl_transfer.results.tables.build_tables`.
        text: applied to every text.

    Raises:
        UserError: without pyarrow.
    """
    import pandas as pd

    found = list(records(tables, text))
    frame = pd.DataFrame({key: [one[key] for one in found] for key in COLUMNS}).astype(COLUMNS)
    out = io.BytesIO()
    try:
        frame.to_parquet(out, engine="pyarrow", index=False)
    except ImportError:
        raise UserError(
            "Parquet needs pyarrow, which is not installed; install it with `pip install "
            "'intl-transfer[parquet]'`, or write CSV: --format long"
        ) from None
    return out.getvalue()
