"""Statistical power: differences that a number of seeds resolves, and seeds that are needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from intl_transfer.results.rounding import rounded
from intl_transfer.results.rows import Column, Row, Table
from intl_transfer.results.statistics import Summary, compare_summaries

ALPHA, POWER = 0.05, 0.8
#: Maximum number of repetitions considered.
_MOST = 1000
#: Differences of AP or top-1, in points, for which needed repetitions are shown.
DIFFERENCES = (0.1, 0.2, 0.5, 1.0, 2.0)
#: The metric of a task that is tested, and whose highest is bold; others are descriptive.
PRIMARY = ("AP", "top-1", "top1")


def primary_columns(table: Table) -> list[Column]:
    """The tested column of each task: AP, top-1, or the task's first metric.

    If all columns of a task are one primary metric (top-1 by epochs of pretraining), all are
    tested. It does not depend on the selection of columns.
    """
    found = []
    for task in table.tasks:
        if table.headings.get(task) in PRIMARY:
            found += [(task, metric) for metric in table.metrics.get(task, ())]
            continue
        metrics = list(table.metrics.get(task, ())) or sorted(
            {metric for row in table.rows for name, metric in row.metrics if name == task}
        )
        known = [metric for metric in PRIMARY if metric in metrics]
        if known or metrics:
            found.append((task, (known or metrics)[0]))
    return found


def summaries_of(rows: Sequence[Row], column: Column) -> list[Summary]:
    """A column's summaries of the rows that are compared."""
    return [row.metrics[column] for row in rows if row.compared and column in row.metrics]


def pooled_spread(summaries: Sequence[Summary]) -> tuple[float, int] | None:
    """The pooled standard deviation of rows, and its degrees of freedom.

    Args:
        summaries: of one column; single runs do not contribute.

    Returns:
        ``sqrt(sum (n_i - 1) s_i^2 / sum (n_i - 1))`` and ``sum (n_i - 1)``; None without spread.
    """
    known = [(s.n - 1, s.std) for s in summaries if s.std is not None and s.n > 1]
    freedom = sum(count for count, _ in known)
    if not freedom:
        return None
    spread = math.sqrt(sum(count * std * std for count, std in known) / freedom)
    return (spread, freedom) if spread > 0 else None


def paired_spread(summaries: Sequence[Summary]) -> tuple[float, int, int] | None:
    """The spread over seeds of the differences of rows with the same seeds, pooled over pairs.

    What rows of one seed share cancels in their differences, so rows that spread by points can
    differ by tenths that are found.

    Args:
        summaries: of one column.

    Returns:
        Standard deviation of a difference, number of pairs of rows, fewest seeds; None if no rows
        are tested in pairs.
    """
    tests = [compare_summaries(*pair) for pair in combinations(summaries, 2)]
    found = [test for test in tests if test is not None and test.test == "paired"]
    if not found:
        return None
    squares = sum((test.n - 1) * test.n * test.error**2 for test in found)
    spread = math.sqrt(squares / sum(test.n - 1 for test in found))
    return spread, len(found), min(test.n for test in found)


@dataclass(frozen=True)
class _Design:
    """A test of two rows of n repetitions: degrees of freedom, and error for a spread of 1."""

    freedom: int
    error: float


def _design(n: int, paired: bool) -> _Design:
    return _Design(n - 1, math.sqrt(1 / n)) if paired else _Design(2 * n - 2, math.sqrt(2 / n))


def resolvable(spread: float, n: int, paired: bool = False) -> float:
    """The smallest difference of two rows that a two-sided t test at 5 % finds.

    Args:
        spread: standard deviation of single runs; of their differences over seeds if paired.
        n: repetitions of each row, at least 2.
        paired: whether the rows have the same seeds.

    Returns:
        Half of the interval of a difference: ``t(0.975; 2 n - 2) spread sqrt(2 / n)``; if paired,
        ``t(0.975; n - 1) spread sqrt(1 / n)``.
    """
    from scipy import stats

    design = _design(n, paired)
    return float(stats.t.ppf(1 - ALPHA / 2, design.freedom)) * spread * design.error


