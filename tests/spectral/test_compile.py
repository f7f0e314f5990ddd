"""``torch.compile(fullgraph=True)``: every loss is one graph, its gradients the same, and right.

The backend is the cheapest that traces the backward pass; the graph and its operations are those
that inductor would get.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from intl_transfer.spectral import (
    INTLLoss,
    IterNorm,
    NonFiniteError,
    PowerTransform,
    ScalarTransform,
    barlow_twins_loss,
    cholesky_whitening,
    intl_ema_loss,
    intl_loss,
    iternorm,
    matrix_function,
    nt_xent_loss,
    power_transform,
    spectral_loss,
    spectral_transform,
    trace_loss,
    vicreg_loss,
    w_mse_loss,
)
from tests.ranks import run_ranks
from tests.spectral.functions import embeddings, own

N, D = 9, 12


def views(dtype: torch.dtype = torch.float32, count: int = 3) -> list[Tensor]:
    return [embeddings(N, D, seed).to(dtype) for seed in range(count)]


LOSSES = {
    "intl": lambda v: intl_loss(v),
    "intl, T = 5, batch axis": lambda v: intl_loss(v, "batch", 5),
    "intl, T = 9": lambda v: intl_loss(v, iterations=9),
    "intl, N > d": lambda v: intl_loss([z.T for z in v]),
    "ema": lambda v: intl_ema_loss(v[1:], v[0]),
    "trace loss": lambda v: trace_loss(v[0]) + trace_loss(v[1], "batch"),
    "power": lambda v: spectral_loss(v, PowerTransform(0.4), 0.1),
    "iternorm": lambda v: spectral_loss(v, IterNorm(4, "batch"), 0.1),
    "own": lambda v: spectral_loss(v, ScalarTransform(own), 0.1),
    "barlow twins": lambda v: barlow_twins_loss(v),
    "vicreg": lambda v: vicreg_loss(v),
    "nt-xent": lambda v: nt_xent_loss(v),
    "w-mse": lambda v: w_mse_loss([z[:, :4] for z in v]),
    "cholesky": lambda v: cholesky_whitening(v[0], "channel").pow(3).sum(),
    "matrix function": lambda v: matrix_function(v[0] @ v[0].mT, torch.log1p).square().sum(),
}


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def outcome(loss, given: list[Tensor]) -> list[Tensor]:
    at = [view.clone().requires_grad_() for view in given]
    value = loss(at)
    gradients = torch.autograd.grad(value, at, allow_unused=True)
    return [value.detach(), *(g for g in gradients if g is not None)]


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_one_graph(name: str) -> None:
    loss = LOSSES[name]
    whole = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = outcome(loss, views(torch.float64))
    with torch.autocast("cpu", torch.bfloat16, enabled=name != "matrix function"):
        found = outcome(whole, views())
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        error = (ours.double() - theirs).abs().max() / theirs.abs().max()
        assert error < 1e-5
    broken = views()
    broken[0][2, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        whole(broken)


def test_repeated_eigenvalues_scales_and_modules() -> None:
    """Where differentiating an eigendecomposition divides by zero; what a graph must not keep."""
    white, weights = power_transform(views(torch.float64)[0], 0.5), embeddings(N, D, 7)

    def loss(z: Tensor) -> Tensor:
        return (power_transform(z, 0.7) * weights).sum()

    whole = torch.compile(loss, fullgraph=True, backend="aot_eager")
    at = white.clone().requires_grad_()
    expected = torch.autograd.grad(loss(at), at)[0]
    torch.testing.assert_close(torch.autograd.grad(whole(at), at)[0], expected)

    module = torch.compile(INTLLoss(), fullgraph=True, backend="aot_eager")
    for scale in (1.0, 1e-20, 1e20):
        given = [view * scale for view in views()]
        assert module(given).item() == pytest.approx(intl_loss(views()).item(), rel=1e-5)


def test_second_derivatives_are_refused_or_right() -> None:
    given = views(torch.float64)

    def second(loss, backend: str) -> Tensor:
        torch._dynamo.reset()
        loss = torch.compile(loss, fullgraph=True, backend=backend)
        at = given[0].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(at), at, create_graph=True)
        return torch.autograd.grad((gradient * given[1]).sum(), at)[0]

    def iterated(z: Tensor) -> Tensor:
        return iternorm(z).pow(3).sum()

    def decomposed(z: Tensor) -> Tensor:
        return power_transform(z, 0.5).pow(3).sum()

    at = given[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(iterated(at), at, create_graph=True)
    expected = torch.autograd.grad((gradient * given[1]).sum(), at)[0]
    torch.testing.assert_close(second(iterated, "eager"), expected)
    with pytest.raises(NotImplementedError, match=r"without torch\.compile"):
        second(decomposed, "eager")
    for loss in (iterated, decomposed):  # torch's own limit
        with pytest.raises(RuntimeError):
            second(loss, "aot_eager")


def test_checks_are_in_the_graph() -> None:
    singular = torch.compile(cholesky_whitening, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match="singular on the batch axis"):
        singular(views()[0])
    share = torch.compile(
        lambda z: spectral_transform(z, lambda x: x / x.sum(-1, keepdim=True)),
        fullgraph=True,
        backend="aot_eager",
    )
    with pytest.raises(ValueError, match="map each eigenvalue independently"):
        share(views()[0])


def test_random_partitions_say_why_they_are_not() -> None:
    def loss(z: list[Tensor]) -> Tensor:
        return w_mse_loss(z, 8, 2, generator=torch.default_generator)

    narrow = [embeddings(16, 4, seed) for seed in range(2)]
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"knows no torch\.Generator"):
        torch.compile(loss, fullgraph=True, backend="eager")(narrow)
    torch._dynamo.reset()
    torch.manual_seed(0)
    found = torch.compile(loss, backend="eager")(narrow)
    torch.manual_seed(0)
    torch.testing.assert_close(found, loss(narrow))


def test_several_ranks_are_left_alone_and_say_why() -> None:
    for ours, theirs in run_ranks(_compiled_on_rank, 2):
        torch.testing.assert_close(ours, theirs)


def _compiled_on_rank(rank: int, world_size: int) -> tuple[Tensor, Tensor]:
    mine = [view[4 * rank : 4 * rank + 4] for view in views()]
    with pytest.raises(Exception, match="exchanges rows between ranks, which is not"):
        torch.compile(intl_loss, fullgraph=True, backend="eager")(mine)
    torch._dynamo.reset()
    broken = torch.compile(lambda v: 2 * intl_loss(v), backend="eager")
    return broken(mine), 2 * intl_loss(mine)
