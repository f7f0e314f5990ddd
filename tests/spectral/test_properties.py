"""What the theory promises of every transform and loss, on random shapes."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intl_transfer.spectral import (
    CholeskyWhitening,
    INTLLoss,
    IterNorm,
    NonFiniteError,
    PowerTransform,
    ScalarTransform,
    cholesky_whitening,
    intl_ema_loss,
    intl_loss,
    iternorm,
    iternorm_eigenvalue,
    iternorm_factor,
    matrix_function,
    power_transform,
    spectral_loss,
    spectral_transform,
    trace_loss,
)
from intl_transfer.spectral.newton import newton
from tests.spectral import reference

AXES = ["channel", "batch"]
TRANSFORMS = {
    "iternorm 4": lambda axis: IterNorm(4, axis),
    "iternorm 5": lambda axis: IterNorm(5, axis),
    "iternorm 9": lambda axis: IterNorm(9, axis),
    "power 0.3": lambda axis: PowerTransform(0.3, axis),
    "zca": lambda axis: PowerTransform(0.5, axis),
    "own": lambda axis: ScalarTransform(lambda x: 1 / (1 + x) + torch.log1p(x), axis),
}
shapes = st.tuples(st.integers(2, 9), st.integers(2, 9))
seeds = st.integers(0, 9999)


def embeddings(n: int, d: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator).double() + 0.5


def orthogonal(n: int, seed: int, keeps_ones: bool) -> torch.Tensor:
    """A random rotation of R^n, one that leaves (1, ..., 1) in its place if asked."""
    generator = torch.Generator().manual_seed(seed)
    if not keeps_ones:
        return torch.linalg.qr(torch.randn(n, n, generator=generator).double()).Q
    ones = torch.ones(n, 1).double()
    basis = torch.linalg.qr(torch.cat([ones, torch.randn(n, n - 1, generator=generator)], 1)).Q
    inner = torch.linalg.qr(torch.randn(n - 1, n - 1, generator=generator).double()).Q
    return basis @ torch.block_diag(torch.ones(1, 1).double(), inner) @ basis.T


@settings(max_examples=30, deadline=None)
@given(
    shape=shapes, seed=seeds, axis=st.sampled_from(AXES), name=st.sampled_from(sorted(TRANSFORMS))
)
def test_the_transform_is_its_scalar_function_on_the_spectrum(shape, seed, axis, name):
    transform, z = TRANSFORMS[name](axis), embeddings(*shape, seed)
    values, vectors = torch.linalg.eigh(reference.covariance(z, axis))
    values = values.clamp_min(0)
    matrix = vectors @ torch.diag(transform.g(values)) @ vectors.T
    centered = reference.centered(z, axis)
    expected = matrix @ centered if axis == "channel" else centered @ matrix
    torch.testing.assert_close(transform(z), expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(shape=shapes, seed=seeds, axis=st.sampled_from(AXES), iterations=st.integers(0, 12))
def test_rotating_and_scaling(shape, seed, axis, iterations):
    n, d = shape
    z = embeddings(n, d, seed)
    z_hat = iternorm(z, axis, iterations)
    # Scaling changes nothing: the covariance is divided by its trace.
    torch.testing.assert_close(iternorm(37.0 * z, axis, iterations), z_hat, rtol=1e-7, atol=1e-8)
    # Rotating channels rotates the output; on the channel axis, whose centering subtracts along
    # (1, ..., 1), for rotations that leave that direction in its place.
    turn = orthogonal(d, seed, keeps_ones=axis == "channel")
    torch.testing.assert_close(
        iternorm(z @ turn, axis, iterations), z_hat @ turn, rtol=1e-6, atol=1e-7
    )
    # And rotating samples, the other way around.
    turn = orthogonal(n, seed, keeps_ones=axis == "batch")
    torch.testing.assert_close(
        iternorm(turn @ z, axis, iterations), turn @ z_hat, rtol=1e-6, atol=1e-7
    )


@settings(max_examples=30, deadline=None)
@given(shape=shapes, seed=seeds, axis=st.sampled_from(AXES), iterations=st.integers(0, 8))
def test_order_does_not_matter(shape, seed, axis, iterations):
    n, d = shape
    views = [embeddings(n, d, seed + i) for i in range(4)]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    loss = intl_loss(views, axis, iterations, 0.1)
    shuffled = intl_loss([view[order] for view in views], axis, iterations, 0.1)
    swapped = intl_loss([views[0], views[2], views[3], views[1]], axis, iterations, 0.1)
    torch.testing.assert_close(shuffled, loss, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(swapped, loss, rtol=1e-10, atol=0)
    scaled = intl_loss([3.0 * view for view in views], axis, iterations, 0.1)
    torch.testing.assert_close(scaled, loss, rtol=1e-8, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(x=st.floats(0, 1), y=st.floats(0, 1), iterations=st.integers(0, 60))
def test_scalar_map(x, y, iterations):
    low, high = sorted((x, y))
    h = iternorm_eigenvalue(torch.tensor([0.0, low, high, 1.0]).double(), iterations)
    assert h[0] == 0
    assert abs(h[3] - 1) < 1e-12
    assert 0 <= h[1] <= h[2] + 1e-9
    assert h[2] <= 1 + 1e-9
    if iterations:  # each step brings an eigenvalue nearer to one
        before = iternorm_eigenvalue(torch.tensor([low]).double(), iterations - 1)
        assert h[1] >= before[0] - 1e-12


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 10), d=st.integers(2, 20), iterations=st.integers(0, 8), seed=seeds)
def test_trace_loss_floor(n, d, iterations, seed):
    value = float(trace_loss(iternorm(embeddings(n, d, seed), "channel", iterations)))
    h = float(iternorm_eigenvalue(torch.tensor(1 / n).double(), iterations))
    assert value >= n * (1 - h) ** 2 - 1e-9


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", [(4, 7), (7, 4)])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_gradients_of_transforms(axis, shape, name):
    # Where one direction of the smaller side is empty, finite differences see its noise.
    rank = min(shape[0] - (axis == "batch"), shape[1] - (axis == "channel"))
    z = embeddings(*shape, 0).requires_grad_()
    loose = rank < min(shape)
    transform = TRANSFORMS[name](axis)
    assert torch.autograd.gradcheck(
        transform, (z,), atol=5e-2 if loose else 1e-5, eps=1e-4 if loose else 1e-6
    )


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5)])
@pytest.mark.parametrize("iterations", [0, 1, 2, 3, 4, 5, 6])
def test_gradients_of_losses(axis, shape, iterations):
    views = [embeddings(*shape, seed).requires_grad_() for seed in range(3)]
    assert torch.autograd.gradcheck(lambda *v: intl_loss(v, axis, iterations, 0.1), views)
    target = views[0].detach()
    assert torch.autograd.gradcheck(
        lambda *v: intl_ema_loss(v, target, axis, iterations, 0.1), views[1:]
    )


def test_gradient_at_many_iterations():
    views = [embeddings(4, 9, seed).requires_grad_() for seed in range(2)]
    for iterations in (7, 15, 60):
        loss = functools.partial(intl_loss, iterations=iterations, trace_weight=0.1)
        assert torch.autograd.gradcheck(lambda *v, loss=loss: loss(v), views)


@pytest.mark.parametrize("iterations", range(10))
def test_newton_is_its_polynomial(iterations):
    generator = torch.Generator().manual_seed(5)
    root = torch.randn(2, 6, 9, generator=generator).double()
    s = root @ root.mT
    s = (s / s.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]).requires_grad_()
    p, diagonal = newton(s, iterations)
    expected = matrix_function(s, lambda x: iternorm_factor(x, iterations))
    torch.testing.assert_close(p, expected, rtol=1e-10, atol=1e-12)
    whole = expected @ s @ expected
    torch.testing.assert_close(diagonal, whole.diagonal(dim1=-2, dim2=-1), rtol=1e-9, atol=1e-12)
    weights = torch.randn(p.shape, generator=generator).double()
    rows = torch.randn(diagonal.shape, generator=generator).double()

    def symmetric(loss):
        gradient = torch.autograd.grad(loss, s)[0]
        return gradient + gradient.mT

    torch.testing.assert_close(
        symmetric((weights * p).sum() + (rows * diagonal).sum()),
        symmetric((weights * expected).sum() + (rows * whole.diagonal(dim1=-2, dim2=-1)).sum()),
        rtol=1e-8,
        atol=1e-9,
    )


@pytest.mark.parametrize("axis", AXES)
def test_cholesky_whitens_as_zca_does_but_for_a_rotation(axis):
    z = embeddings(20, 6, 0) if axis == "batch" else embeddings(6, 20, 0)
    ours, zca = cholesky_whitening(z, axis), power_transform(z, 0.5, axis)
    for z_hat in (ours, zca):
        torch.testing.assert_close(
            reference.covariance(z_hat, axis), torch.eye(6).double(), rtol=1e-9, atol=1e-9
        )
    assert not torch.allclose(ours, zca)
    assert torch.autograd.gradcheck(lambda v: cholesky_whitening(v, axis), (z.requires_grad_(),))
    assert CholeskyWhitening(axis)(z).shape == z.shape
    shrunk = cholesky_whitening(z, axis, shrinkage=1.0)
    torch.testing.assert_close(shrunk, reference.centered(z, axis))


def test_cholesky_says_what_it_needs():
    with pytest.raises(ValueError, match=r"singular on the batch axis; .* needs d < N"):
        cholesky_whitening(torch.randn(4, 8))
    with pytest.raises(ValueError, match=r"singular on the channel axis; .* needs N < d"):
        cholesky_whitening(torch.randn(8, 4), "channel")
    assert torch.isfinite(cholesky_whitening(torch.randn(4, 8), shrinkage=0.1)).all()
    with pytest.raises(ValueError, match="shrinkage is 2"):
        cholesky_whitening(torch.randn(8, 4), shrinkage=2)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", [(6, 15), (15, 6)])
def test_gradient_at_repeated_eigenvalues(axis, shape):
    """The output of whitening has all its eigenvalues at one."""
    z = power_transform(embeddings(*shape, 0), 0.5, axis)
    weights = embeddings(*shape, 3)

    def loss(v: torch.Tensor) -> torch.Tensor:
        return (weights * spectral_transform(v, lambda x: (x + 0.3) ** -0.7, axis)).sum()

    z = z.requires_grad_()
    assert torch.autograd.gradcheck(loss, (z,), eps=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_give_the_float32_value(name, axis, dtype):
    z, transform = embeddings(6, 20, 0).to(dtype), TRANSFORMS[name](axis)
    other = z.roll(1, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = transform(z)
        loss = spectral_loss([z, other], transform, 0.1)
        own = intl_loss([z, other], axis, trace_weight=0.1)
    assert inside.dtype == loss.dtype == own.dtype == torch.float32
    assert torch.equal(inside, transform(z.float()))
    assert torch.equal(own, intl_loss([z.float(), other.float()], axis, trace_weight=0.1))


def test_gradients_come_back_in_the_inputs_precision():
    views = [embeddings(6, 20, s).bfloat16().requires_grad_() for s in range(2)]
    intl_loss(views, trace_weight=0.1).backward()
    assert all(view.grad.dtype == torch.bfloat16 for view in views)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("iterations", [0, 4, 9])
def test_batches_with_nothing_in_them(axis, iterations):
    one = torch.randn(1, 8)
    alike = [one.repeat(6, 1).requires_grad_() for _ in range(2)]
    zeros = [torch.zeros(6, 8, requires_grad=True) for _ in range(2)]
    row = torch.randn(6, 8)
    row[2] = 0
    row = [row.clone().requires_grad_(), torch.randn(6, 8).requires_grad_()]
    for views in (alike, zeros, row):
        loss = intl_loss(views, axis, iterations, 0.1)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(view.grad).all() for view in views)
    # Zeros: no cosine (2 - 0), every variance of one missed, and no direction to go.
    size = 6 if axis == "channel" else 8
    assert intl_loss(zeros, axis, iterations, 0.1).item() == pytest.approx(2 + 0.1 * 2 * size)
    assert not any(view.grad.any() for view in zeros)


def test_one_sample_or_one_channel():
    one = torch.randn(1, 8)
    assert intl_loss([one, one], trace_weight=0.1).item() == pytest.approx(0, abs=1e-5)
    for loss in (
        lambda: intl_loss([one, one], "batch", trace_weight=0.1),
        lambda: iternorm(one, "batch"),
    ):
        with pytest.raises(ValueError, match="N = 1 has no variance over its samples"):
            loss()
    with pytest.raises(ValueError, match="d = 1 has no variance over its channels"):
        iternorm(torch.randn(4, 1))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(6, 8), (8, 6)])
def test_nan_and_infinity_are_errors(axis, value, shape):
    z = torch.randn(shape)
    z[3, 2] = value
    good = torch.randn(shape)
    for iterations in (0, 4, 9):
        with pytest.raises(NonFiniteError, match="NaN or infinity"):
            iternorm(z, axis, iterations)
        with pytest.raises(NonFiniteError, match="in batch 1 of 2"):
            intl_loss([good, z], axis, iterations, 0.1)
    for p in (0, 0.5):
        with pytest.raises(NonFiniteError):
            power_transform(z, p, axis)
    with pytest.raises(NonFiniteError):
        trace_loss(z, axis)
    with pytest.raises(NonFiniteError):
        cholesky_whitening(z, axis)


def test_a_function_that_is_not_finite_is_an_error():
    with pytest.raises(NonFiniteError):
        spectral_transform(torch.randn(4, 8), lambda values: values / 0)
    constant = spectral_transform(torch.randn(4, 8).requires_grad_(), torch.ones_like)
    constant.sum().backward()


@pytest.mark.parametrize("iterations", [-1, 2.5, True, "4"])
def test_iterations_are_whole_numbers(iterations):
    for call in (
        lambda: iternorm(torch.randn(4, 8), iterations=iterations),
        lambda: intl_loss([torch.randn(4, 8)] * 2, iterations=iterations),
        lambda: IterNorm(iterations),
        lambda: INTLLoss(iterations=iterations),
    ):
        with pytest.raises(ValueError, match=r"iterations is .*; expected an integer T >= 0"):
            call()


def test_modules_are_their_functions():
    views = [embeddings(6, 9, seed) for seed in range(3)]
    assert torch.equal(INTLLoss("batch", 3, 0.2)(views), intl_loss(views, "batch", 3, 0.2))
    torch.testing.assert_close(
        spectral_loss(views, IterNorm(4), 0.2), intl_loss(views, trace_weight=0.2)
    )
    torch.testing.assert_close(spectral_loss(views, IterNorm(4)), intl_loss(views, trace_weight=0))
