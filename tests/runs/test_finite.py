"""What is finite, what is counted, what is put back."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from intl_transfer.runs.distributed import Ranks
from intl_transfer.runs.finite import (
    SkippedSteps,
    StateNotFiniteError,
    StepGuard,
    all_finite,
    first_nonfinite,
    require_finite,
)

ALONE = Ranks(0, 1, 0, torch.device("cpu"))
NUMBERS = st.sampled_from([0.0, 1.0, -3.5, 1e-40, 1e18, math.nan, math.inf, -math.inf])
TENSORS = st.builds(
    lambda values, kind: torch.tensor(values, dtype=torch.float64).to(kind),
    st.lists(NUMBERS, max_size=4),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
LEAVES = TENSORS | NUMBERS | st.integers() | st.none() | st.just("text")
TREES = st.recursive(
    LEAVES, lambda t: st.dictionaries(st.sampled_from("abc"), t) | st.lists(t, max_size=3)
)


def by_hand(tree, place=()):
    """Every leaf that is not finite, number by number."""
    if isinstance(tree, torch.Tensor):
        return [] if all(math.isfinite(v) for v in tree.double().tolist()) else [place]
    if isinstance(tree, float):
        return [] if math.isfinite(tree) else [place]
    if not isinstance(tree, dict | list):
        return []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return [found for key, value in items for found in by_hand(value, (*place, str(key)))]


@settings(max_examples=200, deadline=None)
@given(TREES)
def test_the_first_that_is_not_finite_is_named(tree):
    expected = by_hand(tree)
    assert first_nonfinite(tree) == (".".join(expected[0]) if expected else None)


def test_large_numbers_are_finite_where_they_are_kept():
    """Only a step is stricter: nothing can be learned from squares that overflow."""
    large = torch.tensor([1e30, 2.0])
    assert first_nonfinite({"w": large, "n": torch.tensor(3), "empty": torch.zeros(0)}) is None
    assert not bool(all_finite([large]))
    assert bool(all_finite([large.double(), torch.tensor(2**60), torch.zeros(0)]))
    assert bool(all_finite([]))


def test_the_message_says_what_where_and_what_to_do():
    state = {"model": {"bn1.running_var": torch.tensor([1.0, math.inf])}}
    with pytest.raises(StateNotFiniteError, match=r"^step 3: model\.bn1\.running_var contains NaN"):
        require_finite(state, "step 3")
    with pytest.raises(StateNotFiniteError, match=r"infinity; do this$"):
        require_finite(state, "step 3", "; do this")
    require_finite({"model": torch.zeros(3)}, "step 3")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30))
def test_skipped_steps_are_counted_as_by_hand(steps):
    """Flags of steps, with a look after some of them."""
    counted = SkippedSteps(torch.device("cpu"), total=7)
    total, new, row, longest = 7, 0, 0, 0
    for is_finite, looks in steps:
        counted.note(torch.tensor(is_finite) if looks else is_finite)
        row = 0 if is_finite else row + 1
        new, longest = new + (not is_finite), max(longest, row)
        if looks:
            total += new
            found = counted.read()
            expected = (new, total, row, longest)
            assert (found.new, found.total, found.in_a_row, found.longest) == expected
            new, longest = 0, row
    assert counted.read().total == total + new


def test_a_guard_puts_back_every_buffer_and_nothing_else():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    network.register_buffer("empty", torch.zeros(0))
    guard = StepGuard({"net": network}, ALONE)
    network(torch.randn(8, 3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    guard.remember()
    loss = network(torch.randn(8, 3) * math.inf).sum()
    assert not guard.is_finite(loss, [])
    assert guard.reason(loss, {}) == "NaN or infinity in the embeddings or the loss"
    good = torch.tensor(1.0)
    assert not guard.is_finite(good, [])
    assert "net.1.running_mean" in guard.reason(good, {})
    guard.restore()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert guard.is_finite(good, [])
    gradient = torch.tensor([1.0, math.nan])
    assert not guard.is_finite(good, [gradient])
    assert "the gradients (w)" in guard.reason(good, {"w": gradient})
