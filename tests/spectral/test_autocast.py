"""Forward and backward passes are in full precision, wherever they are called."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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


class Products(TorchDispatchMode):
    """The precisions that torch was asked for, whenever matrices of float32 were multiplied."""

    NAMES = ("mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot", "linalg_solve_triangular")

    def __init__(self) -> None:
        super().__init__()
        self.precisions: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.NAMES and args[-1].dtype == torch.float32:
            self.precisions.append(float32_precision())
        return func(*args, **(kwargs or {}))


def float32_precision() -> str:
    """That of products of float32 on the CPU, in the words of ``set_float32_matmul_precision``."""
    products = getattr(torch.backends.mkldnn, "matmul", None)
    if not hasattr(products, "fp32_precision"):  # torch < 2.9
        return torch.get_float32_matmul_precision()
    return {"ieee": "highest", "none": "highest", "tf32": "high", "bf16": "medium"}[
        products.fp32_precision
    ]


@pytest.fixture(params=["high", "medium"])
def reduced(request):
    """A program that allows products of float32 to be faster than exact, as Lightning advises."""
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    assert float32_precision() == request.param  # as the program left it
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_products_are_of_float32_whatever_a_program_allows(name, shape, reduced) -> None:
    f = {**transforms(*shape), **losses(*shape)}[name]
    with Products() as products:
        gradients(f, embeddings(*shape, 3).float(), None, False)
    assert set(products.precisions) <= {"highest"}  # none where all is float64


def test_values_do_not_depend_on_what_a_program_allows(reduced) -> None:
    views = [torch.randn(256, 512, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    losses = {}
    for precision in ("highest", reduced):
        torch.set_float32_matmul_precision(precision)
        leaves = [view.clone().requires_grad_() for view in views]
        losses[precision] = torch.autograd.grad(intl_loss(leaves), leaves)
    for ours, theirs in zip(*losses.values(), strict=True):
        assert torch.equal(ours, theirs)


def test_an_error_leaves_the_precision_as_it_was(reduced) -> None:
    with pytest.raises(ValueError, match="a target and at least one"):
        intl_loss([torch.randn(8, 4)])
    with pytest.raises(FloatingPointError):
        intl_loss([torch.full((8, 4), torch.nan), torch.randn(8, 4)])


def test_the_stages_decide_themselves_and_not_the_container() -> None:
    """NVIDIA's containers allow TF32 by a variable; torch reads it when it starts."""
    code = (
        "import torch\nfrom intl_transfer.devices import set_numerics\n"
        "before = torch.get_float32_matmul_precision()\nset_numerics(benchmark=False)\n"
        "print(before, torch.get_float32_matmul_precision())"
    )
    environment = {**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["high", "highest"]
