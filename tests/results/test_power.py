"""What seeds can show, against statsmodels and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower, TTestPower

from intl_transfer.cli import main
from intl_transfer.results.power import (
    paired_spread,
    pooled_spread,
    power,
    resolvable,
    runs_needed,
)
from intl_transfer.results.statistics import holm, summarize
from tests.results.synthetic import detection_run


@settings(max_examples=60, deadline=None)
@given(
    difference=st.floats(0.05, 3),
    spread=st.floats(0.05, 2),
    n=st.integers(2, 40),
)
def test_power_is_statsmodels(difference, spread, n):
    expected = TTestIndPower().power(difference / spread, n, 0.05, ratio=1.0)
    if math.isfinite(expected):
        assert power(difference, spread, n) == pytest.approx(expected, abs=1e-6)
    paired = TTestPower().power(difference / spread, n, 0.05)
    if math.isfinite(paired):
        assert power(difference, spread, n, paired=True) == pytest.approx(paired, abs=1e-6)


@pytest.mark.parametrize(("difference", "spread"), [(0.2, 0.15), (0.5, 0.4), (1, 0.2), (0.1, 0.3)])
def test_the_runs_needed_are_the_fewest_that_suffice(difference, spread):
    n = runs_needed(difference, spread)
    solved = TTestIndPower().solve_power(difference / spread, None, 0.05, 0.8)
    assert n in (math.ceil(solved), math.ceil(solved) + 1)
    assert power(difference, spread, n) >= 0.8 > power(difference, spread, n - 1)


def test_what_takes_more_than_anybody_runs_is_said_to():
    assert runs_needed(0.001, 1.0) is None


def test_what_is_resolved_is_found_half_of_the_time():
    """A true difference of that size lies at the edge of its own interval."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 0.4, (2, 4000, 5))
    found = stats.ttest_ind(a + resolvable(0.4, 5), b, axis=1).pvalue <= 0.05
    assert found.mean() == pytest.approx(0.5, abs=0.06)
    shared = rng.normal(0, 3, (4000, 5))
    limit = resolvable(0.4 * math.sqrt(2), 5, paired=True)
    found = stats.ttest_rel(a + shared + limit, b + shared, axis=1).pvalue <= 0.05
    expected = power(limit, 0.4 * math.sqrt(2), 5, paired=True)
    assert found.mean() == pytest.approx(expected, abs=0.02)


def test_paired_spread_is_the_residual_of_rows_and_seeds():
    """Of an analysis of variance without repetition, whose residual is half a difference's."""
    values = np.random.default_rng(0).normal(30, 1, (3, 4)) + 5 * np.arange(4)
    spread, pairs, n = paired_spread([summarize(list(row), range(4)) for row in values])
    rows, seeds = (values.mean(axis=axis, keepdims=True) for axis in (1, 0))
    residual = np.sum((values - rows - seeds + values.mean()) ** 2) / (2 * 3)
    assert (spread, pairs, n) == (pytest.approx(math.sqrt(2 * residual)), 3, 4)
    assert paired_spread([summarize(list(values[0]), range(4)), summarize([1.0, 2.0])]) is None


def test_spreads_are_pooled_as_in_analysis_of_variance():
    groups = [[38.0, 38.4, 38.8], [39.1, 39.4], [40.0]]
    spread, freedom = pooled_spread([summarize(group) for group in groups])
    within = sum(float(np.sum((np.array(g) - np.mean(g)) ** 2)) for g in groups)
    assert (spread, freedom) == (pytest.approx(math.sqrt(within / 3)), 3)
    assert pooled_spread([summarize([40.0]), summarize([41.0])]) is None


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_statsmodels(values):
    assert holm(values) == pytest.approx(multipletests(values, method="holm")[1])


def test_the_command(tmp_path, capsys):
    for seed, ap in enumerate((38.0, 38.4, 38.8)):
        detection_run(tmp_path, f"a{seed}", ap, seed=seed)
        other = ap + 1 + 0.2 * (seed == 1)
        detection_run(tmp_path, f"b{seed}", other, method="MoCo v2", seed=seed)
    assert main(["collect", str(tmp_path), "--power"]) == 0
    output = capsys.readouterr().out
    lines = [line for line in output.splitlines() if "COCO det. AP" in line]
    welch, paired = ([cell.strip() for cell in line.split("|")] for line in lines)
    variances = [np.var(row, ddof=1) for row in ([38.0, 38.4, 38.8], [39.0, 39.6, 39.8])]
    spread = math.sqrt(sum(variances) / 2)
    limit = stats.t.ppf(0.975, 4) * spread * math.sqrt(2 / 3)
    assert welch[2:6] == ["Welch's", f"{spread:.2f} (4 d.f.)", "3", f"{limit:.2f}"]
    expected = math.ceil(TTestIndPower().solve_power(0.5 / spread, None, 0.05, 0.8))
    assert welch[8] == str(expected)
    spread = 0.2 * math.sqrt(1 / 3)
    limit = stats.t.ppf(0.975, 2) * spread / math.sqrt(3)
    assert paired[2:6] == ["paired", f"{spread:.2f} (1 pair of rows)", "3", f"{limit:.2f}"]
    expected = math.ceil(TTestPower().solve_power(0.5 / spread, None, 0.05, 0.8))
    assert paired[8] == str(expected)
    # Controls are not compared, so their spread decides neither.
    arguments = ["collect", str(tmp_path), "--baseline", "INTL", "--test", "welch"]
    assert main(arguments) == 0
    (legend,) = [n for n in capsys.readouterr().out.splitlines() if "not resolved" in n]
    for seed, ap in enumerate((5.0, 20.0, 1.0)):
        config = {"CONTROL": {"SHUFFLE_LABELS": True}}
        detection_run(tmp_path, f"c{seed}", ap, seed=seed, config=config)
    assert main(arguments) == 0
    assert legend in capsys.readouterr().out.splitlines()
    assert main(["collect", str(tmp_path), "--power"]) == 0
    assert capsys.readouterr().out == output
    assert main(["collect", str(tmp_path), "--spread", "difference"]) == 2
    assert "needs --baseline" in capsys.readouterr().err
