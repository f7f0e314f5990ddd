"""IterNorm at any T, on spectra from flat to degenerate."""

from __future__ import annotations

import pytest
import torch

from intl_transfer.spectral import (
    intl_loss,
    iternorm,
    iternorm_eigenvalue,
    power_transform,
)
from intl_transfer.spectral.common import center

AXES = ["channel", "batch"]


def with_spectrum(n: int, d: int, condition: float, axis: str, flat: bool = False) -> torch.Tensor:
    """Embeddings (float64) whose covariance on ``axis`` has this condition number."""
    generator = torch.Generator().manual_seed(0)
    small, large = min(n, d), max(n, d)
    left = torch.linalg.qr(torch.randn(small, small, generator=generator).double()).Q
    right = torch.linalg.qr(torch.randn(large, small, generator=generator).double()).Q.T
    # Centered along the axis: the mean direction taken out of the side that is centered.
    if (axis == "channel") == (n <= d):
        right = torch.linalg.qr(center(right, "channel").T).Q.T
    values = torch.logspace(0, -torch.tensor(condition).log10().item() / 2, small).double()
    if flat:  # one small value below many equal ones
        values = torch.cat([torch.ones(small - 1), values[-1:]]).double()
    z = left @ (values[:, None] * right)
    return z if n <= d else z.T


def singular_values(z: torch.Tensor, axis: str) -> torch.Tensor:
    freedom = z.shape[1] - 1 if axis == "channel" else z.shape[0] - 1
    return torch.linalg.svdvals(z.double()) / freedom**0.5


def expected_singular_values(z: torch.Tensor, axis: str, iterations: int) -> torch.Tensor:
    """Theorem 1 on the singular values of the centered embeddings, in float64."""
    x = torch.linalg.svdvals(center(z.double(), axis)).square()
    return iternorm_eigenvalue(x / x.sum(), iterations).sqrt().sort(descending=True).values


@pytest.mark.parametrize("iterations", [0, 1, 2, 3, 4, 5, 6, 7, 9, 15, 30, 60])
@pytest.mark.parametrize(
    ("n", "d", "axis"), [(64, 256, "channel"), (256, 64, "batch"), (256, 65, "channel")]
)
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    ("dtype", "condition", "tolerance"),
    [(torch.float32, 1e6, 1e-3), (torch.float64, 1e8, 1e-4), (torch.float32, 10.0, 1e-4)],
)
def test_resolved_spectra_follow_theorem_1(
    iterations, n, d, axis, flat, dtype, condition, tolerance
):
    z = with_spectrum(n, d, condition, axis, flat).to(dtype)
    expected = expected_singular_values(z, axis, iterations)
    found = singular_values(iternorm(z, axis, iterations), axis)
    difference = (found - expected).abs().max() / expected.max()
    assert difference < tolerance, f"{difference:.1e}"


def degenerate() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    random = torch.randn(48, 96, generator=generator).double()
    return {
        "condition 1e12": with_spectrum(48, 96, 1e12, "channel"),
        "condition 1e16": with_spectrum(48, 96, 1e16, "channel"),
        "rank 3": random[:, :3] @ random[:3],
        "rank 1": random[:, :1] @ random[:1],
        "N > d": random.T[:, :24],
        "identical samples": random[:1].repeat(48, 1),
        "nearly identical samples": random[:1] + 1e-7 * random,
        "pairs of identical samples": random[:24].repeat(2, 1),
        "zero row": torch.cat([random[:-1], torch.zeros(1, 96)]),
        "one channel varies": torch.cat([random[:, :1], torch.zeros(48, 95)], 1),
        "large mean": random + 1e3,
        "large values": 1e8 * random,
        "small values": 1e-8 * random,
        "zeros": torch.zeros(48, 96).double(),
    }


@pytest.mark.parametrize("name", degenerate())
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_batches_stay_finite_and_below_their_bound(name, axis, dtype):
    z = degenerate()[name].to(dtype)
    noise = 1e-3 * torch.randn(z.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    other = (z + z.abs().max() * noise).requires_grad_()
    for iterations in (0, 1, 2, 4, 6, 7, 12, 30, 60):
        z = z.detach().requires_grad_()
        z_hat = iternorm(z, axis, iterations)
        assert torch.isfinite(z_hat).all()
        largest = singular_values(z_hat.detach(), axis).max()
        assert largest <= 1.01, f"T = {iterations}: {largest}"
        loss = intl_loss([z, other], axis, iterations)
        (gradient,) = torch.autograd.grad(loss + z_hat.square().sum() / z_hat.numel(), z)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all(), f"T = {iterations}"


@pytest.mark.parametrize("axis", AXES)
def test_many_iterations_are_whitening(axis):
    z = with_spectrum(32, 64, 1e4, "channel") if axis == "channel" else torch.randn(64, 16).double()
    torch.testing.assert_close(
        iternorm(z, axis, 60), power_transform(z, 0.5, axis), rtol=1e-8, atol=1e-8
    )


def test_the_direct_form_diverges_where_the_stable_one_does_not():
    z = with_spectrum(256, 512, 1e6, "channel").float()
    expected = expected_singular_values(z, "channel", 15)
    off = (singular_values(iternorm(z, iterations=15, stable=False), "channel") - expected).abs()
    assert off.max() > 10
    assert not torch.isfinite(iternorm(z, iterations=30, stable=False)).all()
    assert (singular_values(iternorm(z, iterations=15), "channel") - expected).abs().max() < 1e-3


@pytest.mark.parametrize("iterations", [4, 5, 6])
def test_below_seven_the_precision_of_the_input_is_kept(iterations):
    """The N x N work of T <= 6 runs in float32 for float32 embeddings: the fast path."""
    z = torch.randn(16, 64, requires_grad=True)
    node = iternorm(z, iterations=iterations).grad_fn
    seen, pending = set(), [node]
    while pending:
        current = pending.pop()
        if current is not None and current not in seen:
            seen.add(current)
            pending += [parent for parent, _ in current.next_functions]
    assert any("Newton" in type(node).__name__ for node in seen)
    assert not any("MatrixFunction" in type(node).__name__ for node in seen)
