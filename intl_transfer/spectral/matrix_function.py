"""Scalar functions of symmetric matrices, differentiable also at repeated eigenvalues."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

Scalar = Callable[[Tensor], Tensor]

#: Eigenvalues below this fraction of their sum are raised to it. A float64 Gram matrix knows its
#: eigenvalues to some 1e-16 of their sum: at 1e-14, the square root of the ratio by which one may
#: be off stays below 1.01; every eigenvalue above is left exactly as it is.
FLOOR = 1e-14


class _MatrixFunction(torch.autograd.Function):
    """``U g(max(Lambda, l)) U^T`` with the Daleckii-Krein derivative.

    The gradient for sigma is ``U (K * (U^T G U)) U^T`` with ``K_ij = (g_i - g_j) / (l_i - l_j)``,
    and ``g'`` where two eigenvalues coincide. Differentiating through ``torch.linalg.eigh``
    instead divides by the gap itself and gives NaN at repeated eigenvalues.
    """

    @staticmethod
    def forward(ctx: Any, sigma: Tensor, lowest: Tensor, g: Scalar, g_prime: Scalar) -> Tensor:
        values, vectors = torch.linalg.eigh(sigma)
        raised = torch.maximum(values, lowest[..., None])
        mapped = g(raised)
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            ctx.save_for_backward(values, lowest, vectors, mapped, g_prime(raised))
        return cast(Tensor, (vectors * mapped[..., None, :]) @ vectors.mT)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        values, lowest, vectors, mapped, slope = ctx.saved_tensors
        gradient = gradients[0]
        inner = vectors.mT @ ((gradient + gradient.mT) / 2) @ vectors
        is_raised = values < lowest[..., None]
        diagonal = inner.diagonal(dim1=-2, dim2=-1)
        grad_lowest = torch.where(is_raised, diagonal * slope, 0.0).sum(-1)
        # A raised eigenvalue follows the floor instead of the matrix.
        slope = torch.where(is_raised, torch.zeros_like(slope), slope)
        gap = values[..., :, None] - values[..., None, :]
        rise = mapped[..., :, None] - mapped[..., None, :]
        mean_slope = (slope[..., :, None] + slope[..., None, :]) / 2
        scale = torch.maximum(values[..., :, None].abs(), values[..., None, :].abs())
        # Below this gap the quotient is rounding noise and the mean slope is closer to it.
        is_close = gap.abs() <= 1e-7 * scale
        quotient = rise / torch.where(is_close, torch.ones_like(gap), gap)
        k = torch.where(is_close, mean_slope, quotient)
        return vectors @ (k * inner) @ vectors.mT, grad_lowest, None, None


def matrix_function(
    sigma: Tensor, g: Scalar, g_prime: Scalar | None = None, floor: float = FLOOR
) -> Tensor:
    """Applies a scalar function to the eigenvalues of a symmetric matrix.

    Args:
        sigma: symmetric positive semi-definite matrices, shape (..., n, n), float32 or float64;
            float64 where small eigenvalues matter.
        g: the scalar function, elementwise on a tensor of eigenvalues.
        g_prime: its derivative; by autograd of ``g`` if None.
        floor: eigenvalues below this fraction of the trace are raised to it first.

    Returns:
        ``U g(Lambda) U^T``, shape of ``sigma``. Its gradient is exact where eigenvalues repeat
        (Daleckii-Krein), and that of the raised spectrum where eigenvalues are raised. Once
        differentiable.

    Example:
        >>> import torch
        >>> root = matrix_function(torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double(), torch.sqrt)
        >>> root @ root
        tensor([[2.0000, 1.0000],
                [1.0000, 2.0000]], dtype=torch.float64)
    """
    trace = sigma.diagonal(dim1=-2, dim2=-1).sum(-1)
    lowest = (floor * trace).clamp_min(torch.finfo(sigma.dtype).tiny)
    derivative = derivative_of(g) if g_prime is None else g_prime
    return cast(Tensor, _MatrixFunction.apply(sigma, lowest, g, derivative))


def derivative_of(g: Scalar) -> Scalar:
    """The derivative of an elementwise function, by autograd.

    Args:
        g: maps a tensor to one of its shape, each element from the element at its place.

    Returns:
        A function of the same kind.
    """

    def g_prime(values: Tensor) -> Tensor:
        with torch.enable_grad():
            at = values.detach().requires_grad_()
            mapped = g(at)
            if not mapped.requires_grad:
                return torch.zeros_like(values)  # a constant
            return torch.autograd.grad(mapped.sum(), at)[0]

    return g_prime
