from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intl_transfer.spectral import iternorm, iternorm_eigenvalue, power_transform
from tests.spectral import reference

AXES = ["channel", "batch"]
SHAPES = [(6, 20), (20, 6), (12, 12)]


def embeddings(n: int, d: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    z = torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + 3.0
    return z.to(dtype)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("iterations", [0, 1, 4, 7])
@pytest.mark.parametrize("stable", [True, False])
def test_equals_theorem_1(axis, shape, iterations, stable):
    z = embeddings(*shape)
    expected = reference.iternorm(z, axis, iterations)
    torch.testing.assert_close(
        iternorm(z, axis, iterations, stable), expected, rtol=1e-9, atol=1e-9
    )


def test_the_axes_whiten_what_the_terms_say():
    text = Path(__file__).parents[2].joinpath("docs/terms.md").read_text()
    said = dict(re.findall(r"`(channel|batch)` [^`|]*?the (N×N|d×d) covariance", text))
    z = torch.randn(8, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for axis in AXES:
        z = z if axis == "channel" else z.mT  # of full rank on either axis
        white = iternorm(z, axis, iterations=30)
        n, d = white.shape
        covariances = {"N×N": white @ white.mT / (d - 1), "d×d": white.mT @ white / (n - 1)}
        assert said[axis] == next(
            name for name, c in covariances.items() if torch.allclose(c, torch.eye(len(c)).to(c))
        )


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_equals_theorem_1(axis, shape):
    z = embeddings(*shape, dtype=torch.float32)
    expected = reference.iternorm(z.double(), axis, 4)
    difference = (iternorm(z, axis).double() - expected).abs().max() / expected.abs().max()
    assert difference < 1e-5


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 12),
    d=st.integers(2, 12),
    iterations=st.integers(0, 8),
    axis=st.sampled_from(AXES),
    seed=st.integers(0, 10_000),
)
def test_output_spectrum_follows_the_scalar_map(n, d, iterations, axis, seed):
    z = embeddings(n, d, seed)
    sigma = reference.covariance(z, axis)
    x = torch.linalg.eigvalsh(sigma / sigma.trace()).clamp_min(0)
    expected = torch.tensor([reference.scalar_h(float(v), iterations) for v in x])
    torch.testing.assert_close(
        iternorm_eigenvalue(x, iterations), expected.double(), rtol=1e-5, atol=1e-6
    )
    z_hat = iternorm(z, axis, iterations)
    # The output is centered along the same axis, so its covariance needs no second centering.
    out = z_hat @ z_hat.T / (d - 1) if axis == "channel" else z_hat.T @ z_hat / (n - 1)
    torch.testing.assert_close(
        torch.linalg.eigvalsh(out), expected.double().sort().values, rtol=1e-5, atol=1e-6
    )


@settings(max_examples=40, deadline=None)
@given(iterations=st.integers(0, 30))
def test_scalar_map_is_monotone_within_zero_and_one(iterations):
    x = torch.linspace(0, 1, 1001, dtype=torch.float64)
    h = iternorm_eigenvalue(x, iterations)
    assert h[0] == 0
    assert abs(h[-1] - 1) < 1e-12
    assert (h.diff() >= -1e-12).all()
    assert h.min() >= 0
    assert h.max() <= 1 + 1e-12


def test_batched_over_views():
    views = torch.stack([embeddings(8, 16, seed) for seed in range(3)])
    together = iternorm(views)
    for view, z_hat in zip(views, together, strict=True):
        torch.testing.assert_close(iternorm(view), z_hat)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", [(4, 7), (7, 4)])
@pytest.mark.parametrize("iterations", [0, 4, 9])
def test_gradient(axis, shape, iterations):
    z = embeddings(*shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: iternorm(v, axis, iterations), (z,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_computed_in_float32(dtype):
    z = embeddings(16, 64).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = iternorm(z)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, iternorm(z.float()))


def test_large_iteration_counts_stay_finite_where_the_direct_form_does_not():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(512, 256, generator=generator, dtype=torch.float64)).Q.T
    z = (torch.logspace(0, -3, 256, dtype=torch.float64)[:, None] * basis).float()
    assert not torch.isfinite(iternorm(z, iterations=30, stable=False)).all()
    z_hat = iternorm(z, iterations=30)
    expected = reference.iternorm(z.double(), "channel", 30)
    assert (z_hat.double() - expected).abs().max() / expected.abs().max() < 1e-3


@pytest.mark.parametrize("axis", AXES)
def test_batches_without_variance_stay_finite(axis):
    for z in (torch.zeros(4, 8), torch.ones(4, 8), torch.randn(1, 8).repeat(4, 1)):
        z = z.requires_grad_()
        z_hat = iternorm(z, axis)
        z_hat.square().sum().backward()
        assert torch.isfinite(z_hat).all()
        assert torch.isfinite(z.grad).all()


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="axis is 'row'; expected 'channel' or 'batch'"):
        iternorm(torch.randn(4, 4), axis="row")
    with pytest.raises(ValueError, match="iterations is -1"):
        iternorm(torch.randn(4, 4), iterations=-1)
    with pytest.raises(ValueError, match=r"shape \(N, d\)"):
        iternorm(torch.randn(4))
    with pytest.raises(TypeError, match="floating-point"):
        iternorm(torch.ones(4, 4, dtype=torch.int64))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
def test_power_transform_equals_the_eigendecomposition(axis, p):
    shape = (6, 20) if axis == "channel" else (20, 6)
    z = embeddings(*shape)
    expected = reference.spectral(z, axis, lambda values: values.pow(-p))
    torch.testing.assert_close(power_transform(z, p, axis), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_power_half_whitens(axis, shape):
    z_hat = power_transform(embeddings(*shape), 0.5, axis)
    covariance = reference.covariance(z_hat, axis)
    values = torch.linalg.eigvalsh(covariance)
    rank = min(shape[0] - (axis == "batch"), shape[1] - (axis == "channel"))
    torch.testing.assert_close(values[-rank:], torch.ones(rank, dtype=torch.float64))
    assert (values[:-rank].abs() < 1e-8).all()


@pytest.mark.parametrize("axis", AXES)
def test_power_transform_gradient_also_at_repeated_eigenvalues(axis):
    z = embeddings(4, 8) if axis == "channel" else embeddings(8, 4)
    assert torch.autograd.gradcheck(
        lambda v: power_transform(v, 0.5, axis), (z.requires_grad_(),), atol=1e-4
    )
    # The output of whitening has all eigenvalues equal to one.
    equal = power_transform(z.detach(), 0.5, axis).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: power_transform(v, 0.7, axis), (equal,), atol=1e-4)


def test_negative_power_is_refused():
    with pytest.raises(ValueError, match=r"p is -0.5; expected a power p >= 0"):
        power_transform(torch.randn(4, 4), -0.5)
