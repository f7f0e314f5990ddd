"""VICReg: Variance-Invariance-Covariance Regularization (Bardes, Ponce, LeCun, ICLR 2022).

https://arxiv.org/abs/2105.04906
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from intl_transfer.spectral.baselines.common import off_diagonal, prepare, squared_sums
from intl_transfer.spectral.collectives import global_batch, replicated
from intl_transfer.spectral.common import finite
from intl_transfer.spectral.gram import gram
from intl_transfer.spectral.modes import full_precision


@global_batch
def vicreg_loss(
    views: Sequence[Tensor],
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    eps: float = 1e-4,
    *,
    group: Any = None,
    distributed: bool = True,
) -> Tensor:
    """``lambda s(Z, Z') + mu [v(Z) + v(Z')] + nu [c(Z) + c(Z')]``.

    s is the mean squared difference over samples and channels; v the mean over channels of
    ``max(0, 1 - sqrt(Var + eps))``; c the sum of squares off the covariance's diagonal, over d. As
    in the authors' code, v of the two views is averaged and c summed. Variances and covariances
    are those of the global batch (divisor N - 1).

    Args:
        views: V >= 2 tensors (N, d); this rank's rows under a process group.
        invariance_weight: lambda.
        variance_weight: mu.
        covariance_weight: nu.
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
        >>> vicreg_loss(views).backward()
    """
    z, exchange, rows = prepare(views, group, distributed, smallest_batch=2)
    width = z.shape[-1]
    with full_precision(z.device):
        # Divided before they are summed: sums of squares overflow before their means do.
        difference = (z[1:] - z[:1]) * (rows * width) ** -0.5
        loss = invariance_weight * exchange.reduce(difference.square().sum((-2, -1)))
        z = z - exchange.sum(z.sum(-2, keepdim=True)) / rows
        variances = exchange.reduce(squared_sums(z)) / (rows - 1)
        deviation = (variances + eps).sqrt().to(z.dtype)
        variance = (1 - deviation).relu().mean((-2, -1))
        loss = loss + variance_weight * (variance[1:] + variance[0]) / 2
        if covariance_weight:
            covariance = exchange.reduce(gram(z.mT)) / (rows - 1)
            redundancy = (off_diagonal(covariance) * width**-0.5).square().sum((-2, -1))
            loss = loss + covariance_weight * (redundancy[1:] + redundancy[0])
        return replicated(finite(loss.mean()), group, distributed)
