"""Second derivatives against central differences and closed forms, whichever way they are taken."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from intl_transfer.spectral import (
    intl_ema_loss,
    intl_loss,
    iternorm,
    matrix_function,
    power_transform,
    spectral_transform,
    vicreg_loss,
)
from tests.ranks import run_ranks
from tests.spectral.functions import AXES, embeddings, losses, own, transforms

# N < d and N > d, the smaller side centered or not.
SHAPES = [(4, 7), (7, 4)]
NAMES = [*transforms(4, 7), *losses(4, 7)]


def function(name: str, n: int, d: int):
    return {**transforms(n, d), **losses(n, d)}[name]


def weighted(name: str, n: int, d: int):
    """As a scalar."""
    f, weights = function(name, n, d), embeddings(n, d, 5)
    return lambda z: (f(z) * weights).sum() if f(z).dim() else f(z)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_are_those_of_central_differences(name: str, shape: tuple) -> None:
    z = embeddings(*shape, 3).requires_grad_()
    assert torch.autograd.gradgradcheck(
        function(name, *shape), (z,), fast_mode=True, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_to_be_differentiated_again_is_the_gradient(name: str) -> None:
    shape = (6, 9)
    z, f = embeddings(*shape, 3).requires_grad_(), weighted(name, *shape)
    (expected,) = torch.autograd.grad(f(z), z)
    (gradient,) = torch.autograd.grad(f(z), z, create_graph=True)
    assert gradient.requires_grad or name.startswith("power 0.0")  # which is linear
    torch.testing.assert_close(gradient.detach(), expected, rtol=1e-9, atol=1e-10)
    f(z).backward(create_graph=True)
    torch.testing.assert_close(z.grad.detach(), expected, rtol=1e-9, atol=1e-10)
    z.grad = None  # torch warns of a cycle otherwise


def finite_difference(f, z: Tensor, along: Tensor, step: float = 1e-5) -> Tensor:
    """Of the gradient, along a direction."""
    ends = []
    for sign in (1, -1):
        at = (z + sign * step * along).requires_grad_()
        ends.append(torch.autograd.grad(f(at), at)[0])
    return (ends[0] - ends[1]) / (2 * step)


@pytest.mark.parametrize("name", NAMES)
def test_transforms_of_functions(name: str) -> None:
    shape = (3, 5) if len(name) % 2 else (5, 3)
    z, along, f = embeddings(*shape, 3), embeddings(*shape, 4), weighted(name, *shape)
    at = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(at), at)
    second = finite_difference(f, z, along)
    near = functools.partial(torch.testing.assert_close, rtol=1e-8, atol=1e-8)
    near(torch.func.grad(f)(z), gradient)
    near(torch.func.vjp(f, z)[1](torch.tensor(1.0).double())[0], gradient)
    near(torch.func.jvp(f, (z,), (along,))[1], (gradient * along).sum())
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(z, along))).tangent
        near(tangent, (gradient * along).sum())
    for hessian in (
        torch.func.hessian(f),
        torch.func.jacrev(torch.func.jacrev(f)),
        torch.func.jacfwd(torch.func.jacfwd(f)),
    ):
        product = torch.einsum("ijkl,kl->ij", hessian(z), along)
        torch.testing.assert_close(product, second, rtol=1e-4, atol=1e-5)
    batches = torch.stack([z, z + 0.1 * along, along], 1)
    each = [f(batch) for batch in batches.unbind(1)]
    near(torch.func.vmap(f, in_dims=1)(batches), torch.stack(each))
    near(torch.func.vmap(torch.func.grad(f), in_dims=1)(batches)[0], gradient)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_mapped_over_a_batch(name: str) -> None:
    """As torch.autograd.functional does, whose batches are not those of torch.func."""
    shape = (3, 5) if len(name) % 2 else (5, 3)
    z, f = embeddings(*shape, 3), weighted(name, *shape)
    at = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(at), at)
    factors = torch.tensor([1.0, -2.0]).double()
    value = f(at)
    (both,) = torch.autograd.grad(value, at, factors, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(both, factors[:, None, None] * gradient)
    # What was done in place for one gradient is not there for the next.
    torch.testing.assert_close(torch.autograd.grad(value, at)[0], gradient)
    jacobian = torch.autograd.functional.jacobian
    for strategy in ("reverse-mode", "forward-mode"):
        torch.testing.assert_close(jacobian(f, z, vectorize=True, strategy=strategy), gradient)
    along = embeddings(*shape, 4)
    hessian = torch.autograd.functional.hessian(f, z, vectorize=True)
    product = torch.einsum("ijkl,kl->ij", hessian, along)
    torch.testing.assert_close(product, finite_difference(f, z, along), rtol=1e-4, atol=1e-5)


def symmetric(n: int, seed: int) -> Tensor:
    root = embeddings(n, 2 * n, seed)
    return root @ root.T / n


POLYNOMIALS = {
    "cube": (lambda x: x**3, lambda s: s @ s @ s),
    "inverse": (lambda x: 1 / x, torch.linalg.inv),
    "exponential": (torch.exp, torch.linalg.matrix_exp),
}


@pytest.mark.parametrize("name", POLYNOMIALS)
@pytest.mark.parametrize(
    "sigma",
    [
        symmetric(5, 0),
        2 * torch.eye(4).double(),
        torch.diag(torch.tensor([1.0, 1.0, 3.0, 3.0, 3.0]).double()),
        torch.diag(torch.tensor([1.0, 1 + 1e-9, 1 + 1e-6, 1 + 1e-4, 1.01, 2.0]).double()),
    ],
    ids=["any", "one eigenvalue", "two eigenvalues", "near ones"],
)
def test_matrix_functions_that_need_no_eigenvalues(name: str, sigma: Tensor) -> None:
    """The second derivative, at repeated and at nearly repeated eigenvalues."""
    g, expected_of = POLYNOMIALS[name]
    n = len(sigma)
    moves, weights = symmetric(n, 1), symmetric(n, 2)

    def second(f) -> Tensor:
        s = sigma.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((f(s) * weights).sum(), s, create_graph=True)
        (again,) = torch.autograd.grad((gradient * moves).sum(), s)
        return again + again.T

    found = second(lambda s: matrix_function(s, g))
    torch.testing.assert_close(found, second(expected_of), rtol=1e-6, atol=1e-7)
    hessian = torch.func.hessian(lambda s: (matrix_function(s, g) * weights).sum())(sigma)
    forward = torch.einsum("ijkl,kl->ij", hessian, moves)
    torch.testing.assert_close(forward + forward.T, found, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6)])
def test_second_derivatives_of_whitened_embeddings(axis: str, shape: tuple) -> None:
    """All of whose eigenvalues are one."""
    z = power_transform(embeddings(*shape), 0.5, axis)
    weights, along = embeddings(*shape, 1), embeddings(*shape, 2)
    for transform in (
        functools.partial(power_transform, p=0.7, axis=axis),
        functools.partial(iternorm, axis=axis, iterations=9),
        functools.partial(spectral_transform, g=own, axis=axis),
    ):

        def f(v: Tensor, transform=transform) -> Tensor:
            return (transform(v) * weights).pow(2).sum()

        at = z.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(f(at), at, create_graph=True)
        (product,) = torch.autograd.grad((gradient * along).sum(), at)
        expected = finite_difference(f, z, along, 1e-4)
        torch.testing.assert_close(product, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("axis", AXES)
def test_eigenvalues_that_follow_the_floor(axis: str) -> None:
    """Half of them below it: they move with the trace."""
    z = embeddings(5, 8) if axis == "channel" else embeddings(8, 5)
    raised = functools.partial(spectral_transform, g=own, axis=axis, floor=0.25)
    assert torch.autograd.gradcheck(raised, (z.requires_grad_(),), fast_mode=True)
    assert torch.autograd.gradgradcheck(raised, (z,), atol=1e-5, fast_mode=True)


def test_iteration_is_differentiable_to_any_order_and_eigenvalues_say_that_they_are_not() -> None:
    z, weights = embeddings(4, 6), embeddings(4, 6, 1)

    def third(f) -> Tensor:
        at = z.clone().requires_grad_()
        (one,) = torch.autograd.grad((f(at) * weights).sum(), at, create_graph=True)
        (two,) = torch.autograd.grad((one * weights).sum(), at, create_graph=True)
        return torch.autograd.grad((two * weights).sum(), at)[0]

    def second_along(f, shift: float) -> Tensor:
        at = (z + shift * weights).requires_grad_()
        (one,) = torch.autograd.grad((f(at) * weights).sum(), at, create_graph=True)
        return torch.autograd.grad((one * weights).sum(), at)[0]

    difference = (second_along(iternorm, 1e-4) - second_along(iternorm, -1e-4)) / 2e-4
    torch.testing.assert_close(third(iternorm), difference, rtol=1e-5, atol=1e-6)
    whitening = functools.partial(power_transform, p=0.5)
    with pytest.raises(NotImplementedError, match="third derivatives of functions of eigenvalues"):
        third(whitening)
    triple = torch.func.jacfwd(torch.func.hessian(lambda v: (whitening(v) * weights).sum()))
    with pytest.raises(NotImplementedError, match="third derivatives"):
        triple(z)


N, D, V = 8, 12, 3


def make_views(seed: int = 0) -> list[Tensor]:
    return [embeddings(N, D, seed + view) for view in range(V)]


def _parts(own_rows: slice, sharded: bool | None = None) -> dict:
    """Losses of views; of iternorm this rank's part of a sum over rows. With the ranks' factor."""
    weights = embeddings(N, D, 7)[own_rows]
    parts: dict = {"vicreg": (vicreg_loss, True)}
    for axis in AXES:
        for iterations in (4, 9):
            settings = {
                "axis": axis,
                "iterations": iterations,
                "trace_weight": 0.1,
                "sharded": sharded,
            }
            intl = functools.partial(intl_loss, **settings)
            ema = functools.partial(intl_ema_loss, **settings)
            parts[f"intl {axis} {iterations}"] = (intl, True)
            parts[f"ema {axis} {iterations}"] = (lambda v, ema=ema: ema(v[1:], v[0]), True)

        def cubes(views: list[Tensor], axis: str = axis) -> Tensor:
            return (iternorm(views[1], axis) * weights).pow(3).sum()

        parts[f"iternorm {axis}"] = (cubes, False)
    return parts


def _hessian_vector(loss, rows: slice) -> list[Tensor | None]:
    views = [view[rows].clone().requires_grad_() for view in make_views()]
    along = [view[rows] for view in make_views(20)]
    first = torch.autograd.grad(loss(views), views, create_graph=True, allow_unused=True)
    inner = sum((g * a).sum() for g, a in zip(first, along, strict=True) if g is not None)
    return list(torch.autograd.grad(inner, views, allow_unused=True))


def _second_on_rank(rank: int, world_size: int) -> dict:
    from intl_transfer.spectral import sharding

    sharding._WORTH_SHARING = 1
    rows = slice(rank * N // world_size, (rank + 1) * N // world_size)
    outcome = {}
    for sharded in (True, False):
        for name, (loss, is_loss) in _parts(rows, sharded).items():
            # The gradient of W equal losses is W times that of one.
            factor = world_size if is_loss else 1
            found = _hessian_vector(loss, rows)
            outcome[name, sharded] = [None if g is None else g / factor for g in found]
    with pytest.raises(NotImplementedError, match=r"other 1 rank\(s\) .* distributed=False"):
        torch.func.grad(lambda v: intl_loss([v, make_views()[1]]))(make_views()[0])
    torch.func.grad(lambda v: intl_loss([v, make_views()[1]], distributed=False))(make_views()[0])
    return outcome


def test_ranks_together_equal_one_process() -> None:
    whole = {n: _hessian_vector(loss, slice(0, N)) for n, (loss, _) in _parts(slice(0, N)).items()}
    for rank, outcome in enumerate(run_ranks(_second_on_rank, 2)):
        for (name, _), found in outcome.items():
            for ours, expected in zip(found, whole[name], strict=True):
                assert (ours is None) == (expected is None), name
                if ours is not None:
                    mine = expected[rank * N // 2 : (rank + 1) * N // 2]
                    torch.testing.assert_close(ours, mine, rtol=1e-8, atol=1e-9)
