"""Barlow Twins: Self-Supervised Learning via Redundancy Reduction (Zbontar et al., ICML 2021).

https://arxiv.org/abs/2103.03230
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from intl_transfer.spectral.baselines.common import off_diagonal, prepare, squared_sums
from intl_transfer.spectral.collectives import global_batch, replicated
from intl_transfer.spectral.common import finite
from intl_transfer.spectral.modes import full_precision
from intl_transfer.spectral.product import product


@global_batch
def barlow_twins_loss(
    views: Sequence[Tensor],
    off_diagonal_weight: float = 0.0051,
    eps: float = 1e-5,
    *,
    group: Any = None,
    distributed: bool = True,
) -> Tensor:
    """``sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2`` of the views' cross-correlation C.

    Each channel is standardised over the global batch (biased variance + ``eps``, as batch norm
    without affine parameters does) and ``C = Z_0^T Z_i / N``.

    Args:
        views: V >= 2 tensors (N, d); this rank's rows under a process group.
        off_diagonal_weight: lambda, 0.0051 in the paper.
        eps: added to each channel's variance.
        group: process group whose ranks share the batch; the default group if None.
        distributed: False treats the rows as the whole batch even under a process group.

    Returns:
        A scalar, the loss of the global batch, the same on every rank; float32 (float64 for
        float64 input).

    Raises:
        ValueError: for fewer than two views, views of different shapes (also between ranks), or
            N = 1.
        TypeError: if a view is not a floating-point tensor.
        NonFiniteError: if a view holds NaN or infinity.

    Example:
        >>> import torch
        >>> views = [torch.randn(32, 16, requires_grad=True) for _ in range(2)]
        >>> barlow_twins_loss(views).backward()
    """
    z, exchange, rows = prepare(views, group, distributed, smallest_batch=2)
    with full_precision(z.device):
        z = z - exchange.sum(z.sum(-2, keepdim=True)) / rows
        variance = finite(exchange.sum(squared_sums(z)) / rows)
        z = z * (variance + eps).rsqrt().to(z.dtype)
        correlation = exchange.reduce(product(z[:1].mT, z[1:])) / rows
        on = (1 - correlation.diagonal(dim1=-2, dim2=-1)).square().sum(-1)
        off = off_diagonal(correlation).square().sum((-2, -1))
        loss = (on + off_diagonal_weight * off).mean()
        return replicated(finite(loss), group, distributed)
