"""What the baselines share: checked views in float32, the global batch, and what to say of NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from intl_transfer.spectral.collectives import Exchange, world_size
from intl_transfer.spectral.common import at_least_float32, check_finite
from intl_transfer.spectral.views import check_views


def prepare(
    views: Sequence[Tensor], group: Any, distributed: bool, smallest_batch: int = 1
) -> tuple[Tensor, Exchange, int]:
    """Own rows of all views (V, n, d), how ranks speak to each other, and the global N."""
    check_views(views)
    exchange = Exchange(group, active=world_size(group, distributed) > 1)
    rows = views[0].shape[0] * exchange.size
    if rows < smallest_batch:
        raise ValueError(
            f"a batch of N = {rows} (all ranks together); expected N >= {smallest_batch}"
        )
    return torch.stack([at_least_float32(view) for view in views]), exchange, rows


def finite(loss: Tensor) -> Tensor:
    """The loss, or :class:`NonFiniteError`."""
    check_finite(loss.detach())
    return loss


def off_diagonal(matrix: Tensor) -> Tensor:
    """``matrix`` (..., d, d) with zeros on its diagonal."""
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    return matrix - torch.diag_embed(diagonal)
