"""Formulas of g: they are what Python makes of them, and nothing else is run."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intl_transfer.spectral import (
    PowerTransform,
    ScalarTransform,
    scalar_expression,
    spectral_ema_loss,
    spectral_loss,
)


@pytest.mark.parametrize(
    "text",
    ["1 / (1 + x)", "x ** -0.3", "-exp(-x) + 2", "sqrt(x) * log1p(x)", "e ** x - pi", "abs(+x)"],
)
@given(value=st.floats(1e-6, 1e3))
def test_a_formula_is_what_pythons_mathematics_makes_of_it(text, value):
    names = {"exp": math.exp, "sqrt": math.sqrt, "log1p": math.log1p, "abs": abs}
    names |= {"pi": math.pi, "e": math.e, "x": value}
    try:
        expected = eval(text, {"__builtins__": {}}, names)
    except OverflowError:
        expected = math.inf
    found = scalar_expression(text)(torch.tensor([value], dtype=torch.float64))
    assert found.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "y",
        "x.real",
        "open(x)",
        "__import__('os')",
        "x if x else x",
        "lambda: x",
        "exp(x, x)",
        "exp(*x)",
        "x[0]",
        "'x'",
        "True * x",
        "x @ x",
        "x" + "+x" * 200,
        "(" * 90 + "x",
        "1e400 * x",
        "9**9**9**9*x;",
    ],
)
def test_what_is_no_formula_is_refused(text):
    with pytest.raises(ValueError, match=r"formula|understood|no x|range"):
        scalar_expression(text)


def test_powers_cannot_be_made_to_hang():
    found = scalar_expression("x * 9 ** 9 ** 9 ** 9")(torch.ones(1))
    assert found.isinf().all()


def test_a_module_with_a_formula_is_pickled_as_any_other():
    module = ScalarTransform(scalar_expression("1 / (1 + x)"))
    z = torch.randn(12, 8)
    assert torch.equal(pickle.loads(pickle.dumps(module))(z), module(z))


@pytest.mark.parametrize("axis", ["channel", "batch"])
def test_a_power_written_down_is_the_power_function(axis):
    z = torch.randn(12, 40, dtype=torch.float64)
    written = ScalarTransform(scalar_expression("x ** -0.4"), axis)(z)
    torch.testing.assert_close(written, PowerTransform(0.4, axis)(z))


def test_the_loss_against_a_moving_average_is_the_formula():
    views = [torch.randn(12, 40, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    transform, parts = PowerTransform(0.5), {}
    loss = spectral_ema_loss(views[1:], views[0], transform, 0.02, parts=parts)
    hats = [transform(view) for view in views]
    cosines = [torch.cosine_similarity(hat, hats[0], dim=1).mean() for hat in hats[1:]]
    traces = [(1 - hat.square().sum(1) / 39).square().sum() for hat in hats[1:]]
    expected = sum(2 - 2 * c + 0.02 * t for c, t in zip(cosines, traces, strict=True)) / 2
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(parts["mismatch"] + 0.02 * parts["trace_loss"], loss.detach())
    loss.backward()
    assert views[0].grad is None
    both = spectral_loss([view.detach() for view in views], transform, 0.02)
    target = (1 - hats[0].square().sum(1) / 39).square().sum()
    torch.testing.assert_close(both, expected + 0.02 * target)
