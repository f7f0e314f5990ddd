"""Products in blocks, parts and panels against the plain products, whatever the shapes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from intl_transfer.spectral.gram import self_product, view_grams

# Fewer columns than a panel, several panels, some left over, odd widths; rows in blocks or not.
SHAPES = [(200, 4608), (130, 2049), (130, 2050), (7, 5), (128, 2048), (1, 1)]


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """What decides on the number of parts."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_products_are_the_plain_ones(threads: int, n: int, d: int) -> None:
    z, other = random(n, d), random(n, d)
    torch.testing.assert_close(self_product(z), z @ z.T)
    # Views of one tensor, whose rows do not follow each other in memory.
    stack = torch.stack([z, other], dim=1).transpose(0, 1)
    torch.testing.assert_close(self_product(stack), stack @ stack.mT)


def plain_grams(views: list[Tensor], centers: bool) -> tuple[Tensor, Tensor]:
    if centers:
        views = [view - view.mean(-1, keepdim=True) for view in views]
    own = torch.stack([view @ view.T for view in views])
    return own, torch.stack([view @ views[0].T for view in views[1:]])


@pytest.mark.parametrize("centers", [True, False])
@pytest.mark.parametrize("target_too", [True, False])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_gradients_of_grams_are_those_of_autograd(
    threads: int, n: int, d: int, target_too: bool, centers: bool
) -> None:
    views = [random(n, d).requires_grad_() for _ in range(3)]
    # Columns beside each other in memory, as those of a transposed network output are.
    views[1] = random(d, n).T.requires_grad_()
    given = [view.detach().clone() for view in views]
    to_grams = random(3, n, n), random(2, n, n)
    grams, expected_grams = view_grams(views, target_too, centers), plain_grams(views, centers)
    torch.testing.assert_close(grams, expected_grams)
    requested = views if target_too else views[1:]
    expected = torch.autograd.grad(expected_grams, requested, to_grams)
    # A graph that is kept gives the same again, though the first pass took memory for gradients.
    for keeps in (True, True, False):
        gradients = torch.autograd.grad(grams, requested, to_grams, retain_graph=keeps)
        torch.testing.assert_close(gradients, expected)
    torch.testing.assert_close([view.detach() for view in views], given, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(grams, requested, to_grams)


def test_gradients_take_the_precision_of_their_views() -> None:
    views = [random(8, 32).bfloat16().requires_grad_() for _ in range(2)]
    precise = [view.detach().float().requires_grad_() for view in views]
    grams, expected_grams = view_grams(views, centers=True), view_grams(precise, centers=True)
    torch.testing.assert_close(grams, expected_grams, rtol=0, atol=0)
    gradients = torch.autograd.grad(grams[0].sum(), views)
    expected = torch.autograd.grad(expected_grams[0].sum(), precise)
    torch.testing.assert_close(gradients, tuple(one.bfloat16() for one in expected))
