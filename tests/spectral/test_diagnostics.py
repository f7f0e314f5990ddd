from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from intl_transfer.spectral import (
    NonFiniteError,
    alignment,
    collapse_alarm,
    condition_indicator,
    diagnose,
    effective_rank,
    feature_std,
    iternorm,
    spectrum,
    stable_rank,
    trace_loss,
    trace_loss_bound,
    uniformity,
)
from tests.spectral import reference

AXES = ["channel", "batch"]


def embeddings(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator).double() * torch.linspace(0.2, 2, d).double()


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", [(8, 20), (20, 8)])
def test_spectrum_is_that_of_the_full_covariance(axis, shape):
    z = embeddings(*shape)
    full = torch.linalg.eigvalsh(reference.covariance(z, axis)).flip(0)
    # Where the smaller side is the centered one, one direction of it is empty.
    rank = 8 if (axis == "channel") == (shape[0] < shape[1]) else 7
    torch.testing.assert_close(spectrum(z, axis), full[:rank], rtol=1e-9, atol=0)
    assert full[rank:].abs().sum() < 1e-12


def with_condition(n: int, d: int, condition: float, axis: str) -> np.ndarray:
    """Embeddings whose covariance has eigenvalues from 1 to 10^condition, as many as it can."""
    random = np.random.default_rng(1)
    rank = min(n, d - 1) if axis == "channel" else min(n - 1, d)

    def directions(size: int, is_centered: bool) -> np.ndarray:
        start = random.standard_normal((size, rank))
        if is_centered:
            start = start - start.mean(0)
        return np.linalg.qr(start)[0]

    left, right = directions(n, axis == "batch"), directions(d, axis == "channel")
    return (left * np.logspace(0, condition / 2, rank)) @ right.T + 1.5


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (32, 32)])
@pytest.mark.parametrize("condition", [-2, -6, -8, -10, -12])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_condition_and_ranks_are_those_of_a_singular_value_decomposition(
    axis, shape, condition, dtype
):
    z = torch.from_numpy(with_condition(*shape, condition, axis)).to(dtype)
    exact = z.double().numpy()
    along = 1 if axis == "channel" else 0
    exact = exact - exact.mean(along, keepdims=True)
    singular = np.linalg.svd(exact, compute_uv=False)
    rank = min(shape[0], shape[1] - 1) if axis == "channel" else min(shape[0] - 1, shape[1])
    singular = singular[:rank]
    truth = 2 * np.log10(singular[-1] / singular[0])
    if dtype == torch.float64:
        assert truth == pytest.approx(condition, abs=1e-5)
    views = [z, z.roll(1, 0)]
    figures = diagnose(views, axis)
    assert figures.condition == pytest.approx(truth, abs=1e-2 if condition == -12 else 1e-4)
    assert condition_indicator(spectrum(z, axis)) == pytest.approx(figures.condition, abs=1e-3)
    assert figures.eigenvalues.shape == (rank,)
    assert figures.eigenvalues.dtype == torch.float64
    freedom = shape[along] - 1
    np.testing.assert_allclose(
        figures.eigenvalues, singular**2 / freedom, rtol=1e-8, atol=1e-15 * singular[0] ** 2
    )
    share = singular / singular.sum()
    assert figures.effective_rank == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-5)
    squares = singular**2
    assert figures.stable_rank == pytest.approx(squares.sum() / squares[0], rel=1e-9)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (20, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_healthy_batch_has_a_finite_condition_and_a_collapsed_one_has_not(axis, shape, dtype):
    torch.manual_seed(0)
    z = torch.randn(shape).to(dtype)
    assert -5 < diagnose([z, z], axis).condition < 0
    one = torch.randn(shape[0], 1) @ torch.randn(1, shape[1])
    assert diagnose([one, one], axis).condition < -12
    for nothing in (torch.zeros(shape), torch.ones(shape)):
        assert diagnose([nothing, nothing], axis).condition == -math.inf


def test_figures_of_known_spectra():
    white = torch.ones(5).double()
    assert condition_indicator(white) == 0
    assert effective_rank(white) == pytest.approx(5)
    assert stable_rank(white) == 5
    one = torch.tensor([2.0, 0.0, 0.0])
    assert effective_rank(one) == pytest.approx(1)
    assert stable_rank(one) == 1
    assert condition_indicator(one) == -math.inf
    assert condition_indicator(torch.tensor([1.0, 0.1, 1e-3])) == pytest.approx(-3)
    for figure in (effective_rank, stable_rank):
        assert figure(torch.zeros(4)) == 0
    # RankMe's definition, on singular values.
    z = embeddings(9, 30)
    singular = torch.linalg.svdvals(reference.centered(z, "channel"))
    p = singular / singular.sum()
    expected = math.exp(-float((p * p.log()).sum()))
    assert effective_rank(spectrum(z)) == pytest.approx(expected, rel=1e-6)


def test_figures_of_pairs_follow_their_definitions():
    a, b = embeddings(7, 12), embeddings(7, 12, seed=1)
    x, y = F.normalize(a, dim=1), F.normalize(b, dim=1)
    assert alignment(a, b) == pytest.approx(float(((x - y) ** 2).sum(1).mean()))
    pairs = torch.pdist(x).square()
    assert uniformity(a) == pytest.approx(float((-2 * pairs).exp().mean().log()))
    assert feature_std(a) == pytest.approx(float(x.std(0).mean()))
    assert uniformity(torch.ones(4, 3)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="N >= 2"):
        uniformity(torch.ones(1, 3))


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 10),
    d=st.integers(2, 20),
    iterations=st.integers(0, 8),
    rank=st.integers(1, 10),
    axis=st.sampled_from(AXES),
    seed=st.integers(0, 999),
)
def test_no_batch_of_a_rank_beats_its_bound(n, d, iterations, rank, axis, seed):
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(n, rank, generator=generator).double()
    z = left @ torch.randn(rank, d, generator=generator).double()
    size = n if axis == "channel" else d
    value = float(trace_loss(iternorm(z, axis, iterations), axis))
    assert value >= trace_loss_bound(size, iterations, min(rank, size)) - 1e-9
    alarm = collapse_alarm(value, size, iterations)
    assert alarm.rank_at_least <= min(rank, n, d)
    assert alarm.verdict != "impossible"


