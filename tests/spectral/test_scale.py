"""Embeddings from 1e-30 to 1e30 in float32 against float64, whose squares still fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from intl_transfer.spectral import (
    IterNorm,
    NonFiniteError,
    PowerTransform,
    alignment,
    barlow_twins_loss,
    cholesky_whitening,
    condition_indicator,
    diagnose,
    effective_rank,
    feature_std,
    intl_ema_loss,
    intl_loss,
    iternorm,
    nt_xent_loss,
    power_transform,
    spectral_loss,
    spectrum,
    trace_loss,
    uniformity,
    vicreg_loss,
    without_waiting,
)
from tests.ranks import run_ranks
from tests.spectral.functions import AXES, embeddings, losses, transforms

SCALES = [10.0**k for k in (-30, -25, -20, -15, -10, -5, 0, 5, 10, 15, 20, 25, 30)]
LARGEST = torch.finfo(torch.float32).max
SHAPES = [(12, 20), (20, 12)]


def scaled(n: int, d: int, scale: float, seed: int = 0) -> Tensor:
    """In float32; what is made of it is compared with what float64 makes of the same numbers."""
    return (embeddings(n, d, seed).float() * scale).float()


def value_and_gradient(f, z: Tensor) -> tuple[Tensor, Tensor]:
    z = z.clone().requires_grad_()
    value = f(z)
    weights = embeddings(*z.shape, 5).to(z) if value.dim() else torch.ones_like(value)
    return value.detach(), torch.autograd.grad(value, z, weights)[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [*transforms(4, 7), *losses(4, 7)])
def test_float32_equals_float64_at_any_scale(name: str, shape: tuple) -> None:
    seen = 0
    for scale in SCALES:
        f = {**transforms(*shape), **losses(*shape, scale)}[name]
        z = scaled(*shape, scale)
        expected, slope = value_and_gradient(f, z.double())
        if float(expected.abs().max()) > LARGEST:
            with pytest.raises(NonFiniteError, match="float32"):
                f(z)
            continue
        value, gradient = value_and_gradient(f, z)
        assert value.dtype == gradient.dtype == torch.float32
        # What is too small for float32 is zero in it, what is too large infinite.
        size = max(float(expected.abs().max()), 1e-37)
        assert float((value.double() - expected).abs().max()) <= 1e-4 * size, scale
        if float(slope.abs().max()) < LARGEST:
            size = max(float(slope.abs().max()), 1e-37)
            assert float((gradient.double() - slope).abs().max()) <= 1e-3 * size, scale
            seen += 1
    # Of functions that know no scale, every one; of p = 1.5, whose output is of the power -2 of
    # the scale and its gradient of the power -3, the middle ones; of fourth powers, likewise.
    least = {"power 1.5": 5, "trace loss": 8, "vicreg": 8}
    requested = next((count for key, count in least.items() if name.startswith(key)), len(SCALES))
    assert seen >= requested


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("iterations", [0, 4, 5])
def test_powers_of_two_change_no_bit(axis: str, shape: tuple, iterations: int) -> None:
    views = [scaled(*shape, 1.0, seed) for seed in range(3)]

    def outcome(factors: list[float]) -> tuple[Tensor, ...]:
        at = [(v * f).requires_grad_() for v, f in zip(views, factors, strict=True)]
        loss = intl_loss(at, axis, iterations, 0.05)
        gradients = torch.autograd.grad(loss, at)
        back = [g * f for g, f in zip(gradients, factors, strict=True)]
        return loss.detach(), iternorm(at[1].detach(), axis, iterations), *back

    expected = outcome([1.0] * 3)
    for factors in ([2.0**90] * 3, [2.0**-90] * 3, [2.0**-100, 1.0, 2.0**100]):
        for ours, theirs in zip(outcome(factors), expected, strict=True):
            assert torch.equal(ours, theirs)


def test_the_batch_and_scale_at_which_the_mismatch_was_two() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(256, 8192, generator=generator)
    b = a + 0.3 * torch.randn(256, 8192, generator=generator)
    parts: dict[str, Tensor] = {}
    intl_loss([a * 4e6, b * 4e6], parts=parts)
    # Of independent noise of variance 0.09: the cosine of the whitened rows is near 1 / sqrt(1.09).
    assert float(parts["mismatch"]) == pytest.approx(2 - 2 / 1.09**0.5, abs=0.01)


@pytest.mark.parametrize("axis", AXES)
def test_ends_of_the_range(axis: str) -> None:
    """Denormal numbers, and the largest ones there are."""
    z = embeddings(12, 20)
    truth = iternorm(z, axis)
    for scale, near in ((1e-40, 1e-3), (6e37, 1e-5)):
        found = iternorm((z * scale).float(), axis)
        torch.testing.assert_close(found.double(), truth, rtol=0, atol=near * float(truth.max()))


def test_second_derivatives_at_a_scale() -> None:
    """Of the power -2 of the scale: within float32 for a scale of 1e-15 and 1e15."""
    along, weights = scaled(8, 12, 1.0, 1), scaled(8, 12, 1.0, 2)

    def second(z: Tensor) -> Tensor:
        at = z.clone().requires_grad_()
        loss = intl_loss([at, weights.to(z)], trace_weight=0.05)
        (gradient,) = torch.autograd.grad(loss, at, create_graph=True)
        return torch.autograd.grad((gradient * along.to(z)).sum(), at)[0]

    for scale in (1e-15, 1e15):
        z = scaled(8, 12, scale)
        expected, found = second(z.double()), second(z)
        assert float((found.double() - expected).abs().max() / expected.abs().max()) < 1e-3


@pytest.mark.parametrize("scale", SCALES)
def test_diagnostics_know_no_scale(scale: float) -> None:
    views = [scaled(12, 20, 1.0, seed) for seed in range(2)]
    small = [(view * scale).float() for view in views]
    expected, found = diagnose(views), diagnose(small)
    for name, value in expected.scalars().items():
        assert found.scalars()[name] == pytest.approx(value, rel=1e-4), name
    torch.testing.assert_close(spectrum(small[0]) / scale**2, spectrum(views[0]), rtol=1e-5, atol=0)
    assert alignment(*small) == pytest.approx(float(alignment(*views)), rel=1e-4)
    assert uniformity(small[0]) == pytest.approx(float(uniformity(views[0])), rel=1e-4)
    assert feature_std(small[0]) == pytest.approx(float(feature_std(views[0])), rel=1e-4)


def test_what_no_float32_can_hold_is_an_error() -> None:
    tiny, huge = scaled(6, 9, 1e-25), scaled(6, 9, 1e25)
    with pytest.raises(NonFiniteError, match="beyond the range of float32"):
        power_transform(tiny, 1.5)
    with pytest.raises(NonFiniteError, match="overflows float32"):
        trace_loss(huge)
    with pytest.raises(NonFiniteError, match="overflows float32"):
        vicreg_loss([huge, huge * 1.1])
    with pytest.raises(NonFiniteError, match="overflows float32"):
        spectral_loss([tiny, tiny], PowerTransform(1.5), 0.05)
    # The cosines of such rows are what they are.
    loss = spectral_loss([tiny, scaled(6, 9, 1e-25, 1)], PowerTransform(1.5))
    assert 0 < float(loss) < 4
    assert torch.isfinite(power_transform(tiny.double(), 1.5)).all()


def test_without_the_covariance_term_vicreg_takes_any_scale() -> None:
    views = [scaled(9, 6, 1e17, seed) for seed in range(2)]
    expected = vicreg_loss([view.double() for view in views], covariance_weight=0.0)
    assert vicreg_loss(views, covariance_weight=0.0) == pytest.approx(float(expected), rel=1e-5)


def test_zero_rows_have_no_direction_at_any_scale() -> None:
    for scale in (1e-30, 1.0, 1e30):
        views = [scaled(6, 9, scale, seed) for seed in range(2)]
        views[0][2] = 0
        at = [view.clone().requires_grad_() for view in views]
        for loss in (nt_xent_loss(at), spectral_loss(at, PowerTransform(0))):
            gradients = torch.autograd.grad(loss, at)
            assert all(torch.isfinite(one).all() for one in gradients)
            assert not gradients[0][2].any()


@pytest.mark.parametrize("shape", [(16, 24), (24, 16)])
@pytest.mark.parametrize("factor", [1e-13, 1e-14, 1e13])
def test_one_row_of_another_scale_leaves_all_gradients_those_of_float64(
    shape: tuple[int, int], factor: float
) -> None:
    """They were NaN: the derivative of a small row's norm overflowed, and its loss was right."""
    found = []
    for dtype in (torch.float32, torch.float64):
        views = [scaled(*shape, 1.0, seed).to(dtype) for seed in range(2)]
        views[1][0] *= factor
        at = [view.requires_grad_() for view in views]
        found.append(torch.autograd.grad(intl_loss(at, trace_weight=0.05), at))
    for one, expected in zip(*found, strict=True):
        # Row by row: their gradients are of scales as far apart.
        errors = (one.double() - expected).norm(dim=1)
        assert (errors <= 1e-2 * expected.norm(dim=1)).all(), errors