def power(
    difference: float, spread: float, n: int, alpha: float = ALPHA, paired: bool = False
) -> float:
    """The power of a two-sided t test of two rows of n repetitions.

    Args:
        difference: of the true means.
        spread: standard deviation of single runs, the same in both rows; of their differences over
            seeds if paired.
        n: repetitions of each row, at least 2.
        alpha: level of the test.
        paired: whether the rows have the same seeds.

    Returns:
        The power, by the noncentral t distribution with ``2 n - 2`` degrees of freedom (``n - 1``
        if paired) and noncentrality ``difference / (spread sqrt(2 / n))`` (``sqrt(1 / n)``).
    """
    from scipy import stats

    design = _design(n, paired)
    freedom, shift = design.freedom, difference / (spread * design.error)
    limit = stats.t.ppf(1 - alpha / 2, freedom)
    above = float(stats.nct.sf(limit, freedom, abs(shift)))
    below = float(stats.nct.cdf(-limit, freedom, abs(shift)))
    # For extreme values SciPy's noncentral t fails: there one tail is 0, the other 1.
    return (1.0 if math.isnan(above) else above) + (0.0 if math.isnan(below) else below)


def runs_needed(
    difference: float,
    spread: float,
    target: float = POWER,
    alpha: float = ALPHA,
    paired: bool = False,
) -> int | None:
    """Repetitions of each of two rows needed to detect a true difference with a given power.

    Args:
        difference: of the true means, not zero.
        spread: standard deviation of single runs; of their differences over seeds if paired.
        target: the power, from 0 to 1.
        alpha: level of the test.
        paired: whether the rows have the same seeds.

    Returns:
        The smallest number; None for more than a thousand.
    """
    if power(difference, spread, _MOST, alpha, paired) < target:
        return None
    low, high = 1, _MOST  # low is too few, high is enough
    while high - low > 1:
        middle = (low + high) // 2
        if middle > 1 and power(difference, spread, middle, alpha, paired) >= target:
            high = middle
        else:
            low = middle
    return high


def power_report(tables: Sequence[Table]) -> str:
    """For each table and tested column: its spread, resolved differences, needed repetitions.

    One line for rows with seeds of their own, whose spread is that of single runs, and one for rows
    with the same seeds, whose spread is that of their differences.

    Args:
        tables: only rows that are compared are used: measured, and no controls.
    """
    from tabulate import tabulate

    lines: list[list[str]] = []
    for table in tables:
        for column in primary_columns(table):
            name = f"{table.heading(column[0])} {column[1]}, {table.title}"
            summaries = summaries_of(table.rows, column)
            if (pooled := pooled_spread(summaries)) is not None:
                spread, freedom = pooled
                fewest = min(s.n for s in summaries if s.n > 1)
                lines.append(_line([name, "Welch's"], spread, f"{freedom} d.f.", fewest, False))
            if (differences := paired_spread(summaries)) is not None:
                spread, pairs, fewest = differences
                count = f"{pairs} {'pair' if pairs == 1 else 'pairs'} of rows"
                lines.append(_line([name, "paired"], spread, count, fewest, True))
    if not lines:
        return "no column with two runs of one row: the spread over seeds is unknown"
    heads = ["column", "test", "spread", "n", "resolved", *(f"n for {d:g}" for d in DIFFERENCES)]
    text = tabulate(lines, heads, tablefmt="github", disable_numparse=True)
    return (
        f"{text}\n\n"
        "spread: standard deviation over repetitions, pooled over the rows; for the paired test, "
        "of the differences of rows with the same seeds, pooled over pairs of rows. resolved: the "
        "smallest difference of two rows with n repetitions that a two-sided t test at 5 % finds. "
        "n for D: repetitions of each row so that a true difference of D points is found in "
        f"{100 * POWER:.0f} % of the studies; of several rows against one baseline, Holm's "
        "correction asks for more."
    )


def _line(first: list[str], spread: float, known_by: str, n: int, paired: bool) -> list[str]:
    need = [runs_needed(difference, spread, paired=paired) for difference in DIFFERENCES]
    return [
        *first,
        f"{rounded(spread, 2)} ({known_by})",
        str(n),
        rounded(resolvable(spread, n, paired), 2),
        *("> 1000" if number is None else str(number) for number in need),
    ]
