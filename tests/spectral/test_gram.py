"""Products in blocks, parts and panels against the plain products, whatever the shapes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from intl_transfer.spectral.gram import self_product, sum_of_products, view_grams

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
    z, other, matrix = random(n, d), random(n, d), random(n, n)
    torch.testing.assert_close(self_product(z), z @ z.T)
    total = sum_of_products([(matrix, z), (matrix.T, other)])
    torch.testing.assert_close(total, matrix @ z + matrix.T @ other)
    # Views of one tensor, whose rows do not follow each other in memory.
    stack = torch.stack([z, other], dim=1).transpose(0, 1)
    torch.testing.assert_close(self_product(stack), stack @ stack.mT)
    torch.testing.assert_close(
        sum_of_products([(matrix, stack[0]), (matrix, stack[1])]), matrix @ (z + other)
    )


@pytest.mark.parametrize("target_too", [True, False])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_gradients_of_grams_are_those_of_autograd(
    threads: int, n: int, d: int, target_too: bool
) -> None:
    views = [random(n, d).requires_grad_() for _ in range(3)]
    to_own, to_cross = random(3, n, n), random(2, n, n)
    own, cross = view_grams(views, target_too)
    expected_own = torch.stack([view @ view.T for view in views])
    expected_cross = torch.stack([view @ views[0].T for view in views[1:]])
    torch.testing.assert_close(own, expected_own)
    torch.testing.assert_close(cross, expected_cross)
    wanted = views if target_too else views[1:]
    gradients = torch.autograd.grad((own, cross), wanted, (to_own, to_cross))
    expected = torch.autograd.grad((expected_own, expected_cross), wanted, (to_own, to_cross))
    torch.testing.assert_close(gradients, expected)
