"""Some inputs for every reader, each watched as in the long campaign (`make fuzz`)."""

from __future__ import annotations

import pytest

from tests.fuzz.campaign import SHARES, Process


@pytest.fixture(scope="module")
def process():
    one = Process()
    yield one
    one.close()


@pytest.mark.parametrize("reader", SHARES)
def test_damaged_and_forged_files_are_named_or_read(process, reader):
    count = 10 if reader == "run directories" else 40
    outcomes = {seed: process.attempt(reader, seed) for seed in range(count)}
    failed = {seed: reason for seed, (outcome, reason) in outcomes.items() if outcome == "failed"}
    assert failed == {}
    assert len(outcomes) == count


def test_a_reader_that_hangs_or_runs_something_is_noticed(process, monkeypatch):
    """The watch itself: an input of a kind that there is not ends in a failure, and no more."""
    outcome, reason = process.attempt("no such reader", 0)
    assert (outcome, "StopIteration" in reason) == ("failed", True)
    assert process.attempt("lists", 0)[0] in ("named", "read")
