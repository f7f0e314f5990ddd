"""Forward and backward passes are float32 islands, wherever they are called."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor

from intl_transfer.spectral import INTLLoss, intl_loss, iternorm
from intl_transfer.spectral.product import product
from tests.spectral.functions import embeddings, losses, transforms

SHAPES = [(8, 12), (12, 8)]
NAMES = [*transforms(4, 7), *losses(4, 7)]
HALVES = [torch.bfloat16, torch.float16]


def gradients(f, z: Tensor, dtype: torch.dtype | None, forward_too: bool) -> list[Tensor]:
    """Value, gradient and a second derivative, under autocast from a point on."""
    weights = embeddings(*z.shape, 5).to(z)
    z = z.clone().requires_grad_()
    region = torch.autocast("cpu", dtype) if dtype else contextlib.nullcontext()
    with region if forward_too else contextlib.nullcontext():
        value = f(z)
    with region:
        scalar = (value * weights).sum() if value.dim() else value
        first = torch.autograd.grad(scalar, z, retain_graph=True)[0]
        again = torch.autograd.grad(scalar, z, create_graph=True)[0]
        second = torch.zeros_like(z)
        if again.requires_grad:
            second = torch.autograd.grad((again * weights).sum(), z)[0]
    with region:
        scalar = f(z.detach().requires_grad_())
    assert scalar.dtype == z.dtype
    return [value.detach(), first, second]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_no_bit(name: str, shape: tuple) -> None:
    """Not of the value, the gradient or a second derivative: so no product was made in half."""
    f = {**transforms(*shape), **losses(*shape)}[name]
    z = embeddings(*shape, 3).float()
    expected = gradients(f, z, None, False)
    for dtype in HALVES:
        for forward_too in (True, False):
            found = gradients(f, z, dtype, forward_too)
            for ours, theirs in zip(found, expected, strict=True):
                assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", HALVES)
def test_under_torch_func_too(dtype: torch.dtype) -> None:
    views = [embeddings(8, 12, seed).float() for seed in range(2)]

    def f(z: Tensor) -> Tensor:
        return intl_loss([z, views[1]], trace_weight=0.05)

    expected = torch.func.grad(f)(views[0]), torch.func.hessian(f)(views[0])
    with torch.autocast("cpu", dtype):
        found = torch.func.grad(f)(views[0]), torch.func.hessian(f)(views[0])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_embeddings_that_autocast_has_made() -> None:
    """The usual training step: the network in half precision, the loss in float32."""
    network, images = torch.nn.Linear(6, 24), [torch.randn(16, 6) for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        views = [network(image) for image in images]
        assert views[0].dtype == torch.bfloat16
        loss = INTLLoss()(views)
        loss.backward()
    assert loss.dtype == torch.float32
    exact = [view.detach().double().requires_grad_() for view in views]
    truth = intl_loss(exact)
    assert loss.item() == pytest.approx(truth.item(), rel=1e-5)
    assert network.weight.grad is not None


@pytest.mark.parametrize("shapes", [((3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)), ((2, 3, 4), (4, 5))])
def test_products_are_matmul_to_any_order(shapes: tuple) -> None:
    a, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    torch.testing.assert_close(product(a, b), a @ b, rtol=0, atol=0)
    assert torch.autograd.gradcheck(product, (a, b), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(product, (a, b))
    for dims in ((0, None), (None, 0), (1, 1), (0, -1)):
        sizes = [list(shape) for shape in shapes]
        for size, dim in zip(sizes, dims, strict=True):
            if dim is not None:
                size.insert(dim if dim >= 0 else len(size), 3)
        left, right = (torch.randn(size, dtype=torch.float64) for size in sizes)
        found = torch.func.vmap(product, in_dims=dims)(left, right)
        expected = torch.func.vmap(torch.matmul, in_dims=dims)(left, right)
        torch.testing.assert_close(found, expected)


def test_the_direct_iteration_is_an_island_too() -> None:
    z = embeddings(8, 12).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = iternorm(z, stable=False)
    assert torch.equal(inside, iternorm(z, stable=False))
