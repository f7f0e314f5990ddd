"""Statistical power: differences that a number of seeds resolves, and seeds that are needed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from intl_transfer.results.rounding import rounded
from intl_transfer.results.rows import Column, Row, Table
from intl_transfer.results.statistics import Summary

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


def resolvable(spread: float, freedom: int, n: int) -> float:
    """The smallest difference of two rows that a two-sided t test at 5 % finds.

    Args:
        spread: standard deviation of single runs, pooled.
        freedom: its degrees of freedom.
        n: repetitions of each row.

    Returns:
        ``t(0.975; freedom) spread sqrt(2 / n)``: half of the interval of a difference.
    """
    from scipy import stats

    return float(stats.t.ppf(1 - ALPHA / 2, freedom)) * spread * math.sqrt(2 / n)


def power(difference: float, spread: float, n: int, alpha: float = ALPHA) -> float:
    """The power of a two-sided t test of two rows of n repetitions.

    Args:
        difference: of the true means.
        spread: standard deviation of single runs, the same in both rows.
        n: repetitions of each row, at least 2.
        alpha: level of the test.

    Returns:
        The power, by the noncentral t distribution with ``2 n - 2`` degrees of freedom and
        noncentrality ``difference / (spread sqrt(2 / n))``.
    """
    from scipy import stats

    freedom, shift = 2 * n - 2, difference / (spread * math.sqrt(2 / n))
    limit = stats.t.ppf(1 - alpha / 2, freedom)
    above = float(stats.nct.sf(limit, freedom, abs(shift)))
    below = float(stats.nct.cdf(-limit, freedom, abs(shift)))
    # For extreme values SciPy's noncentral t fails: there one tail is 0, the other 1.
    return (1.0 if math.isnan(above) else above) + (0.0 if math.isnan(below) else below)


def runs_needed(
    difference: float, spread: float, target: float = POWER, alpha: float = ALPHA
) -> int | None:
    """Repetitions of each of two rows needed to detect a true difference with a given power.

    Args:
        difference: of the true means, not zero.
        spread: standard deviation of single runs.
        target: the power, from 0 to 1.
        alpha: level of the test.

    Returns:
        The smallest number; None for more than a thousand.
    """
    if power(difference, spread, _MOST, alpha) < target:
        return None
    low, high = 1, _MOST  # low is too few, high is enough
    while high - low > 1:
        middle = (low + high) // 2
        if middle > 1 and power(difference, spread, middle, alpha) >= target:
            high = middle
        else:
            low = middle
    return high


def power_report(tables: Sequence[Table]) -> str:
    """For each table and tested column: its spread, resolved differences, needed repetitions.

    Args:
        tables: only rows that are compared are used: measured, and no controls.
    """
    from tabulate import tabulate

    lines: list[list[str]] = []
    for table in tables:
        for column in primary_columns(table):
            summaries = summaries_of(table.rows, column)
            found = pooled_spread(summaries)
            if found is None:
                continue
            spread, freedom = found
            fewest = min(s.n for s in summaries if s.n > 1)
            need = [runs_needed(difference, spread) for difference in DIFFERENCES]
            lines.append(
                [
                    f"{table.heading(column[0])} {column[1]}, {table.title}",
                    f"{rounded(spread, 2)} ({freedom} d.f.)",
                    str(fewest),
                    rounded(resolvable(spread, freedom, fewest), 2),
                    *("> 1000" if number is None else str(number) for number in need),
                ]
            )
    if not lines:
        return "no column with two runs of one row: the spread over seeds is unknown"
    heads = ["column", "spread", "n", "resolved", *(f"n for {d:g}" for d in DIFFERENCES)]
    text = tabulate(lines, heads, tablefmt="github", disable_numparse=True)
    return (
        f"{text}\n\n"
        "spread: standard deviation over repetitions, pooled over the rows. resolved: the smallest "
        "difference of two rows with n repetitions that a two-sided t test at 5 % finds. n for D: "
        f"repetitions of each row so that a true difference of D points is found in "
        f"{100 * POWER:.0f} % of the studies; of several rows against one baseline, Holm's "
        "correction asks for more."
    )
