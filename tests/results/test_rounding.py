"""Rounding, against decimal arithmetic on what a person writes."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intl_transfer.results import build_tables, collect, render
from intl_transfer.results.rounding import rounded
from tests.results.synthetic import detection_run


@given(st.integers(-10_000_000, 10_000_000), st.integers(0, 6), st.integers(0, 6))
def test_halves_go_away_from_zero_as_the_number_is_written(whole, places, digits):
    written = Decimal(whole).scaleb(-places)
    expected = written.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    assert Decimal(rounded(float(written), digits)) == expected
    assert Decimal(rounded(float(written), digits, sign=True)) == expected


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [
        (56.25, 1, "56.3"),
        (56.35, 1, "56.4"),
        (38.15, 1, "38.2"),  # the nearest float is below
        (0.5, 0, "1"),
        (-0.04, 1, "0.0"),
        (0.1 + 0.2 - 0.05, 1, "0.3"),  # 0.25000000000000006
        (100.0, 3, "100.000"),
        (1e-30, 2, "0.00"),
    ],
)
def test_known_cases(value, digits, expected):
    assert rounded(value, digits) == expected


def test_tables_round_by_it(tmp_path):
    detection_run(tmp_path, "a", 56.25)
    tables = build_tables(collect([tmp_path]))
    for form in ("md", "latex", "console"):
        assert "56.3" in render(tables, form)
        assert "56.2" not in render(tables, form)
