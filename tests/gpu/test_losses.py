"""Losses and transformations on a GPU: float64 of the CPU, precision, and what they wait for."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor

from intl_transfer.methods import METHODS
from intl_transfer.spectral import intl_loss, without_waiting
from tests.spectral.functions import embeddings, losses, transforms
from tests.test_methods import LOSSES, configured

SHAPES = [(64, 96), (96, 64)]
NAMES = [*transforms(4, 7), *losses(4, 7)]


def correlated(rows: int, width: int, seed: int = 0) -> list[Tensor]:
    """Two views, float64 of float32's values, whose covariances are not those of noise."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(rows, width, generator=generator)
    common = common * torch.linspace(0.2, 2, width)
    return [
        (common + 0.5 * torch.randn(rows, width, generator=generator)).double() for _ in range(2)
    ]


def value_and_gradient(loss, views) -> tuple[Tensor, Tensor]:
    leaf = views[1].clone().requires_grad_()
    value = loss([views[0], leaf])
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def off(found: Tensor, expected: Tensor) -> float:
    """Relative error in the norm."""
    found = found.detach().double().cpu()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("shape", [(256, 512), (512, 64)])
@pytest.mark.parametrize("name", METHODS)
def test_methods_are_those_of_the_cpu_in_float64(device, name, shape):
    axis = "channel" if shape[0] < shape[1] else "batch"
    config = configured(f"method={name}", *LOSSES[name][0], f"axis={axis}")

    def loss(views):
        return METHODS[name].loss(views, config.loss, shape[0], {})

    # W-MSE whitens 16 rows at a time, of fewer channels
    views = correlated(shape[0], 8) if name == "w_mse" else correlated(*shape)
    expected, gradient = value_and_gradient(loss, views)
    value, found = value_and_gradient(loss, [view.float().to(device) for view in views])
    assert off(value, expected) < 1e-4
    assert off(found, gradient) < 1e-3


@pytest.mark.parametrize("views", [2, 6])
def test_the_published_size_is_that_of_the_cpu_in_float64(device, views):
    batches = [view for seed in range(views // 2) for view in correlated(256, 8192, seed)]
    leaves = [view.clone().requires_grad_() for view in batches]
    expected = intl_loss(leaves)
    gradient = torch.autograd.grad(expected, leaves)
    mine = [view.float().to(device).requires_grad_() for view in batches]
    value = intl_loss(mine)
    assert off(value, expected.detach()) < 1e-5
    for found, one in zip(torch.autograd.grad(value, mine), gradient, strict=True):
        assert off(found, one) < 1e-4


@contextlib.contextmanager
def allowed(precision: str):
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.cuda
def test_this_gpu_has_products_that_are_less_than_exact(device):
    """Without it, the tests of precision below would hold of anything."""
    a = torch.randn(256, 256, device=device)
    exact = a @ a
    with allowed("high"):
        assert not torch.equal(a @ a, exact)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_neither_tf32_nor_autocast_changes_a_bit(device, name, shape):
    def on(z: Tensor, half: torch.dtype | None = None) -> list[Tensor]:
        f = {**transforms(*shape), **losses(*shape)}[name]
        weights = embeddings(*shape, 5).to(z)
        leaf = z.clone().requires_grad_()
        region = torch.autocast(device.type, half) if half else contextlib.nullcontext()
        with region:
            value = f(leaf)
            scalar = (value * weights).sum() if value.dim() else value
            return [value.detach(), torch.autograd.grad(scalar, leaf)[0]]

    z = embeddings(*shape, 3).float().to(device)
    expected = on(z)
    cases = {half: on(z, half) for half in (torch.bfloat16, torch.float16)}
    with allowed("high"):
        cases["high"] = on(z)
    with allowed("medium"):
        cases["medium"] = on(z, torch.bfloat16)
    for case, found in cases.items():
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs), case


def test_tf32_of_the_newer_interface_changes_no_bit_either(device):
    products = torch.backends.cuda.matmul if device.type == "cuda" else torch.backends.mkldnn.matmul
    if not hasattr(products, "fp32_precision"):
        pytest.skip("torch is older than that interface")
    views = [view.float().to(device) for view in correlated(64, 96)]
    expected = value_and_gradient(intl_loss, views)
    before = products.fp32_precision
    products.fp32_precision = "tf32"
    try:
        found = value_and_gradient(intl_loss, views)
        assert products.fp32_precision == "tf32"
    finally:
        products.fp32_precision = before
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].is_iternorm])
@pytest.mark.cuda
def test_nothing_waits_for_the_gpu(device, name):
    """As pretraining calls it: torch raises where the host would wait."""
    config = configured(f"method={name}", *LOSSES[name][0])
    views = [view.float().to(device) for view in correlated(256, 512)]
    leaf = views[1].clone().requires_grad_()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with without_waiting():
            METHODS[name].loss([views[0], leaf], config.loss, 256, {}).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert leaf.grad is not None


def test_not_finite_embeddings_are_named(device):
    views = [view.float().to(device) for view in correlated(64, 96)]
    views[1][3, 5] = torch.inf
    with pytest.raises(FloatingPointError, match="NaN or infinity in the embeddings"):
        intl_loss(views)


@pytest.mark.parametrize("name", ["iternorm 4, channel", "power 0.5, channel", "cholesky"])
def test_second_derivatives_are_those_of_the_cpu(device, name):
    z = embeddings(8, 12, 3)
    f = transforms(8, 12)[name]

    def second(at: Tensor) -> Tensor:
        leaf = at.clone().requires_grad_()
        value = f(leaf)
        weights = embeddings(8, 12, 5).to(at)
        (first,) = torch.autograd.grad((value * weights).sum(), leaf, create_graph=True)
        return torch.autograd.grad((first * weights).sum(), leaf)[0]

    assert off(second(z.to(device)), second(z)) < 1e-9
