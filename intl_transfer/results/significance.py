"""Claims about metrics: the highest of each column, and differences to a named baseline.

Rows without a significant difference are not marked, which with few seeds is nearly all of them.
Tests are against a user-specified baseline, in one predefined metric per task (AP, top-1), before
any selection: the columns, rows or layout shown do not affect the claims. Rows at a learning rate
that was selected on the tested metric pay for it: their p values are multiplied by the number of
rates tried.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.results.power import primary_columns
from intl_transfer.results.rounding import rounded
from intl_transfer.results.rows import Column, Mark, Row, Table
from intl_transfer.results.statistics import (
    Comparison,
    TestMethod,
    compare_summaries,
    correct,
    level,
)

ALPHA = 0.05
_TESTS = {"paired": "paired over seeds", "welch": "Welch's"}


def compare_with_baseline(
    tables: Sequence[Table], baseline: str, method: TestMethod = "auto"
) -> list[Table]:
    """Tests every measured row against one, in the primary metric of each task.

    The family of Holm's correction is the rows of one such column. Published rows are excluded,
    since their single runs are unknown, and so are controls.

    Args:
        tables: all of their rows, with the names that are shown.
        baseline: name of the row that others are tested against, or a pattern of ``METHOD
            (DETAIL)``. A table in which it has another name has the row of the same
            initialization.
        method: of the tests.

    Returns:
        New tables, with :attr:`intl_transfer.results.rows.Mark.comparison`, and the baseline's
        label.

    Raises:
        UserError: if no row, or several rows of one table, match the baseline.
    """
    named = [_baseline(table, baseline) for table in tables]
    keys = {row.start_key for row in named if row is not None}
    names = sorted({row.title for table in tables for row in table.rows if row.compared})
    if names and not keys:
        raise UserError(
            f"--baseline: no measured row '{baseline}'.{did_you_mean(baseline, names)} "
            f"Measured: {', '.join(names)}"
        )
    chosen = [
        _only(table, baseline, [other for other in table.rows if other.start_key in keys])
        if row is None
        else row
        for table, row in zip(tables, named, strict=True)
    ]
    return [_compared(table, row, method) for table, row in zip(tables, chosen, strict=True)]


def _compared(table: Table, chosen: Row | None, method: TestMethod) -> Table:
    measured = [row for row in table.rows if row.compared]
    found: dict[int, dict[Column, Mark]] = {}
    for column in primary_columns(table):
        if chosen is None:
            break
        tests = [(row, _compare(row, chosen, column, method)) for row in measured]
        done = [(row, test) for row, test in tests if row is not chosen and test is not None]
        family = correct([test for _, test in done])
        for (row, _), comparison in zip(done, family, strict=True):
            found.setdefault(id(row), {})[column] = Mark(comparison=comparison)
    rows = [
        dataclasses.replace(row, marks=found.get(id(row), {}), baseline=row is chosen)
        for row in table.rows
    ]
    return dataclasses.replace(table, rows=rows, baseline=_named(chosen) if chosen else "")


def mark_best(tables: Sequence[Table], baseline: str | None = None) -> list[Table]:
    """Marks the highest mean of each shown primary column, and adds legends.

    Args:
        tables: after selection.
        baseline: as given to :func:`compare_with_baseline`.
    """
    return [_marked(table, baseline) for table in tables]


def _marked(table: Table, baseline: str | None) -> Table:
    measured = [row for row in table.rows if row.compared]
    best = _best(table, measured)
    rows = []
    for row in table.rows:
        marks = dict(row.marks)
        for column, mean in best.items():
            summary = row.metrics.get(column)
            if not row.compared or summary is None:
                continue
            if level(summary.mean) == mean:
                alone = summary.n == 1 and _most(measured, column) > 1
                mark = marks.get(column, Mark())
                marks[column] = dataclasses.replace(mark, best=True, alone=alone)
        rows.append(dataclasses.replace(row, marks=_of_chosen(table, row, marks)))
    legend = [*table.legend, *_of_best(table, rows), *_of_single_runs(rows)]
    if baseline is not None and measured:
        legend += _of_comparisons(table, rows, baseline)
    return dataclasses.replace(table, rows=rows, legend=tuple(legend))


def _best(table: Table, rows: Sequence[Row]) -> dict[Column, float]:
    """The highest mean of each shown primary column, if rows differ."""
    best = {}
    shown = table.columns()
    for column in primary_columns(table):
        if column not in shown:
            continue
        means = {level(row.metrics[column].mean) for row in rows if column in row.metrics}
        if len(means) > 1:
            best[column] = max(means)
    return best


def _most(rows: Sequence[Row], column: Column) -> int:
    """The maximum number of repetitions in a column."""
    return max((row.metrics[column].n for row in rows if column in row.metrics), default=0)


def _of_chosen(table: Table, row: Row, marks: dict[Column, Mark]) -> dict[Column, Mark]:
    """Marks a row whose learning rate was chosen from one run, with several at another rate."""
    for column in primary_columns(table):
        if row.chosen_over.get(column, 0) > 1 and row.metrics[column].n == 1:
            marks[column] = dataclasses.replace(marks.get(column, Mark()), alone=True)
    return marks


def _of_best(table: Table, rows: Sequence[Row]) -> list[str]:
    """The legend of bold."""
    bold = {column for row in rows for column, mark in row.marks.items() if mark.best}
    columns = [column for column in table.columns() if column in bold]
    if not columns:
        return []
    of = _names(table, columns).removeprefix("each of ")
    among = f" among the rows shown ({table.hidden} not shown)" if table.hidden else ""
    return [
        f"Bold: highest measured mean of {of}{among}, the primary metric of each task; no test."
    ]


def _of_single_runs(rows: Sequence[Row]) -> list[str]:
    """The legend of the mark for single runs."""
    alone = [(row.name, mark.best) for row in rows for mark in row.marks.values() if mark.alone]
    names = {
        "Highest by a single run, beside means of several": [n for n, best in alone if best],
        "Learning rate chosen by a single run, over means of several": [
            row.name
            for row in rows
            if any(
                mark.alone and row.chosen_over.get(column, 0) > 1
                for column, mark in row.marks.items()
            )
        ],
    }
    return [f"†: {words}: {', '.join(dict.fromkeys(n))}." for words, n in names.items() if n]


def _baseline(table: Table, name: str) -> Row | None:
    """The row that a table shows under a name; None if there is none."""
    rows = [row for row in table.rows if row.compared]
    # As it is shown, with its kind, before what several rows have in common.
    found = (
        [row for row in rows if name == row.title]
        or [row for row in rows if name == row.full_title]
        or [row for row in rows if name in (row.method, row.name, row.label)]
        or [row for row in rows if fnmatchcase(row.full_title, name)]
    )
    return _only(table, name, found)


def _only(table: Table, name: str, found: Sequence[Row]) -> Row | None:
    if len(found) > 1:
        raise UserError(
            f"--baseline: '{name}' fits {len(found)} rows of the table '{table.title}': "
            f"{'; '.join(row.full_title for row in found)}. Give one of these in full"
        )
    return found[0] if found else None


def _compare(first: Row, second: Row, column: Column, method: TestMethod) -> Comparison | None:
    if column not in first.metrics or column not in second.metrics:
        return None
    found = compare_summaries(first.metrics[column], second.metrics[column], method)
    tried = first.tried.get(column, 1) * second.tried.get(column, 1)
    return None if found is None else dataclasses.replace(found, tried=tried)


def _named(row: Row) -> str:
    """A baseline, named as rows are that are none."""
    return dataclasses.replace(row, baseline=False).full_title


def _of_comparisons(table: Table, rows: Sequence[Row], baseline: str) -> list[str]:
    """The legend of the tests: comparison, family, and resolution."""
    if not table.baseline:
        return [f"No row of the baseline '{baseline}' in this table."]
    # Under the name that is shown, which a names file may have changed since.
    shown = next((_named(row) for row in rows if row.baseline), f"{table.baseline}, not shown")
    columns = [column for column in primary_columns(table) if column in table.columns()]
    if not columns:
        return [f"No column shown is tested against {shown}: tests are of the primary metrics."]
    tests = {
        column: [c for row in rows if (c := _comparison(row, column)) is not None]
        for column in columns
    }
    tested = [column for column in columns if tests[column]]
    if not tested:
        return [
            f"No row could be tested against {shown}: a test takes two runs on each side, with "
            "some spread."
        ]
    kinds = {c.test for column in tested for c in tests[column]}
    sizes = {column: tests[column][0].family for column in tested}
    over = " and ".join(
        f"the {size} {'row' if size == 1 else 'rows'} of {_names(table, same)}"
        for size in sorted(set(sizes.values()))
        if (same := [column for column in tested if sizes[column] == size])
    )
    tried = [c.tried for column in tested for c in tests[column]]
    selection = (
        f"p times the pairs of learning rates tried ({_range(tried)}), " if max(tried) > 1 else ""
    )
    lines = [
        f"↑, ↓: significantly above, below {shown} (p ≤ {ALPHA:g}, two-sided t test, "
        f"{' and '.join(_TESTS[kind] for kind in sorted(kinds))}, {selection}Holm over {over}); "
        "other metrics are not tested. No mark says nothing."
    ]
    if selection:
        lines.append("Differences and their intervals are not corrected for the choice of rates.")
    limits = [_limit(table, column, tests[column]) for column in tested]
    return [*lines, f"{'; '.join(limits)}."]


def _comparison(row: Row, column: Column) -> Comparison | None:
    mark = row.marks.get(column)
    return None if mark is None else mark.comparison


def _names(table: Table, columns: Sequence[Column]) -> str:
    names = [f"{table.heading(task)} {metric}" for task, metric in columns]
    return names[0] if len(names) == 1 else f"each of {', '.join(names)}"


def _limit(table: Table, column: Column, tests: Sequence[Comparison]) -> str:
    """The differences that the tests of a column could not have found.

    Half of each test's own interval: a smaller difference has no mark, whatever the correction.
    """
    points = [test.resolution for test in tests]
    digits = 1 if min(points) >= 0.05 else math.ceil(-math.log10(min(points)))
    low, high = rounded(min(points), digits), rounded(max(points), digits)
    below = low if low == high else f"{low} to {high}, depending on the row,"
    what = _names(table, [column])
    return (
        f"n = {_range([t.n for t in tests])}: differences of {what} below {below} are not resolved"
    )


def _range(numbers: Sequence[int]) -> str:
    """``3``, or ``3-5``."""
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low}-{high}"
