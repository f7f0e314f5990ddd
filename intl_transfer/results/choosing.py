"""Which rows and columns of the tables to show, and in what order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.results.rows import Column, Row, Table

_ROW_KEYS: dict[str, Callable[[Table, Row], str]] = {
    "method": lambda table, row: row.name,
    "pretraining": lambda table, row: row.detail,
    "dataset": lambda table, row: table.dataset,
    "detector": lambda table, row: table.architecture,
    "schedule": lambda table, row: table.schedule,
    "source": lambda table, row: (
        "published" if row.published else "foreign" if row.foreign else "measured"
    ),
}
_TEXT_KEYS = ("method", "pretraining")


def choose_rows(tables: Sequence[Table], wanted: Sequence[str]) -> list[Table]:
    """Rows that fit all of some conditions; tables that are left without rows go.

    Args:
        tables: any.
        wanted: ``KEY=PATTERN[,PATTERN...]`` or ``KEY!=PATTERN[,...]``; patterns as in a shell.

    Raises:
        UserError: for a condition in another form, or an unknown key.
    """
    conditions = [_condition(text) for text in wanted]
    chosen = []
    for table in tables:
        rows = [
            row
            for row in table.rows
            if all(
                any(fnmatchcase(_ROW_KEYS[key](table, row), pattern) for pattern in patterns)
                == positive
                for key, positive, patterns in conditions
            )
        ]
        if rows:
            chosen.append(dataclasses.replace(table, rows=rows))
    return chosen


def _condition(text: str) -> tuple[str, bool, list[str]]:
    key, sign, patterns = text.partition("=")
    positive = not key.endswith("!")
    key = key.removesuffix("!").strip()
    if not sign or not patterns:
        raise UserError(f"--rows {text}: expected KEY=PATTERN or KEY!=PATTERN, as method=INTL*")
    if key not in _ROW_KEYS:
        hint = did_you_mean(key, _ROW_KEYS)
        raise UserError(f"--rows {text}: no key '{key}'.{hint} Known: {', '.join(_ROW_KEYS)}")
    return key, positive, [pattern.strip() for pattern in patterns.split(",")]


def choose_columns(tables: Sequence[Table], wanted: Sequence[str]) -> list[Table]:
    """The columns asked for, in that order; tables that have none of them go.

    Args:
        tables: any.
        wanted: ``TASK.METRIC``, ``TASK`` (its usual columns) or ``METRIC`` (of all tasks).

    Raises:
        UserError: for a column that no table has.
    """
    if not wanted:
        return list(tables)
    for text in wanted:
        if not any(_fitting(table, text) for table in tables):
            names = _names(tables)
            hint = did_you_mean(text, names)
            raise UserError(
                f"--columns: no column '{text}'.{hint} Known: {', '.join(names) or 'none'}"
            )
    chosen = []
    for table in tables:
        shown: list[Column] = []
        for text in wanted:
            shown += [column for column in _fitting(table, text) if column not in shown]
        # A group's columns stand together.
        order = list(dict.fromkeys(task for task, _ in shown))
        shown.sort(key=lambda column: order.index(column[0]))
        rows = [row for row in table.rows if any(column in row.figures for column in shown)]
        if shown and rows:
            tasks = tuple(order)
            chosen.append(dataclasses.replace(table, rows=rows, shown=tuple(shown), tasks=tasks))
    return chosen


def _fitting(table: Table, text: str) -> list[Column]:
    """The columns of a table that a word stands for."""
    present = {column for row in table.rows for column in row.figures}
    if text in table.tasks:
        return [column for column in table.columns() if column[0] == text]
    task, _, metric = text.rpartition(".")
    tasks = [task] if task else table.tasks
    return [(name, metric) for name in tasks if (name, metric) in present]


def _names(tables: Sequence[Table]) -> list[str]:
    columns = {column for table in tables for row in table.rows for column in row.figures}
    tasks = {task for table in tables for task in table.tasks}
    metrics = {metric for _, metric in columns}
    return [*sorted(tasks), *sorted(f"{t}.{m}" for t, m in columns), *sorted(metrics)]


def sort_rows(tables: Sequence[Table], by: str | None, reverse: bool = False) -> list[Table]:
    """Rows in another order; published rows stay behind measured ones.

    Args:
        tables: any.
        by: ``method`` or ``pretraining`` (alphabetical), ``n``, or a column (highest first; rows
            without the figure last); None keeps the order.
        reverse: the other way round.

    Raises:
        UserError: for a column that no table has.
    """
    if by is None:
        if not reverse:
            return list(tables)
        return [
            dataclasses.replace(
                table,
                rows=[
                    *reversed([row for row in table.rows if not row.published]),
                    *reversed([row for row in table.rows if row.published]),
                ],
            )
            for table in tables
        ]
    if by not in (*_TEXT_KEYS, "n") and not any(_fitting(table, by) for table in tables):
        names = [*_TEXT_KEYS, "n", *_names(tables)]
        raise UserError(f"--sort: no column '{by}'.{did_you_mean(by, names)} Known: {names}")
    return [dataclasses.replace(table, rows=_sorted(table, by, reverse)) for table in tables]


def _sorted(table: Table, by: str, reverse: bool) -> list[Row]:
    if by in _TEXT_KEYS:

        def text(row: Row) -> str:
            return _ROW_KEYS[by](table, row).casefold()

        rows = sorted(table.rows, key=text, reverse=reverse)
    else:
        column = next(iter(_fitting(table, by)), None)

        def figure(row: Row) -> tuple[bool, float]:
            if by == "n":
                return False, (row.n if reverse else -row.n)
            summary = row.figures.get(column) if column else None
            mean = summary.mean if summary else 0.0
            return summary is None, (mean if reverse else -mean)

        rows = sorted(table.rows, key=figure)
    return sorted(rows, key=lambda row: row.published)
