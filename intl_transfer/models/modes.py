"""Training and evaluation mode, module by module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Within the block a network is in evaluation mode; afterwards each module has its own again.

    ``network.train()`` alone would also put layers into training that were frozen.

    Args:
        network: any.
    """
    before = [(module, module.training) for module in network.modules()]
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)  # which a class may have given more to do
        for module, mode in before:
            module.training = mode
