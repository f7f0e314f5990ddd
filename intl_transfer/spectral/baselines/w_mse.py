"""W-MSE: Whitening for Self-Supervised Representation Learning (Ermolov et al., ICML 2021).

https://arxiv.org/abs/2007.06346
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from intl_transfer.spectral.baselines.common import prepare
from intl_transfer.spectral.collectives import gather_rows, global_batch, replicated
from intl_transfer.spectral.common import finite
from intl_transfer.spectral.modes import full_precision, is_compiling
from intl_transfer.spectral.transforms import cholesky_whitening
from intl_transfer.spectral.views import row_mismatch


@global_batch
def w_mse_loss(
    views: Sequence[Tensor],
    whitening_size: int | None = None,
    partitions: int = 1,
    shrinkage: float = 0.0,
    generator: torch.Generator | None = None,
    *,
    group: Any = None,
    distributed: bool = True,
) -> Tensor:
    """Mean squared distance of all pairs of views after Cholesky whitening and normalization.

    The global batch is cut into sub-batches, the same for all views, whose d x d covariances are
    each whitened separately. ``2 - 2 cos``, averaged over samples, pairs of views and partitions.

    Args:
        views: V >= 2 tensors (N, d); this rank's rows under a process group.
        whitening_size: samples in a sub-batch, more than d; None takes the whole batch.
        partitions: how many random partitions are averaged over.
        shrinkage: of the covariance towards the identity, as for
            :func:`intl_transfer.spectral.cholesky_whitening`.
        generator: draws the partitions, on the CPU; seed it alike on all ranks. None cuts the
            batch in the order it comes, which a sampler has shuffled; then one partition only.
        group: process group whose ranks share the batch; the default group if None.
        distributed: False treats the rows as the whole batch even under a process group.

    Returns:
        A scalar, the loss of the global batch, the same on every rank; float32 (float64 for
        float64 input).

    Raises:
        ValueError: if the sub-batch does not divide N, is not larger than d, several partitions
            are requested without a generator, for fewer than two views, or views of different
            shapes, also between ranks.
        TypeError: if a view is not a floating-point tensor.
        NonFiniteError: if a view holds NaN or infinity.

    Example:
        >>> import torch
        >>> views = [torch.randn(64, 8, requires_grad=True) for _ in range(2)]
        >>> w_mse_loss(views, whitening_size=32).backward()
    """
    if generator is not None and is_compiling():
        torch._dynamo.graph_break(
            msg="torch.compile knows no torch.Generator; call w_mse_loss outside of the compiled "
            "function, or without one"
        )
    z, _, rows = prepare(views, group, distributed, smallest_batch=2)
    size = rows if whitening_size is None else whitening_size
    if size < 1 or rows % size:
        raise ValueError(f"whitening_size is {size}; expected a divisor of the batch, N = {rows}")
    if partitions < 1 or (partitions > 1 and generator is None):
        raise ValueError(
            f"partitions is {partitions}; expected 1, or more together with a generator"
        )
    with full_precision(z.device):
        z = gather_rows(z, group, distributed, is_replicated=True, is_checked=True)
        losses = []
        for _ in range(partitions):
            order = torch.arange(rows, device=z.device)
            if generator is not None:
                order = torch.randperm(rows, generator=generator, device=generator.device)
            parts = z[:, order.to(z.device)].view(len(z), rows // size, size, -1)
            whitened = cholesky_whitening(
                parts.flatten(0, 1), shrinkage=shrinkage, distributed=False
            ).view_as(parts)
            losses += [
                row_mismatch(whitened[i], whitened[j]).mean()
                for i, j in combinations(range(len(z)), 2)
            ]
        return replicated(finite(torch.stack(losses).mean()), group, distributed)
