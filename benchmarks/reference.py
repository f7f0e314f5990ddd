"""The loss written from its formulas, with plain torch: what the benchmarks compare with.

Gather, covariance, the direct Newton iteration with ``matrix_power``, outputs of N x d, row by row
cosines, the diagonal of the outputs' covariance.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def gather(z: Tensor) -> Tensor:
    """All ranks' rows, by a collective."""
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(z), dim=0)


def iternorm(z: Tensor, axis: str, iterations: int) -> Tensor:
    """``P_T Z / sqrt(tr Sigma)`` with ``P_{k+1} = (3 P_k - P_k^3 Sigma_N) / 2``."""
    n, d = z.shape
    if axis == "channel":
        z = z - z.mean(dim=1, keepdim=True)
        sigma = z @ z.T / (d - 1)
    else:
        z = z - z.mean(dim=0, keepdim=True)
        sigma = z.T @ z / (n - 1)
    trace = sigma.trace()
    sigma_n = sigma / trace
    p = torch.eye(len(sigma), dtype=z.dtype, device=z.device)
    for _ in range(iterations):
        p = (3 * p - torch.matrix_power(p, 3) @ sigma_n) / 2
    return (p @ z if axis == "channel" else z @ p) / trace.sqrt()


def trace_loss(z_hat: Tensor, axis: str) -> Tensor:
    """``sum_j (1 - Sigma_jj)^2``; the diagonal alone, not the whole covariance."""
    n, d = z_hat.shape
    if axis == "channel":
        variances = z_hat.square().sum(dim=1) / (d - 1)
    else:
        variances = z_hat.square().sum(dim=0) / (n - 1)
    return (1 - variances).square().sum()


def mse(a: Tensor, b: Tensor) -> Tensor:
    """``2 - 2 mean cos``."""
    return 2 - 2 * F.cosine_similarity(a, b, dim=1).mean()


def intl(
    views: list[Tensor], axis: str = "channel", iterations: int = 4, gathers: bool = True
) -> Tensor:
    """``1/(V-1) sum_i [ MSE(z_i, z_0) + beta (TL_i + TL_0) ]``, view 0 the target."""
    target, *others = (
        iternorm(gather(view) if gathers else view, axis, iterations) for view in views
    )
    n, d = target.shape
    beta = 0.01 * (math.log2(n if axis == "channel" else d) - 3)
    terms = [
        mse(z_hat, target) + beta * (trace_loss(z_hat, axis) + trace_loss(target, axis))
        for z_hat in others
    ]
    return torch.stack(terms).mean()