@pytest.mark.parametrize("constant", [3.3e-8, 1e-6, 0.1])
def test_a_row_that_is_constant_but_for_rounding_has_finite_gradients(constant: float) -> None:
    views = [scaled(64, 256, 1.0, seed) for seed in range(2)]
    views[0][0] = constant
    at = [view.requires_grad_() for view in views]
    for loss in (intl_loss(at), spectral_loss(at, IterNorm(4))):
        assert all(one.isfinite().all() for one in torch.autograd.grad(loss, at))


def _on_rank(rank: int, world_size: int) -> list:
    outcome = []
    for scale in (1e-20, 1e20):
        for shape in ((8, 29), (24, 7)):
            for axis in AXES:
                for sharded in (True, False):
                    rows = shape[0] // world_size
                    own = slice(rank * rows, (rank + 1) * rows)
                    views = [scaled(*shape, scale, seed)[own] for seed in range(3)]
                    # One rank's rows alone would have another scale.
                    at = [(v * (1 if rank else 1e-3)).requires_grad_() for v in views]
                    for loss in (
                        intl_loss(at, axis, 4, 0.05, sharded=sharded),
                        intl_ema_loss(at[1:], at[0], axis, 4, 0.05, sharded=sharded),
                    ):
                        gradient = torch.autograd.grad(loss / world_size, at[1])[0]
                        outcome.append((loss.item(), gradient))
    return outcome


