"""What the ranks of a test compute: in a module of its own, which each rank imports."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tests.examples.method import margin_loss


def loss_of_a_rank(rank: int, world_size: int, views: Sequence[Tensor]) -> float:
    """The loss, given this rank's share of the rows of each view."""
    return float(margin_loss([view.chunk(world_size)[rank] for view in views]))
