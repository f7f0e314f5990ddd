"""Each baseline against its paper's formula written out sample by sample, and over ranks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from intl_transfer.spectral import (
    NonFiniteError,
    PowerTransform,
    barlow_twins_loss,
    nt_xent_loss,
    spectral_loss,
    vicreg_loss,
    w_mse_loss,
)
from tests.ranks import run_ranks

N, D = 12, 5


def make_views(count: int = 2, n: int = N, d: int = D) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    common = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return [
        common + 0.4 * torch.randn(n, d, generator=generator, dtype=torch.float64)
        for _ in range(count)
    ]


def barlow_twins(a, b):
    norm = torch.nn.BatchNorm1d(D, affine=False).double()
    c = norm(a).T @ norm(b) / N
    loss = 0.0
    for i in range(D):
        for j in range(D):
            loss = loss + ((1 - c[i, i]) ** 2 if i == j else 0.0051 * c[i, j] ** 2)
    return loss


def vicreg(a, b):
    loss = 25 * F.mse_loss(a, b)
    for z in (a, b):
        loss = loss + 25 * F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() / 2
        covariance = torch.cov(z.T)
        squares = [covariance[i, j] ** 2 for i in range(D) for j in range(D) if i != j]
        loss = loss + sum(squares) / D
    return loss


def nt_xent(a, b, temperature=0.1):
    everyone = F.normalize(torch.cat([a, b]), dim=1)
    loss = 0.0
    for i in range(2 * N):
        scores = [everyone[i] @ everyone[j] / temperature for j in range(2 * N)]
        denominator = sum(scores[j].exp() for j in range(2 * N) if j != i)
        loss = loss - (scores[(i + N) % (2 * N)].exp() / denominator).log()
    return loss / (2 * N)


def w_mse(a, b):
    def whitened(z):
        z = z - z.mean(0)
        factor = torch.linalg.cholesky(torch.cov(z.T))
        return F.normalize(torch.stack([torch.linalg.inv(factor) @ row for row in z]), dim=1)

    return (whitened(a) - whitened(b)).square().sum(1).mean()


def half_power(a, b):
    def whitened(z):
        z = z - z.mean(1, keepdim=True)
        values, vectors = torch.linalg.eigh(z.T @ z)
        # N > d: one direction (all channels alike) is empty.
        keep = values > 1e-10
        vectors, values = vectors[:, keep], values[keep]
        return z @ vectors @ torch.diag(values.pow(-0.5)) @ vectors.T

    return 2 - 2 * F.cosine_similarity(whitened(a), whitened(b)).mean()


def spectral(views):
    return spectral_loss(views, PowerTransform(0.5))


PAIRS = {
    "barlow twins": (barlow_twins_loss, barlow_twins),
    "vicreg": (vicreg_loss, vicreg),
    "nt-xent": (nt_xent_loss, nt_xent),
    "w-mse": (w_mse_loss, w_mse),
    "power": (spectral, half_power),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("count", [2, 3])
def test_equals_the_formula(name, count):
    ours, formula = PAIRS[name]
    views = [view.requires_grad_() for view in make_views(count)]
    pairs = [(views[0], view) for view in views[1:]]
    if name == "w-mse" and count == 3:
        pairs.append((views[1], views[2]))
    loss = ours(views)
    expected = sum(formula(a, b) for a, b in pairs) / len(pairs)
    assert loss.item() == pytest.approx(float(torch.as_tensor(expected).detach()), rel=1e-9)
    if name != "power":  # whose reference differentiates through eigh
        for a, b in zip(
            torch.autograd.grad(loss, views), torch.autograd.grad(expected, views), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", PAIRS)
def test_gradient(name):
    loss = PAIRS[name][0]
    # Where d < N, the channel axis has an empty direction, on which finite differences see noise.
    views = [view.requires_grad_() for view in make_views(n=4 if name == "power" else N)]
    assert torch.autograd.gradcheck(lambda a, b: loss([a, b]), views, atol=1e-5)


def test_w_mse_whitens_each_sub_batch_by_itself():
    views = make_views(n=24)
    halves = [[view[:12] for view in views], [view[12:] for view in views]]
    expected = sum(w_mse_loss(half).item() for half in halves) / 2
    assert w_mse_loss(views, whitening_size=12).item() == pytest.approx(expected, rel=1e-9)
    generator = torch.Generator().manual_seed(0)
    one = w_mse_loss(views, 12, 3, generator=generator)
    again = w_mse_loss(views, 12, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one, again)
    assert not torch.isclose(one, w_mse_loss(views, 12))
    with pytest.raises(ValueError, match="divisor of the batch, N = 24"):
        w_mse_loss(views, 10)
    with pytest.raises(ValueError, match="together with a generator"):
        w_mse_loss(views, 12, 2)
    with pytest.raises(ValueError, match="d < N"):
        w_mse_loss(make_views(n=4))


def _on_rank(rank: int, world_size: int) -> dict[str, tuple]:
    rows, outcome = N // world_size, {}
    for name, (loss_of, _) in PAIRS.items():
        views = [
            view[rank * rows : (rank + 1) * rows].clone().requires_grad_() for view in make_views(3)
        ]
        loss = loss_of(views)
        (loss / world_size).backward()
        outcome[name] = (loss.item(), [view.grad for view in views])
    return outcome


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_equal_one_process(world_size):
    rows = N // world_size
    for rank, outcome in enumerate(run_ranks(_on_rank, world_size)):
        for name, (loss_of, _) in PAIRS.items():
            views = [view.requires_grad_() for view in make_views(3)]
            loss = loss_of(views)
            loss.backward()
            its_loss, gradients = outcome[name]
            assert its_loss == pytest.approx(loss.item(), rel=1e-9), name
            for view, gradient in zip(views, gradients, strict=True):
                mine = view.grad[rank * rows : (rank + 1) * rows]
                torch.testing.assert_close(gradient, mine, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", PAIRS)
def test_bad_input(name):
    loss_of = PAIRS[name][0]
    views = [view.float() for view in make_views()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss_of(views)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, loss_of(views))
    with pytest.raises(ValueError, match=r"1 view\(s\)"):
        loss_of(views[:1])
    for value in (math.nan, math.inf):
        broken = views[1].clone()
        broken[3, 2] = value
        with pytest.raises(NonFiniteError):
            loss_of([views[0], broken])


def test_bad_settings():
    with pytest.raises(ValueError, match="temperature is 0; expected a number > 0"):
        nt_xent_loss(make_views(), 0)
    for loss_of in (barlow_twins_loss, vicreg_loss, w_mse_loss):
        with pytest.raises(ValueError, match=r"N = 1 \(all ranks together\); expected N >= 2"):
            loss_of([view[:1] for view in make_views()])


@pytest.mark.parametrize("partitions", [1, 2])
def test_w_mse_does_not_depend_on_the_default_device(partitions):
    views = [torch.randn(8, 2) for _ in range(2)]
    losses = []
    for device in ("cpu", "meta"):
        generator = torch.Generator("cpu").manual_seed(0)
        with torch.device(device):
            losses.append(w_mse_loss(views, 4, partitions, 0.1, generator))
    assert torch.equal(*losses)
