"""Statistics over seeds: spread, intervals, tests, and correction for multiple tests."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from intl_transfer.errors import require_choice

IntervalMethod = Literal["t", "bootstrap"]
TestMethod = Literal["auto", "paired", "welch"]
_RESAMPLES = 9999
# Smaller differences of percentages are rounding errors.
_DECIMALS = 9
_NO_SPREAD = 10.0**-_DECIMALS


@dataclass(frozen=True)
class Summary:
    """Mean and spread of one metric over runs.

    Attributes:
        mean: arithmetic mean.
        std: sample standard deviation (divisor n - 1); None for a single run.
        n: number of repetitions: runs, or pretrainings if several were fine-tuned.
        values: one per repetition; empty if only the summary is known.
        seeds: of the repetitions, if known.
        each: number of runs per pretraining, if pretrainings are the repetitions; each value is
            then a mean of runs.
    """

    mean: float
    std: float | None
    n: int
    values: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    each: tuple[int, ...] = ()

    @property
    def count(self) -> str:
        """The number of repetitions: ``5``, ``3 pretrainings × 2``; "" if unknown."""
        if not self.each:
            return self.short_count
        words = "pretraining" if self.n == 1 else "pretrainings"
        return self.short_count.replace(str(self.n), f"{self.n} {words}", 1)

    @property
    def short_count(self) -> str:
        """:attr:`count`, short for a cell: ``5``, ``3 × 2``."""
        low, high = min(self.each, default=1), max(self.each, default=1)
        times = "" if high == 1 else f" × {low}" if low == high else f" × {low}-{high}"
        return f"{self.n}{times}" if self.n else ""

    @property
    def runs(self) -> int:
        """Number of runs."""
        return sum(self.each) if self.each else self.n

    def interval(
        self, method: IntervalMethod = "t", level: float = 0.95
    ) -> tuple[float, float] | None:
        """A confidence interval of the mean.

        Args:
            method: ``"t"``, Student's with n - 1 degrees of freedom, or ``"bootstrap"``,
                percentiles of 9,999 resampled means from a fixed seed. With few seeds the bootstrap
                interval is too narrow; it is provided for comparison with papers that use it.
            level: its coverage, between 0 and 1.

        Returns:
            Lower and upper end, or None for a single run or unknown values.

        Raises:
            UserError: for an unknown method.
            ValueError: for a level that is no fraction.
        """
        require_choice("interval", method, get_args(IntervalMethod))
        if not 0 < level < 1:
            raise ValueError(f"level is {level!r}; expected a fraction, 0.95 for 95 %")
        if self.n < 2 or len(self.values) != self.n or self.std is None:
            return None
        if self.std == 0:
            return self.mean, self.mean
        from scipy import stats

        if method == "t":
            half = float(stats.t.ppf((1 + level) / 2, self.n - 1)) * self.std / math.sqrt(self.n)
            return self.mean - half, self.mean + half
        found = stats.bootstrap(
            (np.asarray(self.values),),
            np.mean,
            confidence_level=level,
            n_resamples=_RESAMPLES,
            method="percentile",
            random_state=np.random.default_rng(0),  # also supported by SciPy before 1.15
        ).confidence_interval
        return float(found.low), float(found.high)


def level(mean: float) -> float:
    """A mean in the digits by which means are compared: rounding errors do not break a tie."""
    return round(mean, _DECIMALS)


@dataclass(frozen=True)
class Comparison:
    """A two-sided test of two rows' means.

    Attributes:
        difference: of the means.
        p: its p value.
        p_holm: corrected for the rates tried, and by Holm over a column's rows; None before.
        test: ``"paired"`` or ``"welch"``.
        low: lower end of the difference's 95 % interval, by the same test, not corrected.
        high: its upper end.
        family: number of comparisons in Holm's correction; 0 before.
        n: repetitions of the smaller side, or pairs.
        error: standard error of the difference.
        tried: the pairs of learning rates of which this one was selected, by which p is multiplied
            before Holm's correction.
    """

    difference: float
    p: float
    test: str
    p_holm: float | None = None
    low: float = math.nan
    high: float = math.nan
    family: int = 0
    n: int = 0
    error: float = math.nan
    tried: int = 1

    @property
    def resolution(self) -> float:
        """The smallest difference that it would find without correction: half of its interval."""
        return (self.high - self.low) / 2

    def significant(self, alpha: float = 0.05) -> bool:
        """Whether the corrected p value is at most alpha."""
        return self.p_holm is not None and self.p_holm <= alpha


def summarize(values: Sequence[float | None], seeds: Sequence[int] | None = None) -> Summary | None:
    """Mean, sample standard deviation and number of the available values.

    Args:
        values: one per run; None if missing.
        seeds: of the runs, for paired tests.

    Returns:
        The summary, or None if no run has a value.

    Raises:
        ValueError: if a value is NaN or infinite, or there are not as many seeds as values.
    """
    if seeds and len(seeds) != len(values):
        raise ValueError(f"expected one seed for each value, found {len(seeds)} of {len(values)}")
    present = tuple(float(value) for value in values if value is not None)
    if not present:
        return None
    if not all(map(math.isfinite, present)):
        raise ValueError(f"metrics must be finite, found {list(present)}")
    kept = tuple(s for s, v in zip(seeds or (), values, strict=False) if v is not None)
    mean = math.fsum(present) / len(present)
    if len(present) == 1:
        return Summary(mean, None, 1, present, kept)
    variance = math.fsum((value - mean) ** 2 for value in present) / (len(present) - 1)
    return Summary(mean, math.sqrt(variance), len(present), present, kept)


def summarize_pretrainings(
    runs: Sequence[tuple[str, int | None, float | None]],
) -> Summary | None:
    """Summarizes means per pretraining; pretrainings are the repetitions.

    Args:
        runs: per run: its pretraining, that one's seed if known, the value or None.

    Returns:
        The summary over pretrainings, or None if no run has a value.
    """
    values: dict[str, list[float]] = {}
    seeds: dict[str, int | None] = {}
    for name, seed, value in runs:
        if value is not None:
            values.setdefault(name, []).append(value)
            seeds[name] = seed
    means = [math.fsum(found) / len(found) for found in values.values()]
    known = [seed for seed in seeds.values() if seed is not None]
    summary = summarize(means, known if len(known) == len(means) else ())
    if summary is None:
        return None
    return dataclasses.replace(summary, each=tuple(len(found) for found in values.values()))


def compare(
    first: Sequence[tuple[int, float]],
    second: Sequence[tuple[int, float]],
    method: TestMethod = "auto",
) -> Comparison | None:
    """Tests whether two rows' means differ.

    Args:
        first: (seed, value) of each run.
        second: of the other row.
        method: ``"paired"``: t test of the differences over the seeds that both have;
            ``"welch"``: of unequal variances, seeds ignored; ``"auto"``: paired if both rows have
            the same seeds, each once, otherwise Welch.

    Returns:
        The comparison, first minus second; None if it cannot be tested: fewer than two runs (or
        shared seeds) on a side, or zero spread.

    Raises:
        UserError: for an unknown method.
    """
    require_choice("test", method, get_args(TestMethod))
    seeds = [{seed for seed, _ in side} for side in (first, second)]
    once = len(seeds[0]) == len(first) and len(seeds[1]) == len(second)
    if method == "auto":
        method = "paired" if once and seeds[0] == seeds[1] else "welch"
    if method == "paired":
        shared = sorted(seeds[0] & seeds[1]) if once else []
        left, right = dict(first), dict(second)
        a = np.array([left[seed] for seed in shared])
        b = np.array([right[seed] for seed in shared])
        flat = len(a) < 2 or bool(np.ptp(a - b) < _NO_SPREAD)
    else:
        a = np.array([value for _, value in first])
        b = np.array([value for _, value in second])
        flat = min(len(a), len(b)) < 2 or bool(max(np.ptp(a), np.ptp(b)) < _NO_SPREAD)
    if flat:
        return None
    from scipy import stats

    if method == "paired":
        p = float(stats.ttest_rel(a, b).pvalue)
        error, freedom = float((a - b).std(ddof=1)) / math.sqrt(len(a)), len(a) - 1.0
    else:
        p = float(stats.ttest_ind(a, b, equal_var=False).pvalue)
        parts = [float(side.var(ddof=1)) / len(side) for side in (a, b)]
        error = math.sqrt(sum(parts))
        # Welch and Satterthwaite's degrees of freedom.
        below = sum(v * v / (len(side) - 1) for v, side in zip(parts, (a, b), strict=True))
        freedom = error**4 / below
    if not math.isfinite(p):
        return None
    difference = float(a.mean() - b.mean())
    half = float(stats.t.ppf(0.975, freedom)) * error
    ends = (difference - half, difference + half)
    return Comparison(difference, p, method, None, *ends, n=min(len(a), len(b)), error=error)


def compare_summaries(
    first: Summary, second: Summary, method: TestMethod = "auto"
) -> Comparison | None:
    """:func:`compare` of two rows' repetitions.

    Args:
        first: of one row.
        second: of the other row.
        method: of the test. Pretrainings and fine-tunings, whose seeds are not the same, and
            repetitions without known seeds are not paired.

    Returns:
        The comparison, first minus second; None if it cannot be tested.
    """
    sides = (first, second)
    if len({bool(side.each) for side in sides}) > 1 or not all(side.seeds for side in sides):
        if method == "paired":
            return None
        method = "welch"
    a, b = (list(zip(side.seeds or range(side.n), side.values, strict=True)) for side in sides)
    return compare(a, b, method)


def correct(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Comparisons of one family, corrected for selection and for multiple tests.

    A selected pair of learning rates has at best the smallest p value of all pairs: times their
    number (Bonferroni), it is a p value again, which Holm's correction takes.

    Args:
        comparisons: of the rows of one column.
    """
    values = holm([min(1.0, one.tried * one.p) for one in comparisons])
    return [
        dataclasses.replace(one, p_holm=p, family=len(comparisons))
        for one, p in zip(comparisons, values, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p values for a family of tests.

    Args:
        p_values: of one family of tests.

    Returns:
        The corrected ones, in the same order, at most 1.

    Raises:
        ValueError: if one is no probability, such as the NaN of a test that cannot be made.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p values must be from 0 to 1, found {list(p_values)}")
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        corrected[index] = min(1.0, largest)
    return corrected