def test_ranks_agree_on_a_scale() -> None:
    results, index = run_ranks(_on_rank, 2), 0
    for scale in (1e-20, 1e20):
        for shape in ((8, 29), (24, 7)):
            for axis in AXES:
                for _ in (True, False):
                    views = [scaled(*shape, scale, seed).double() for seed in range(3)]
                    half = shape[0] // 2
                    for view in views:
                        view[:half] *= 1e-3
                    at = [view.requires_grad_() for view in views]
                    for loss in (
                        intl_loss(at, axis, 4, 0.05),
                        intl_ema_loss(at[1:], at[0], axis, 4, 0.05),
                    ):
                        gradient = torch.autograd.grad(loss, at[1])[0]
                        for rank, outcome in enumerate(results):
                            value, found = outcome[index]
                            assert value == pytest.approx(loss.item(), rel=1e-4)
                            mine = gradient[rank * half : (rank + 1) * half]
                            error = (found.double() - mine).abs().max() / mine.abs().max()
                            assert error < 1e-3
                        index += 1


def test_iternorm_as_a_transform_is_as_the_loss() -> None:
    views = [scaled(12, 20, 1e-20, seed) for seed in range(2)]
    torch.testing.assert_close(
        spectral_loss(views, IterNorm(4), 0.05), intl_loss(views, trace_weight=0.05)
    )


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", SHAPES)
def test_without_waiting_no_bit_differs_and_bad_values_become_nan(axis: str, shape: tuple) -> None:
    for scale in (1e-25, 1.0, 1e25):
        first, second = (scaled(*shape, scale, seed) for seed in (0, 1))

        def loss(z: Tensor, other: Tensor = second) -> Tensor:
            return intl_loss([z, other], axis, 4, 0.05)

        expected = value_and_gradient(loss, first)
        with without_waiting():
            found = value_and_gradient(loss, first)
            for one, two in zip(found, expected, strict=True):
                assert torch.equal(one, two)
            for bad in (float("nan"), float("inf")):
                broken = first.clone()
                broken[1, 2] = bad
                assert loss(broken).isnan()
                assert intl_ema_loss([first], broken, axis, 4, 0.05).isnan()
    with pytest.raises(NonFiniteError):
        loss(broken)


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-160, 1e-150, 1e150, 1e200, 1e300])
def test_float64_beyond_its_squares_is_refused_or_right(scale: float) -> None:
    """Whitening gave zeros at 1e-160, ranks were 0, and Barlow Twins without eps was 42 times off.

    All of these know no scale.
    """
    functions = {
        "iternorm": iternorm,
        "power": lambda z: power_transform(z, 0.5),
        "Cholesky": lambda z: cholesky_whitening(z, "channel"),
        "rank": lambda z: effective_rank(spectrum(z)),
        "condition": lambda z: condition_indicator(spectrum(z)),
        "Barlow Twins": lambda z: barlow_twins_loss([z, z.flip(0)], eps=0.0 if scale > 1 else 1.0),
    }
    z = embeddings(12, 20, 0)
    right = set()
    for name, f in functions.items():
        try:
            value = f(z * scale)
        except NonFiniteError:
            continue
        expected = f(z) if name != "Barlow Twins" or scale > 1 else torch.tensor(20.0).double()
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
        right.add(name)
    assert "iternorm" in right
    assert right == set(functions) or not 1e-154 < scale < 1e154
    assert power_transform(torch.zeros(12, 20).double(), 0.5).eq(0).all()
