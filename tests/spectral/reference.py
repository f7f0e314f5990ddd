"""The method written a second time, from its formulas, in float64 by eigendecomposition."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def scalar_h(x: float, iterations: int) -> float:
    f = 1.0
    for _ in range(iterations):
        f = 1.5 * f - 0.5 * x * f**3
    return x * f * f


def centered(z: Tensor, axis: str) -> Tensor:
    return z - z.mean(1 if axis == "channel" else 0, keepdim=True)


def covariance(z: Tensor, axis: str) -> Tensor:
    z = centered(z, axis)
    if axis == "channel":
        return z @ z.T / (z.shape[1] - 1)
    return z.T @ z / (z.shape[0] - 1)


def spectral(z: Tensor, axis: str, g) -> Tensor:
    """U g(Lambda) U^T Z (channel) or Z U g(Lambda) U^T (batch), on the full covariance."""
    values, vectors = torch.linalg.eigh(covariance(z, axis))
    matrix = vectors @ torch.diag(g(values)) @ vectors.T
    z = centered(z, axis)
    return matrix @ z if axis == "channel" else z @ matrix


def iternorm(z: Tensor, axis: str, iterations: int) -> Tensor:
    """Theorem 1: g(lambda) = f_T(lambda / tr) / sqrt(tr)."""
    trace = covariance(z, axis).trace()

    def g(values: Tensor) -> Tensor:
        x = values / trace
        f = torch.ones_like(x)
        for _ in range(iterations):
            f = 1.5 * f - 0.5 * x * f**3
        return f / trace.sqrt()

    return spectral(z, axis, g)


def trace_loss(z_hat: Tensor, axis: str) -> Tensor:
    return sum((1 - v) ** 2 for v in covariance(z_hat, axis).diagonal())


def cosine_mse(a: Tensor, b: Tensor) -> Tensor:
    cosines = [(x @ y) / (x.norm() * y.norm()) for x, y in zip(a, b, strict=True)]
    return 2 - 2 * sum(cosines) / len(cosines)


def beta(n: int, d: int, axis: str) -> float:
    return 0.01 * (math.log2(n if axis == "channel" else d) - 3)


def intl(views: list[Tensor], axis: str, iterations: int = 4, weight: float | None = None):
    hats = [iternorm(v, axis, iterations) for v in views]
    weight = beta(*views[0].shape, axis) if weight is None else weight
    terms = [
        cosine_mse(h, hats[0]) + weight * (trace_loss(h, axis) + trace_loss(hats[0], axis))
        for h in hats[1:]
    ]
    return sum(terms) / len(terms)


def intl_ema(online: list[Tensor], target: Tensor, axis: str, iterations: int = 4):
    k = iternorm(target, axis, iterations).detach()
    weight = beta(*target.shape, axis)
    terms = []
    for view in online:
        h = iternorm(view, axis, iterations)
        terms.append(cosine_mse(h, k) + weight * trace_loss(h, axis))
    return sum(terms) / len(terms)
