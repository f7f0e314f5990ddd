"""Backbone and projector together, and their moving-average copy."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from intl_transfer.models.lockstep import walk_together


class Encoder(nn.Module):
    """Images to embeddings: backbone, then projector.

    Attributes:
        backbone: images (B, 3, H, W) to features (B, width).
        projector: features to embeddings (B, d).
        lockstep: whether views are processed together (:mod:`intl_transfer.models.lockstep`) or one
            by one, with the same result.
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module, lockstep: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.lockstep = lockstep

    def forward(self, views: Sequence[Tensor], target: Encoder | None = None) -> list[Tensor]:
        """Embeds each view separately, with its own batch-norm statistics.

        Args:
            views: tensors (B, 3, H_v, W_v); sizes may differ between views.
            target: a copy of this encoder, used for view 0 instead.

        Returns:
            One tensor (B, d) per view.
        """
        # One call for all views: DistributedDataParallel allows a single forward per backward.
        encoders = [self if view or target is None else target for view in range(len(views))]
        if self.lockstep:
            features = walk_together([encoder.backbone for encoder in encoders], views)
            return walk_together([encoder.projector for encoder in encoders], features)
        pairs = zip(encoders, views, strict=True)
        return [encoder.projector(encoder.backbone(view)) for encoder, view in pairs]


class MovingAverage:
    """An exponential moving average of an encoder's parameters.

    Only parameters are averaged; batch-norm buffers come from the copy's own forward passes. So
    these run in training mode, except for layers that are frozen in the network it is a copy of.

    Attributes:
        encoder: the copy, without gradients.
    """

    def __init__(self, online: Encoder) -> None:
        self.encoder = copy.deepcopy(online)
        self.encoder.requires_grad_(False)
        # Of a network in evaluation mode as a whole nothing says which layers are frozen.
        if not online.training:
            self.encoder.train()

    @torch.no_grad()
    def update(self, online: Encoder, momentum: float) -> None:
        """``target <- momentum * target + (1 - momentum) * online``, parameter by parameter."""
        targets: list[Tensor] = list(self.encoder.parameters())
        torch._foreach_lerp_(targets, [p.detach() for p in online.parameters()], 1 - momentum)

    @contextmanager
    def ahead(self, online: Encoder, momentum: float) -> Iterator[None]:
        """Within the block the copy is as after :meth:`update`; afterwards it is restored.

        A step can embed with it, and update permanently once the step is known to be valid.
        """
        parameters = list(self.encoder.parameters())
        before = [p.data for p in parameters]
        with torch.no_grad():
            sources = [p.detach() for p in online.parameters()]
            updated = torch._foreach_lerp(before, sources, 1 - momentum)
        for parameter, value in zip(parameters, updated, strict=True):
            parameter.data = value
        try:
            yield
        finally:
            for parameter, value in zip(parameters, before, strict=True):
                parameter.data = value

    @torch.no_grad()
    def __call__(self, view: Tensor) -> Tensor:
        """Embeds one view (B, 3, H, W) to (B, d), without gradient."""
        embedding: Tensor = self.encoder([view])[0]
        return embedding


def ema_momentum(step: int, total_steps: int, initial: float) -> float:
    """The momentum's schedule, ``m = 1 - (1 + cos(pi step / total)) (1 - m_0) / 2``.

    Args:
        step: the step about to be made, from 0.
        total_steps: number of steps of the whole training.
        initial: m_0; published: 0.996 (ImageNet), 0.999 (CIFAR).

    Returns:
        m, from m_0 at the start to 1 at the end, and 1 from there on.
    """
    share = min(1.0, step / total_steps)
    return 1 - 0.5 * (1 + math.cos(math.pi * share)) * (1 - initial)
