"""Activation checkpointing: less memory for more time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


def checkpoint_activations(backbone: nn.Module) -> None:
    """Stores a ResNet's activations only between its stages, and recomputes the others.

    Names, parameters, results and running statistics are unchanged: the second forward pass does
    not update the latter again, and draws the same random numbers. About a third more time for less
    than half the memory.

    Args:
        backbone: a ResNet with ``layer1`` to ``layer4``; changed in place.
    """
    for name in ("layer1", "layer2", "layer3", "layer4"):
        stage = getattr(backbone, name)
        stage.forward = partial(_forward, stage, stage.forward)


def is_checkpointed(module: nn.Module) -> bool:
    """Whether a module is a stage with recomputed activations."""
    forward: Any = module.forward
    return isinstance(forward, partial) and forward.func is _forward


def own_forward(module: nn.Module) -> Any:
    """A module's ``forward``, without the recomputation of activations."""
    forward: Any = module.forward
    return forward.args[1] if is_checkpointed(module) else forward


def _forward(stage: nn.Module, forward: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(features)
    return checkpointed([stage], forward, [features])


def checkpointed(
    stages: Sequence[nn.Module], forward: Callable[..., T], features: Sequence[Tensor]
) -> T:
    """``forward(*features)``, with activations recomputed in the backward pass.

    Args:
        stages: used by ``forward``; the second pass does not update their running statistics.
        forward: of the stages.
        features: its arguments.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _frozen_statistics(stages)

    # With the random state of the first pass, as is torch's default: a stage may hold dropout.
    found: T = checkpoint(forward, *features, use_reentrant=False, context_fn=contexts)
    return found


@contextmanager
def _frozen_statistics(stages: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block, batch norms compute as in training without updating running statistics."""
    norms = [m for stage in stages for m in stage.modules() if isinstance(m, _BatchNorm)]
    # The second pass stops as soon as possible, so it may not reach every batch norm.
    before = [(norm.momentum, _copy(norm.num_batches_tracked)) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and count is not None:
                norm.num_batches_tracked.copy_(count)


def _copy(buffer: Tensor | None) -> Tensor | None:
    return None if buffer is None else buffer.clone()
