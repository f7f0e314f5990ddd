"""Which figures differ: from the best of their column, and from a baseline."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.results.rows import Column, Mark, Row, Table
from intl_transfer.results.statistics import Comparison, TestMethod, compare, holm

ALPHA = 0.05


def mark_tables(
    tables: Sequence[Table], baseline: str | None = None, method: TestMethod = "auto"
) -> list[Table]:
    """Marks the best of each column, what is not significantly different, and the baseline's tests.

    Published rows take no part: their single figures are not known.

    Args:
        tables: as they will be shown.
        baseline: method of the row that others are tested against, or a pattern of ``METHOD
            (DETAIL)``; None tests against no baseline.
        method: of the tests.

    Returns:
        New tables, rows marked.

    Raises:
        UserError: if no table, or several rows of one, fit the baseline.
    """
    marked = [_marked(table, baseline, method) for table in tables]
    if baseline is not None and not any(row.baseline for t in marked for row in t.rows):
        names = sorted({r.name for t in tables for r in t.rows if not r.published})
        raise UserError(
            f"--baseline: no measured row '{baseline}'.{did_you_mean(baseline, names)} "
            f"Measured: {', '.join(names) or 'none'}"
        )
    return marked


def _marked(table: Table, baseline: str | None, method: TestMethod) -> Table:
    measured = [row for row in table.rows if not row.published]
    chosen = None if baseline is None else _baseline(table, measured, baseline)
    best = _best(table, measured)
    against_best = _corrected(
        (id(row), column, _compare(measured[best[column]], row, column, method))
        for column in best
        for row in measured
        if row is not measured[best[column]]
    )
    against_baseline = _corrected(
        (id(row), column, _compare(row, chosen, column, method))
        for row in measured
        if chosen is not None and row is not chosen
        for column in table.columns()
    )
    rows = []
    for row in table.rows:
        marks: dict[Column, Mark] = {}
        for column in table.columns():
            is_best = column in best and not row.published and _as_good(row, best, measured, column)
            tied = against_best.get((id(row), column))
            comparison = against_baseline.get((id(row), column))
            if is_best or tied or comparison:
                is_tied = tied is not None and not tied.significant(ALPHA)
                marks[column] = Mark(is_best, is_tied, comparison)
        rows.append(dataclasses.replace(row, marks=marks, baseline=row is chosen))
    legend = _legend(rows, chosen, len(against_best), len(against_baseline))
    if baseline is not None and chosen is None and measured:
        legend = (*legend, f"No row of the baseline '{baseline}' in this table.")
    return dataclasses.replace(table, rows=rows, legend=(*table.legend, *legend))


def _baseline(table: Table, rows: Sequence[Row], name: str) -> Row | None:
    found = [row for row in rows if name in (row.method, row.name, row.label)]
    found = [row for row in found if row.name == name] or found
    found = found or [row for row in rows if fnmatchcase(row.label, name)]
    if len(found) > 1:
        raise UserError(
            f"--baseline: '{name}' fits {len(found)} rows of the table '{table.title}': "
            f"{'; '.join(row.label for row in found)}. Give one of these in full"
        )
    return found[0] if found else None


def _best(table: Table, rows: Sequence[Row]) -> dict[Column, int]:
    """By column, the row with the highest mean, where the rows differ."""
    best = {}
    for column in table.columns():
        means = {i: r.figures[column].mean for i, r in enumerate(rows) if column in r.figures}
        if len(set(means.values())) > 1:
            best[column] = max(means, key=lambda index: means[index])
    return best


def _as_good(row: Row, best: dict[Column, int], rows: Sequence[Row], column: Column) -> bool:
    """Whether a row's mean is the best, alone or as one of several equal ones."""
    figure = row.figures.get(column)
    return figure is not None and figure.mean == rows[best[column]].figures[column].mean


def _compare(first: Row, second: Row, column: Column, method: TestMethod) -> Comparison | None:
    sides = [side for row in (first, second) if (side := row.figures.get(column)) is not None]
    if len({bool(side.each) for side in sides}) > 1 or any(not side.seeds for side in sides):
        # Pretrainings on one side, fine-tunings on the other: their seeds are no pairs.
        if method == "paired":
            return None
        method = "welch"
    return compare(_values(first, column), _values(second, column), method)


def _values(row: Row, column: Column) -> list[tuple[int, float]]:
    """(seed, figure) of every run that has the figure."""
    summary = row.figures.get(column)
    if summary is None:
        return []
    return list(zip(summary.seeds or range(summary.n), summary.values, strict=True))


def _corrected(
    tests: Iterable[tuple[int, Column, Comparison | None]],
) -> dict[tuple[int, Column], Comparison]:
    """Holm's correction over one family: what could be tested, by row and column."""
    done = [(row, column, test) for row, column, test in tests if test is not None]
    corrected = holm([test.p for _, _, test in done])
    return {
        (row, column): dataclasses.replace(test, p_holm=p)
        for (row, column, test), p in zip(done, corrected, strict=True)
    }


def _legend(
    rows: Sequence[Row], chosen: Row | None, with_best: int, with_baseline: int
) -> tuple[str, ...]:
    lines = []
    marks = [mark for row in rows for mark in row.marks.values()]
    if any(mark.tied for mark in marks):
        lines.append(
            f"≈: not significantly different from the best of its column (p > {ALPHA:g}, two-sided "
            f"t test, Holm over {with_best} tests of this table; single runs are not tested)."
        )
    if chosen is not None:
        tests = {m.comparison.test for m in marks if m.comparison}
        names = {"paired": "paired over seeds", "welch": "Welch"}
        kinds = " and ".join(names[test] for test in sorted(tests))
        lines.append(
            f"↑, ↓: significantly above, below {chosen.label} (p ≤ {ALPHA:g}, two-sided t test, "
            f"{kinds}, Holm over {with_baseline} tests of this table)."
            if tests
            else f"No row could be tested against {chosen.label}: a test takes two runs on each "
            "side, with some spread."
        )
    return tuple(lines)
