"""Spectral transformations by eigendecomposition: power functions, whitening among them.

A spectral transformation (Weng et al., ICLR 2024, section 3) centres ``Z``, decomposes its
covariance ``Sigma = U Lambda U^T`` and returns ``U g(Lambda) U^T Z``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from intl_transfer.spectral.common import (
    Axis,
    at_least_float32,
    centre,
    check_axis,
    check_embedding,
    degrees_of_freedom,
    gather_rows,
    no_autocast,
    own_rows,
)

# Eigenvalues below this fraction of the largest are raised to it before g is applied. They carry
# no signal in inputs of this precision, and g(lambda) = lambda^-p would blow rounding up.
_FLOOR = {torch.float32: 1e-7, torch.float64: 1e-14}


def power_transform(
    z: Tensor, p: float, axis: Axis = "channel", *, group: Any = None, distributed: bool = True
) -> Tensor:
    """Spectral transformation with the power function ``g(lambda) = lambda^-p``.

    ``p = 0`` centres, ``p = 0.5`` is ZCA (hard) whitening. Decomposed in float64 on the smaller
    of N x N and d x d. Eigenvalues below 1e-7 (float64 input: 1e-14) of the largest are raised to
    that floor; the directions they belong to carry rounding noise alone.

    Args:
        z: embeddings, shape (N, d) or (V, N, d); this rank's rows under a process group.
        p: exponent, any real number >= 0.
        axis: ``"channel"`` or ``"batch"``, as for :func:`intl_transfer.spectral.iternorm`.
        group: process group whose ranks share the batch; the default group if None.
        distributed: False treats ``z`` as the whole batch even under a process group.

    Returns:
        The transformed rows, shape of ``z``, float32 (float64 for float64 input). Gradients are
        exact also where eigenvalues repeat (Daleckii-Krein formula).

    Raises:
        ValueError: for a negative p, an unknown axis or a tensor without N and d.
        TypeError: if ``z`` is not a floating-point tensor.
    """
    check_embedding(z)
    check_axis(axis)
    if not p >= 0:
        raise ValueError(f"p is {p}; expected a power p >= 0")
    with no_autocast(z.device):
        rows = gather_rows(at_least_float32(z), group, distributed)
        centred = centre(rows, axis)
        if p == 0:
            return own_rows(centred, z.shape[-2], group, distributed)
        left = centred.shape[-2] <= centred.shape[-1]
        work = centred.double()
        gram = work @ work.mT if left else work.mT @ work
        sigma = gram / degrees_of_freedom(centred, axis)
        transform = matrix_function(
            sigma,
            lambda values: values.pow(-p),
            lambda values: -p * values.pow(-p - 1),
            floor=_FLOOR[centred.dtype],
        ).to(centred.dtype)
        z_hat = transform @ centred if left else centred @ transform
        return own_rows(z_hat, z.shape[-2], group, distributed)


class _MatrixFunction(torch.autograd.Function):
    """``U g(Lambda) U^T`` with the Daleckii-Krein derivative.

    The gradient is ``U (K * (U^T G U)) U^T`` with ``K_ij = (g_i - g_j) / (l_i - l_j)``, and
    ``g'`` where two eigenvalues coincide. Differentiating through ``torch.linalg.eigh`` instead
    divides by the gap itself and gives NaN at repeated eigenvalues.
    """

    @staticmethod
    def forward(
        ctx: Any,
        sigma: Tensor,
        g: Callable[[Tensor], Tensor],
        g_prime: Callable[[Tensor], Tensor],
        floor: float,
    ) -> Tensor:
        values, vectors = torch.linalg.eigh(sigma)
        lowest = (floor * values[..., -1:]).clamp_min(torch.finfo(values.dtype).tiny)
        raised = torch.maximum(values, lowest)
        mapped = g(raised)
        # A raised eigenvalue no longer depends on the input: its slope is zero.
        slope = torch.where(values < lowest, torch.zeros_like(values), g_prime(raised))
        ctx.save_for_backward(values, vectors, mapped, slope)
        return cast(Tensor, (vectors * mapped[..., None, :]) @ vectors.mT)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        values, vectors, mapped, slope = ctx.saved_tensors
        gap = values[..., :, None] - values[..., None, :]
        rise = mapped[..., :, None] - mapped[..., None, :]
        mean_slope = (slope[..., :, None] + slope[..., None, :]) / 2
        scale = torch.maximum(values[..., :, None].abs(), values[..., None, :].abs())
        # Below this gap the quotient is rounding noise and the mean slope is closer to it.
        close = gap.abs() <= 1e-7 * scale
        k = torch.where(close, mean_slope, rise / torch.where(close, torch.ones_like(gap), gap))
        inner = vectors.mT @ gradients[0] @ vectors
        gradient = vectors @ (k * inner) @ vectors.mT
        return (gradient + gradient.mT) / 2, None, None, None


def matrix_function(
    sigma: Tensor,
    g: Callable[[Tensor], Tensor],
    g_prime: Callable[[Tensor], Tensor],
    floor: float = 0.0,
) -> Tensor:
    """Applies a scalar function to the eigenvalues of a symmetric matrix, differentiably.

    Args:
        sigma: symmetric positive semi-definite matrices, shape (..., n, n).
        g: the scalar function, applied to a tensor of eigenvalues.
        g_prime: its derivative.
        floor: eigenvalues below this fraction of the largest are raised to it first.

    Returns:
        ``U g(Lambda) U^T``, shape of ``sigma``.
    """
    return cast(Tensor, _MatrixFunction.apply(sigma, g, g_prime, floor))
