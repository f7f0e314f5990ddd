"""Batches of embeddings with a chosen spectrum."""

from __future__ import annotations

import torch
from torch import Tensor


def batch_of_spectrum(eigenvalues: Tensor, width: int, seed: int) -> Tensor:
    """A batch whose covariance on the channel axis has these eigenvalues, in random directions.

    Args:
        eigenvalues: N of them, (N,); fewer than N directions where some are zero.
        width: d > N.
        seed: decides the directions.

    Returns:
        (N, d), float64, each sample centered over its channels.
    """
    n = len(eigenvalues)
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    right = torch.randn(width, n, generator=generator, dtype=torch.float64)
    right = torch.linalg.qr(right - right.mean(0)).Q.T
    singular = (eigenvalues.double() * (width - 1)).sqrt()
    batch: Tensor = left @ (singular[:, None] * right)
    return batch


def geometric(count: int, lg_condition: float) -> Tensor:
    """``count`` eigenvalues at equal ratios from 1 down to ``10^lg_condition``."""
    return torch.logspace(0, lg_condition, count, dtype=torch.float64)


def random_spectrum(count: int, lg_condition: float, seed: int) -> Tensor:
    """As :func:`geometric`, the ones between the two ends drawn log-uniformly; largest first."""
    generator = torch.Generator().manual_seed(seed)
    inner = torch.rand(count - 2, generator=generator, dtype=torch.float64)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    lg = torch.cat([ends, inner]).sort().values * lg_condition
    return torch.tensor(10.0, dtype=torch.float64).pow(lg)
