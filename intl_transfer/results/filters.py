"""Selects and sorts rows and columns of tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.results.rows import Column, Row, Table
from intl_transfer.runs.aliases import ALIASES

_ROW_KEYS: dict[str, Callable[[Row], str]] = {
    "method": lambda row: row.name,
    "pretraining": lambda row: row.detail,
    "source": lambda row: (
        "published" if row.published else "external" if row.external else "measured"
    ),
}
_TABLE_KEYS: dict[str, Callable[[Table], str]] = {
    "dataset": lambda table: table.dataset,
    "detector": lambda table: table.architecture,
    "schedule": lambda table: table.schedule,
}
_KEYS = (*_ROW_KEYS, *_TABLE_KEYS)
_TEXT_KEYS = ("method", "pretraining")
# Maximum number of values listed.
_MOST_VALUES = 20


@dataclass(frozen=True)
class Condition:
    """A condition on a row, or on its table.

    Attributes:
        key: of the row (method, pretraining, source) or of its table (dataset, detector, schedule).
        positive: False for a negated condition.
        patterns: shell patterns, of which one must match.
        text: as the user wrote it.
    """

    key: str
    positive: bool
    patterns: tuple[str, ...]
    text: str

    def holds(self, value: str) -> bool:
        """Whether a value matches."""
        return any(fnmatchcase(value, pattern) for pattern in self.patterns) == self.positive


def conditions_of(selected: Sequence[str]) -> list[Condition]:
    """Conditions from ``KEY=PATTERN[,PATTERN...]`` or ``KEY!=PATTERN[,...]``.

    Raises:
        UserError: for an invalid condition, or an unknown key.
    """
    return [_condition(text) for text in selected]


def fits(table: Table, conditions: Sequence[Condition]) -> bool:
    """Whether a table of one data set and protocol matches all conditions on tables."""
    return all(c.holds(_TABLE_KEYS[c.key](table)) for c in conditions if c.key in _TABLE_KEYS)


def choose_tasks(table: Table, conditions: Sequence[Condition]) -> Table:
    """Selects the matching column groups (data sets) of a table; no rows if none matches.

    Args:
        table: of classification.
        conditions: those on tables are used.
    """
    datasets = table.dataset.split(" + ")
    if set(table.tasks) != set(datasets):
        return table if fits(table, conditions) else dataclasses.replace(table, rows=[])
    kept = [
        task for task in table.tasks if fits(dataclasses.replace(table, dataset=task), conditions)
    ]
    rows = [row for row in table.rows if any(task in kept for task, _ in row.metrics)]
    return dataclasses.replace(table, tasks=tuple(kept), dataset=" + ".join(kept), rows=rows)


def choose_rows(tables: Sequence[Table], conditions: Sequence[Condition]) -> list[Table]:
    """Selects rows that match all conditions on rows; tables without rows are dropped.

    Args:
        tables: any.
        conditions: those on tables are ignored.
    """
    chosen = []
    for table in tables:
        rows = [
            row
            for row in table.rows
            if all(c.holds(_ROW_KEYS[c.key](row)) for c in conditions if c.key in _ROW_KEYS)
        ]
        if rows:
            chosen.append(dataclasses.replace(table, rows=rows))
    return chosen


def nothing_fits(tables: Sequence[Table], conditions: Sequence[Condition]) -> UserError:
    """The error message if no row matches: lists the existing values.

    Args:
        tables: all, before selection.
        conditions: that match nothing.
    """
    lines = []
    for condition in conditions:
        values: dict[str, None] = {}
        for table in tables:
            if condition.key in _TABLE_KEYS:
                values |= dict.fromkeys(_TABLE_KEYS[condition.key](table).split(" + "))
            else:
                values |= dict.fromkeys(_ROW_KEYS[condition.key](row) for row in table.rows)
        known = sorted(value for value in values if value)
        if not any(map(condition.holds, known)):
            listed = ", ".join(known[:_MOST_VALUES])
            more = f" and {len(known) - _MOST_VALUES} more" if len(known) > _MOST_VALUES else ""
            hint = did_you_mean(condition.patterns[0], known)
            lines.append(
                f"--rows {condition.text}: no row fits.{hint} Values of {condition.key} here: "
                f"{listed or 'none'}{more}"
            )
    if not lines:
        texts = " ".join(f"--rows {condition.text}" for condition in conditions)
        lines = [f"{texts}: each fits some rows, but no row fits all of them"]
    return UserError("; ".join(lines))


def _condition(text: str) -> Condition:
    key, sign, patterns = text.partition("=")
    positive = not key.endswith("!")
    key = key.removesuffix("!").strip()
    if not sign or not patterns:
        raise UserError(f"--rows {text}: expected KEY=PATTERN or KEY!=PATTERN, as method=INTL*")
    if key not in _KEYS:
        hint = did_you_mean(key, _KEYS)
        raise UserError(f"--rows {text}: no key '{key}'.{hint} Known: {', '.join(_KEYS)}")
    words = tuple(pattern.strip() for pattern in patterns.split(","))
    if key == "source":
        words = tuple(ALIASES.get(word, word) for word in words)
    return Condition(key, positive, words, text)


def choose_columns(tables: Sequence[Table], selected: Sequence[str]) -> list[Table]:
    """Selects columns, in the given order; tables without any of them are dropped.

    Args:
        tables: any.
        selected: ``TASK.METRIC``, ``TASK`` (its usual columns) or ``METRIC`` (of all tasks).

    Raises:
        UserError: for a column that no table has.
    """
    if not selected:
        return list(tables)
    for text in selected:
        if not any(_fitting(table, text) for table in tables):
            names = _names(tables)
            hint = did_you_mean(text, names)
            raise UserError(
                f"--columns: no column '{text}'.{hint} Known: {', '.join(names) or 'none'}"
            )
    chosen = []
    for table in tables:
        shown: list[Column] = []
        for text in selected:
            shown += [column for column in _fitting(table, text) if column not in shown]
        # Columns of a group are adjacent.
        order = list(dict.fromkeys(task for task, _ in shown))
        shown.sort(key=lambda column: order.index(column[0]))
        rows = [row for row in table.rows if any(column in row.metrics for column in shown)]
        if shown and rows:
            tasks = tuple(order)
            chosen.append(dataclasses.replace(table, rows=rows, shown=tuple(shown), tasks=tasks))
    return chosen


def _fitting(table: Table, text: str) -> list[Column]:
    """The columns of a table that a name selects."""
    present = {column for row in table.rows for column in row.metrics}
    if text in table.tasks:
        return [column for column in table.columns() if column[0] == text]
    task, _, metric = text.rpartition(".")
    tasks = [task] if task else table.tasks
    return [(name, metric) for name in tasks if (name, metric) in present]


def _names(tables: Sequence[Table]) -> list[str]:
    columns = {column for table in tables for row in table.rows for column in row.metrics}
    tasks = {task for table in tables for task in table.tasks}
    metrics = {metric for _, metric in columns}
    return [*sorted(tasks), *sorted(f"{t}.{m}" for t, m in columns), *sorted(metrics)]


def sort_rows(tables: Sequence[Table], by: str | None, reverse: bool = False) -> list[Table]:
    """Sorts rows; published rows follow measured ones.

    Args:
        tables: any.
        by: ``method`` or ``pretraining`` (alphabetical), ``n``, or a column (highest first; missing
            values last); None keeps the order.
        reverse: reverse the order.

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
            return _ROW_KEYS[by](row).casefold()

        rows = sorted(table.rows, key=text, reverse=reverse)
    else:
        column = next(iter(_fitting(table, by)), None)

        def highest_first(row: Row) -> tuple[bool, float]:
            if by == "n":
                return False, (row.n if reverse else -row.n)
            summary = row.metrics.get(column) if column else None
            mean = summary.mean if summary else 0.0
            return summary is None, (mean if reverse else -mean)

        rows = sorted(table.rows, key=highest_first)
    return sorted(rows, key=lambda row: row.published)
