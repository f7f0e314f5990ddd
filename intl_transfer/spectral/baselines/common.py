"""Common parts of the baselines: checked views in float32, the global batch, and errors for NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from intl_transfer.spectral.collectives import Exchange, check_equal_rows, world_size
from intl_transfer.spectral.common import at_least_float32
from intl_transfer.spectral.views import checked_views


def prepare(
    views: Sequence[Tensor], group: Any, distributed: bool, smallest_batch: int = 1
) -> tuple[Tensor, Exchange, int]:
    """Own rows of all views (V, n, d), how ranks speak to each other, and the global N."""
    views = checked_views(views)
    check_equal_rows(views[0], group, distributed)
    exchange = Exchange(group, active=world_size(group, distributed) > 1)
    rows = views[0].shape[0] * exchange.size
    if rows < smallest_batch:
        raise ValueError(
            f"a batch of N = {rows} (all ranks together); expected N >= {smallest_batch}"
        )
    return torch.stack([at_least_float32(view) for view in views]), exchange, rows


def squared_sums(z: Tensor) -> Tensor:
    """Of each channel of own rows (V, n, d): (V, 1, d), in float64.

    Squares of float32 values overflow at 1e19, and vanish at 1e-19; in float64 they do not.
    """
    return z.double().square().sum(-2, keepdim=True)


def off_diagonal(matrix: Tensor) -> Tensor:
    """``matrix`` (..., d, d) with zeros on its diagonal."""
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    return matrix - torch.diag_embed(diagonal)