def test_bound_and_its_published_values():
    assert [round(trace_loss_bound(n), 2) for n in (128, 256, 512)] == [85.85, 209.60, 463.25]
    assert round(trace_loss_bound(256, rank=1), 1) == 254.0
    bounds = [trace_loss_bound(64, rank=k) for k in range(1, 65)]
    assert bounds == sorted(set(bounds), reverse=True)
    with pytest.raises(ValueError, match="rank is 65; expected 1 to N = 64"):
        trace_loss_bound(64, rank=65)


def test_the_alarm_tells_collapse_from_health():
    spread = torch.randn(64, 1024)
    assert diagnose([spread, spread]).alarm.verdict == "healthy"
    collapsed = torch.randn(64, 1) * torch.randn(1, 1024) + 0.01 * spread
    figures = diagnose([collapsed, spread])
    assert figures.alarm.verdict == "collapsed"
    assert figures.effective_rank < 30
    assert figures.scalars()["collapsed"] == 1
    assert "eigenvalues" not in figures.scalars()
    assert collapse_alarm(10.0, 256).verdict == "impossible"
    assert collapse_alarm(trace_loss_bound(256), 256).verdict == "healthy"
    zero = diagnose([torch.zeros(8, 16), torch.zeros(8, 16)])
    assert zero.alarm.verdict == "collapsed"
    assert zero.trace_loss == pytest.approx(8)


@pytest.mark.parametrize(
    ("axis", "shape"),
    [("channel", (512, 8)), ("channel", (1024, 16)), ("batch", (8, 512)), ("batch", (32, 2048))],
)
def test_the_alarm_knows_what_the_other_side_allows(axis, shape):
    """A batch of full rank was called collapsed where the other side is 32 times smaller."""
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(shape, generator=generator) for _ in range(2)]
    found = diagnose(views, axis)
    assert found.effective_rank > 0.9 * len(found.eigenvalues)
    assert found.alarm.verdict == "healthy"
    assert found.alarm.rank_at_least <= len(found.eigenvalues)
    # White embeddings of this shape reach the floor, and none less.
    left, _, right = torch.linalg.svd(
        reference.centered(views[0].double(), axis), full_matrices=False
    )
    rank = len(found.eigenvalues)
    white = left[:, :rank] @ right[:rank]
    size = shape[0] if axis == "channel" else shape[1]
    assert found.alarm.floor == pytest.approx(trace_loss_bound(size, 4, rank))
    assert float(trace_loss(iternorm(white, axis), axis)) >= found.alarm.floor - 1e-6
    one = torch.randn(shape[0], 1, generator=generator) * torch.randn(1, shape[1])
    assert diagnose([one, one], axis).alarm.verdict == "collapsed"


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", [(16, 40), (40, 16)])
def test_all_figures_at_once_equal_each_by_itself(axis, shape):
    views = [embeddings(*shape), embeddings(*shape, seed=1)]
    figures = diagnose(views, axis)
    values = spectrum(views[0], axis)
    assert figures.condition == pytest.approx(float(condition_indicator(values)), rel=1e-9)
    assert -6 < figures.condition < -0.1
    assert figures.effective_rank == pytest.approx(float(effective_rank(values)))
    assert figures.alignment == pytest.approx(float(alignment(*views)))
    expected = float(trace_loss(iternorm(views[0], axis), axis))
    assert figures.trace_loss == pytest.approx(expected, rel=1e-8)


def test_bad_input():
    with pytest.raises(ValueError, match=r"1 view\(s\)"):
        diagnose([torch.randn(4, 8)])
    with pytest.raises(TypeError, match=r"view 1: expected a torch.Tensor"):
        diagnose([torch.randn(4, 8), [[1.0, 2.0]]])
    with pytest.raises(ValueError, match=r"view 0: expected shape \(N, d\), found \(2, 4, 8\)"):
        diagnose(torch.randn(2, 2, 4, 8))
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="expected a finite one"):
            collapse_alarm(value, 256)
    with pytest.raises(NonFiniteError):
        spectrum(torch.full((4, 8), math.nan))
    with pytest.raises(NonFiniteError):
        diagnose([torch.full((4, 8), math.inf), torch.randn(4, 8)])
    for other in (torch.randn(4, 1), torch.randn(1, 8), torch.randn(8), torch.randn(2, 4, 8)):
        with pytest.raises(ValueError, match="expected"):
            alignment(torch.randn(4, 8), other)
    with pytest.raises(ValueError, match="N >= 2"):
        feature_std(torch.randn(1, 8))
