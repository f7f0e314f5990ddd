from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from intl_transfer.results.statistics import Summary, compare, correct, holm, summarize

patient = settings(deadline=None)  # SciPy's first call takes a while
figure = st.floats(0, 100).map(lambda value: round(value, 4))
several = st.lists(figure, min_size=2, max_size=12)
spread = several.filter(lambda values: np.ptp(values) > 1e-3)


@patient
@given(several)
def test_mean_and_deviation_are_numpys(values):
    summary = summarize([*values, None], range(len(values) + 1))
    assert summary.n == len(values) == len(summary.seeds)
    assert summary.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert summary.std == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    assert summary.values == tuple(values)


def test_few_values():
    assert summarize([]) is None
    assert summarize([None, None]) is None
    assert summarize([3.0]).std is None
    assert summarize([3.0]).interval() is None
    assert summarize([3.0, 3.0]).interval() == (3.0, 3.0)
    # Published: a mean and a deviation, the figures not known.
    assert Summary(57.0, 0.2, 5).interval() is None
    assert summarize([None, 2.0, 4.0], [7, 8, 9]).seeds == (8, 9)
    with pytest.raises(ValueError, match="finite"):
        summarize([1.0, math.nan])


@patient
@given(spread, st.sampled_from([0.9, 0.95, 0.99]))
def test_t_interval_is_scipys(values, level):
    expected = stats.ttest_1samp(values, 0).confidence_interval(level)
    assert summarize(values).interval("t", level) == pytest.approx(tuple(expected), abs=1e-6)


def test_t_interval_of_two_values_by_hand():
    # t(0.975, 1) = 12.706; half-width 12.706 * s / sqrt(2) with s = sqrt(2) is 12.706.
    low, high = summarize([10.0, 12.0]).interval("t")
    assert (low, high) == (pytest.approx(11 - 12.7062, abs=1e-4), pytest.approx(23.7062, abs=1e-4))


def test_bootstrap_interval_against_all_resamples():
    values = [38.1, 38.4, 39.0, 38.7]
    means = sorted(np.mean(c) for c in itertools.product(values, repeat=len(values)))
    low, high = summarize(values).interval("bootstrap")
    # All 256 resamples are equally likely: the exact percentiles, within the draw's error.
    assert low == pytest.approx(np.quantile(means, 0.025), abs=0.06)
    assert high == pytest.approx(np.quantile(means, 0.975), abs=0.06)
    assert summarize(values).interval("bootstrap") == (low, high)


@patient
@given(spread, spread)
def test_welch_is_scipys(first, second):
    # Other seeds on either side: nothing to pair.
    left = list(enumerate(first))
    right = [(100 + seed, value) for seed, value in enumerate(second)]
    found = compare(left, right)
    assert found.test == "welch"
    assert found.difference == pytest.approx(np.mean(first) - np.mean(second), abs=1e-9)
    expected = stats.ttest_ind(first, second, equal_var=False)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    # Welch's formula itself, from the variances.
    a, b = (np.var(v, ddof=1) / len(v) for v in (first, second))
    t = found.difference / math.sqrt(a + b)
    freedom = (a + b) ** 2 / (a**2 / (len(first) - 1) + b**2 / (len(second) - 1))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), freedom), rel=1e-6, abs=1e-12)


@patient
@given(st.lists(st.tuples(figure, figure), min_size=2, max_size=10), st.randoms())
def test_paired_is_scipys_whatever_the_order(pairs, random):
    first = [(seed, a) for seed, (a, _) in enumerate(pairs)]
    second = [(seed, b) for seed, (_, b) in enumerate(pairs)]
    random.shuffle(first)
    differences = [a - b for a, b in pairs]
    found = compare(first, second)
    if np.ptp(differences) < 1e-9:
        assert found is None
        return
    assert found.test == "paired"
    expected = stats.ttest_1samp(differences, 0).pvalue
    assert found.p == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_what_cannot_be_tested():
    one, two = [(0, 1.0)], [(0, 1.0), (1, 2.0)]
    assert compare(one, two) is None
    assert compare(two, [(0, 2.0), (1, 3.0)]) is None  # differences without spread
    assert compare(two, [(2, 2.0), (1, 3.0)], "paired") is None  # one shared seed
    assert compare([(0, 1.0), (0, 2.0)], two, "paired") is None  # a seed twice
    assert compare([(0, 1.0), (1, 1.0)], [(0, 2.0), (1, 2.0)], "welch") is None
    assert compare(two, [(0, 2.0), (1, 3.5)]).test == "paired"
    assert compare(two, [(0, 2.0), (1, 3.5), (2, 1.0)]).test == "welch"
    assert compare(two, [(0, 2.0), (1, 3.5), (2, 1.0)], "paired").test == "paired"


@patient
@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    """A hypothesis falls if every intersection that holds it falls: by trying them all."""
    indices = range(len(p_values))
    expected = [
        max(
            min(1.0, len(subset) * min(p_values[i] for i in subset))
            for size in range(1, len(p_values) + 1)
            for subset in itertools.combinations(indices, size)
            if index in subset
        )
        for index in indices
    ]
    assert holm(p_values) == pytest.approx(expected)


def test_holm_of_none():
    assert holm([]) == []


def test_selection_of_the_best_rate_makes_no_false_marks():
    """Equal rows: the best of 10 rates against one rate."""
    rng, marked = np.random.default_rng(0), 0
    for _ in range(1000):
        rates, other = rng.normal(30, 0.3, (10, 5)), rng.normal(30, 0.3, 5)
        best = rates[rates.mean(axis=1).argmax()]
        test = compare(list(enumerate(best)), list(enumerate(other)))
        (one,) = correct([dataclasses.replace(test, tried=10)])
        marked += one.significant()
    assert marked / 1000 <= 0.05
