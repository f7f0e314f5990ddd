"""What is taken, what is refused in words, and what modules say of themselves."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from intl_transfer.spectral import (
    CholeskyWhitening,
    INTLLoss,
    IterNorm,
    PowerTransform,
    ScalarTransform,
    barlow_twins_loss,
    cholesky_whitening,
    default_trace_weight,
    intl_ema_loss,
    intl_loss,
    iternorm,
    matrix_function,
    nt_xent_loss,
    power_transform,
    spectral_loss,
    spectral_transform,
    spectrum,
    trace_loss,
    vicreg_loss,
    w_mse_loss,
)
from tests.ranks import run_ranks
from tests.spectral.functions import embeddings, own, transforms

OF_VIEWS = {
    "intl": lambda v: intl_loss(v, trace_weight=0.1),
    "intl, batch axis": lambda v: intl_loss(v, "batch", trace_weight=0.1),
    "intl, T = 9": lambda v: intl_loss(v, iterations=9, trace_weight=0.1),
    "ema": lambda v: intl_ema_loss(v[1:], v[0], trace_weight=0.1),
    "power": lambda v: spectral_loss(v, PowerTransform(0.5)),
    "iternorm": lambda v: spectral_loss(v, IterNorm(4)),
    "barlow twins": barlow_twins_loss,
    "vicreg": vicreg_loss,
    "nt-xent": nt_xent_loss,
    "w-mse": lambda v: w_mse_loss(v, shrinkage=0.2),
}
OF_ONE = {
    "iternorm": iternorm,
    "power": lambda z: power_transform(z, 0.5),
    "centering": lambda z: power_transform(z, 0.0),
    "own": lambda z: spectral_transform(z, own),
    "cholesky": lambda z: cholesky_whitening(z, shrinkage=0.5),
    "trace loss": trace_loss,
    "spectrum": spectrum,
}


@pytest.mark.parametrize("name", OF_VIEWS)
@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_views_of_float32_and_float64_are_computed_in_float64(name: str, shape: tuple) -> None:
    loss = OF_VIEWS[name]
    exact = [embeddings(*shape, seed).requires_grad_() for seed in range(3)]
    truth = loss(exact)
    expected = torch.autograd.grad(truth, exact, allow_unused=True)
    for single in range(3):
        mixed = [
            (v.detach().float() if i == single else v.detach()).requires_grad_()
            for i, v in enumerate(exact)
        ]
        value = loss(mixed)
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, truth)
        found = torch.autograd.grad(value, mixed, allow_unused=True)
        for view, ours, theirs in zip(mixed, found, expected, strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert ours.dtype == view.dtype
                torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", OF_VIEWS)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_beside_float32_is_computed_in_float32(name: str, half) -> None:
    loss = OF_VIEWS[name]
    views = [embeddings(6, 9, seed).to(half) for seed in range(3)]
    expected = loss([view.float() for view in views])
    found = loss([views[0], views[1].float(), views[2]])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", OF_ONE)
def test_what_is_no_batch_of_embeddings(name: str) -> None:
    f = OF_ONE[name]
    with pytest.raises(
        TypeError, match=r"expected a floating-point tensor .* found torch.complex64"
    ):
        f(torch.randn(6, 9, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"found torch.int64"):
        f(torch.ones(6, 9, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"found torch.bool"):
        f(torch.ones(6, 9, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"expected a torch.Tensor of embeddings .* found ndarray"):
        f(np.ones((6, 9)))
    with pytest.raises(TypeError, match="found NoneType"):
        f(None)
    with pytest.raises(ValueError, match=r"expected shape \(N, d\) with N, d >= 1, found \(9,\)"):
        f(torch.ones(9))


@pytest.mark.parametrize("name", OF_VIEWS)
def test_what_are_no_views(name: str) -> None:
    loss, z = OF_VIEWS[name], torch.randn(6, 9)
    for other, found in (
        (z.to(torch.complex64), "torch.complex64"),
        (z.long(), "torch.int64"),
        (z.numpy(), "ndarray"),
        (None, "NoneType"),
    ):
        with pytest.raises(TypeError, match=f"view 1: expected .* found {found}"):
            loss([z, other])
        if name != "ema":
            with pytest.raises(TypeError, match=f"view 0: expected .* found {found}"):
                loss([other, z])
    with pytest.raises(ValueError, match=r"view 1 has shape \(6, 8\), view 0 \(6, 9\)"):
        loss([z, z[:, :8]])
    with pytest.raises(ValueError, match="view 1 is on meta, view 0 on cpu; expected one device"):
        loss([z, z.to("meta")])
    if name != "ema":
        with pytest.raises(
            TypeError, match=r"sequence of V >= 2 tensors \(N, d\), found generator"
        ):
            loss(view for view in (z, z))
        with pytest.raises(ValueError, match=r"one tensor \(V, N, d\), found a tensor of shape"):
            loss(z)
        stacked = torch.stack([z, z.roll(1)])
        torch.testing.assert_close(loss(stacked), loss(list(stacked)))


def test_the_target_is_named() -> None:
    z = torch.randn(8, 9)
    with pytest.raises(TypeError, match=r"target: expected a torch.Tensor .* found list"):
        intl_ema_loss([z], [z])
    with pytest.raises(TypeError, match=r"target: .* found torch.int64"):
        intl_ema_loss([z], z.long())


SPECTRUM_WIDE = {
    "a share of the sum": lambda x: x / x.sum(-1, keepdim=True),
    "a softmax": lambda x: torch.softmax(x, -1),
    "the largest": lambda x: x / x.amax(-1, keepdim=True),
    "the number": lambda x: x / x.shape[-1],
    "the place": lambda x: x * torch.arange(1, x.shape[-1] + 1),
    "sums so far": lambda x: x.cumsum(-1),
    "a fixed number": lambda x: x * torch.linspace(1, 2, 6).double(),
    "noise": lambda x: x + torch.randn_like(x),
    "the order": lambda x: x.flip(-1),
}


@pytest.mark.parametrize("name", SPECTRUM_WIDE)
def test_functions_of_the_whole_spectrum_are_refused(name: str) -> None:
    g, z = SPECTRUM_WIDE[name], embeddings(6, 9)
    for call in (
        lambda: spectral_transform(z, g),
        lambda: matrix_function(z @ z.T, g),
        lambda: ScalarTransform(g)(z),
        lambda: spectral_loss([z, z.roll(1, 0)], ScalarTransform(g)),
        lambda: spectral_transform(torch.stack([z, z]), g),
        lambda: torch.func.grad(lambda v: spectral_transform(v, g).sum())(z),
        lambda: torch.func.vmap(lambda v: spectral_transform(v, g))(torch.stack([z, z])),
    ):
        with pytest.raises(ValueError, match="g must map each eigenvalue independently"):
            call()
    with pytest.raises(ValueError, match="g_prime must map each eigenvalue independently"):
        spectral_transform(z, lambda x: x.sqrt(), g_prime=g)


def test_functions_that_return_something_else_are_refused() -> None:
    z = embeddings(6, 9)
    with pytest.raises(TypeError, match=r"g returned float; expected a torch.Tensor"):
        spectral_transform(z, lambda x: 1.0)
    with pytest.raises(ValueError, match=r"g made shape \(\) of eigenvalues of shape \(6,\)"):
        spectral_transform(z, lambda x: x.sum())
    # One of one eigenvalue.
    with pytest.raises(ValueError, match="must map each eigenvalue independently"):
        matrix_function(torch.tensor([[2.0]]), lambda x: x / x.sum(-1, keepdim=True))
    power = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(ValueError, match="g depends on tensors that require gradients"):
        spectral_transform(z, lambda x: x.pow(-power))
    with torch.no_grad():
        spectral_transform(z, lambda x: x.pow(-power))


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 9),
    scale=st.floats(-6, 6),
    name=st.sampled_from(["exp", "log1p", "sqrt", "rsqrt", "step", "power", "tanh"]),
    single=st.booleans(),
    seed=st.integers(0, 99),
)
def test_elementwise_functions_are_taken(n, scale, name, single, seed) -> None:
    functions = {
        "exp": lambda x: (-x).exp(),
        "log1p": torch.log1p,
        "sqrt": torch.sqrt,
        "rsqrt": torch.rsqrt,
        "step": lambda x: (x > x.new_tensor(0.5)).to(x),
        "power": lambda x: x**-0.3,
        "tanh": torch.tanh,
    }
    z = embeddings(n, 2 * n, seed) * 10**scale
    sigma = z @ z.T
    sigma = sigma.float() if single else sigma
    assert matrix_function(sigma, functions[name]).shape == sigma.shape


@pytest.mark.parametrize("axis", ["channel", "batch"])
def test_the_published_weight_is_refused_or_told_of_where_it_rewards_collapse(axis: str) -> None:
    name = "N" if axis == "channel" else "d"
    for x in range(1, 8):
        shape = (x, 12) if axis == "channel" else (12, x)
        message = f"{name} = {x} on the {axis} axis .* Pass a trace_weight"
        with pytest.raises(ValueError, match=message):
            default_trace_weight(*shape, axis)
        if x > 1:
            views: list[Tensor] = [torch.randn(shape) for _ in range(2)]
            reported = r"N = \d \(below 8\): it rewards collapse. Pass a trace_weight"
            for call in (
                lambda views=views: intl_loss(views, axis),
                lambda views=views: intl_ema_loss(views[1:], views[0], axis),
                lambda views=views: INTLLoss(axis)(views),
            ):
                if axis == "batch":
                    with pytest.raises(ValueError, match=message):
                        call()
                else:  # the rows are those of this call alone
                    with pytest.warns(RuntimeWarning, match=reported):
                        assert torch.isfinite(call())
            for weight in (0.05, 0, -0.01):
                assert torch.isfinite(intl_loss(views, axis, trace_weight=weight))
    assert default_trace_weight(8, 8, axis) == 0
    assert default_trace_weight(9, 9, axis) > 0
    for weight in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"trace_weight is .*; expected a finite number"):
            intl_loss([torch.randn(12, 12)] * 2, axis, trace_weight=weight)


def test_modules_print_their_settings() -> None:
    assert repr(IterNorm(9, "batch", stable=False)) == "IterNorm(T=9, axis='batch', stable=False)"
    assert repr(PowerTransform(0.5)) == "PowerTransform(p=0.5, axis='channel', floor=1e-14)"
    assert repr(CholeskyWhitening(shrinkage=0.1)) == (
        "CholeskyWhitening(axis='batch', shrinkage=0.1)"
    )
    assert repr(ScalarTransform(torch.sqrt, "batch", torch.rsqrt, floor=0.01)) == (
        "ScalarTransform(g=sqrt, g_prime=rsqrt, axis='batch', floor=0.01)"
    )
    assert repr(ScalarTransform(own)) == "ScalarTransform(g=own, axis='channel', floor=1e-14)"
    assert repr(INTLLoss("batch", 5, 0.1, sharded=False)) == (
        "INTLLoss(axis='batch', T=5, trace_weight=0.1, sharded=False)"
    )
    assert repr(INTLLoss()) == "INTLLoss(axis='channel', T=4, trace_weight=None, sharded=None)"


def _uneven(rank: int, world_size: int) -> list[tuple[str, str]]:
    """What every function says on ranks with 12 and 11 rows."""
    z, found = embeddings(12, 8)[rank:], []
    of_one = {**transforms(12, 8), "trace loss": trace_loss}
    of_both = {name: partial(loss, [z, z + 1]) for name, loss in OF_VIEWS.items()}
    for name, function in {**{k: partial(f, z) for k, f in of_one.items()}, **of_both}.items():
        try:
            found.append((name, f"returned {function()}"))
        except ValueError as error:
            found.append((name, str(error)))
    return found


def test_ranks_with_unequal_batches_are_refused() -> None:
    for said in run_ranks(_uneven, 2):
        for name, text in said:
            assert "ranks have embeddings of 12 x 8, 11 x 8" in text, (name, text)
