"""IterNorm: whitening by T Newton iterations, a spectral transformation.

With the trace-normalized covariance ``S = Sigma / tr Sigma``, ``P_0 = I`` and
``P_{k+1} = (3 P_k - P_k^3 S) / 2``, the output is ``P_T Z / sqrt(tr Sigma)``.

Theorem 1 of Weng et al., *Modulate Your Spectrum in Self-Supervised Learning* (ICLR 2024): this
maps each eigenvalue ``lambda`` of Sigma to ``h_T(x) = x f_T(x)^2`` with ``x = lambda / tr Sigma``,
``f_0 = 1`` and ``f_{k+1}(x) = 1.5 f_k(x) - 0.5 x f_k(x)^3``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from intl_transfer.spectral.collectives import gather_rows, global_batch, own_rows
from intl_transfer.spectral.common import (
    Axis,
    at_least_float32,
    center,
    check_embedding,
    check_iterations,
    check_spread,
    degrees_of_freedom,
    finite,
)
from intl_transfer.spectral.gram import gram
from intl_transfer.spectral.matrix_function import FLOOR, raised_function
from intl_transfer.spectral.modes import full_precision, is_compiling
from intl_transfer.spectral.newton import newton, newton_direct
from intl_transfer.spectral.product import product
from intl_transfer.spectral.scalar import Scalar, ScalarFunction
from intl_transfer.spectral.scale import at_safe_scale

#: Up to this T the iteration runs in the precision of the embeddings. Each step multiplies what
#: rounding leaves in a float32 Gram matrix (1e-7 of its trace, negative eigenvalues among it) by
#: up to 2.25: after six steps 1e-5, after twenty everything. Above, Theorem 1 is evaluated by an
#: eigendecomposition in float64, which is exact at any T.
NEWTON_UP_TO = 6


@global_batch
def iternorm(
    z: Tensor,
    axis: Axis = "channel",
    iterations: int = 4,
    stable: bool = True,
    *,
    group: Any = None,
    distributed: bool = True,
) -> Tensor:
    """Modulates the spectrum of a batch of embeddings by T Newton iterations.

    Args:
        z: embeddings, shape (N, d), or (V, N, d) for V batches at once. Under an initialized
            process group these are this rank's rows, and the covariance is the global batch's.
        axis: ``"channel"`` centers each sample and works on the N x N covariance
            ``Z Z^T / (d - 1)``; ``"batch"`` centers each channel and works on the d x d
            covariance ``Z^T Z / (N - 1)``.
        iterations: T >= 0. T = 0 centers and divides by ``sqrt(tr Sigma)``.
        stable: True uses the product form of the iteration up to T = 6 and, above, Theorem 1 on
            an eigendecomposition in float64, in which eigenvalues below 1e-14 of the trace are
            raised to that before f_T (resolved ones are left exactly as they are). False is the
            direct form of the paper, which diverges for large T (its Figure 3d).
        group: process group whose ranks share the batch; the default group if None.
        distributed: False treats ``z`` as the whole batch even under a process group.

    Returns:
        The transformed rows, shape of ``z``, float32 (float64 for float64 input) regardless of
        autocast, at any scale of the embeddings. A batch without variance comes out as zeros, with
        zero gradient. Differentiable to any order (twice above T = 6).

    Raises:
        ValueError: for an unknown axis, a T that is no whole number from 0 on, a tensor without N
            and d, one channel on the channel axis, one sample on the batch axis, or ranks with
            different numbers of rows.
        TypeError: if ``z`` is not a floating-point tensor.
        NonFiniteError: if ``z`` holds NaN or infinity (``stable=False`` passes them on).

    Example:
        >>> import torch
        >>> z_hat = iternorm(torch.randn(8, 64, dtype=torch.float64), iterations=20)
        >>> bool(torch.allclose(z_hat @ z_hat.T / 63, torch.eye(8).double(), atol=1e-6))
        True
    """
    check_embedding(z)
    check_iterations(iterations)
    with full_precision(z.device):
        rows = gather_rows(at_least_float32(z), group, distributed)
        check_spread(rows.shape[-2], rows.shape[-1], axis)
        work = rows.double() if stable and iterations > NEWTON_UP_TO else rows

        def prepare(batches: Sequence[Tensor]) -> _Centered:
            centered = center(batches[0], axis)
            # P is a polynomial in Sigma and Z p(Z^T Z) = p(Z Z^T) Z, so that either axis can be
            # solved on whichever of N x N and d x d is smaller.
            small = centered if centered.shape[-2] <= centered.shape[-1] else centered.mT
            return _Centered(centered, gram(small))

        (centered, own), is_safe = at_safe_scale(prepare, [work])
        covariance = own / degrees_of_freedom(centered, axis)
        s, trace = trace_normalized(covariance, is_safe, check=stable)
        f = small_iternorm(s, iterations)[0] if stable else newton_direct(s, iterations)
        p = f * trace.rsqrt()[..., None, None]
        left = centered.shape[-2] <= centered.shape[-1]
        z_hat = (product(p, centered) if left else product(centered, p)).to(rows.dtype)
        return own_rows(z_hat, z.shape[-2], group, distributed)


class _Centered(NamedTuple):
    """Centered rows, and the Gram of their smaller side."""

    rows: Tensor
    own: Tensor


def trace_normalized(
    covariance: Tensor, is_safe: bool = False, check: bool = True
) -> tuple[Tensor, Tensor]:
    """``Sigma / tr Sigma`` and ``tr Sigma``; zeros and 1 for a covariance of zero.

    Args:
        covariance: shape (..., n, n).
        is_safe: whether all traces are known to be finite and above zero.
        check: False lets NaN and infinity pass.

    Raises:
        NonFiniteError: if a trace is NaN or infinite.
    """
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    if is_safe:
        return covariance / trace[..., None, None], trace
    if check:
        trace = finite(trace)
    # Without variance there is no direction to go: a constant 1 keeps zeros at zero, their
    # gradient too. (NaN is not below anything and stays.)
    is_zero = trace < torch.finfo(trace.dtype).tiny
    covariance = torch.where(is_zero[..., None, None], torch.zeros_like(covariance), covariance)
    trace = torch.where(is_zero, torch.ones_like(trace), trace)
    return covariance / trace[..., None, None], trace


def small_iternorm(s: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """``f_T(S)`` (..., n, n) and ``diag(f_T(S) S f_T(S))`` (..., n) of trace-normalized matrices.

    Above T = 6 ``s`` must be float64.
    """
    if iterations <= NEWTON_UP_TO:
        return newton(s, iterations)
    f = raised_function(s, factor_function(iterations), FLOOR, s.diagonal(dim1=-2, dim2=-1).sum(-1))
    return f, (product(f, s) * f).sum(-1)


def factor_function(iterations: int) -> ScalarFunction:
    """``f_T`` with its first two derivatives."""

    def derivative(order: int) -> Scalar:
        if is_compiling():
            return lambda x: cast(Tensor, _derivative_compiled(x, iterations, order))
        return lambda x: factor_derivatives(x, iterations)[order]

    return ScalarFunction(derivative(0), derivative(1), derivative(2))


def factor_derivatives(x: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """``f_T(x)``, its first and its second derivative, each by its own recursion."""
    f, slope, bend = torch.ones_like(x), torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(iterations):
        cube = 3 * f.square() * slope
        bend = 1.5 * bend - cube - 0.5 * x * (6 * f * slope.square() + 3 * f.square() * bend)
        slope = 1.5 * slope - 0.5 * f**3 - 0.5 * x * cube
        f = 1.5 * f - 0.5 * x * f**3
    return f, slope, bend


# A compiler would unroll the recursions into one kernel, and take minutes over it.
@torch.library.custom_op(
    "intl_transfer::factor_derivative",
    mutates_args=(),
    schema="(Tensor x, int iterations, int order) -> Tensor",
)
def _derivative_compiled(x: Tensor, iterations: int, order: int) -> Tensor:
    return factor_derivatives(x, iterations)[order]


@_derivative_compiled.register_fake
def _(x: Tensor, iterations: int, order: int) -> Tensor:
    return torch.empty_like(x)


def iternorm_factor(x: Tensor, iterations: int = 4) -> Tensor:
    """``f_T(x)`` of Theorem 1, the factor on a direction whose share of the variance is x.

    Args:
        x: eigenvalues of ``Sigma / tr Sigma``, in [0, 1], any shape.
        iterations: T >= 0.

    Returns:
        From ``1.5^T`` at 0 falling to 1 at 1; near ``x^-0.5`` where T is large.
    """
    check_iterations(iterations)
    f = torch.ones_like(x)
    for _ in range(iterations):
        f = 1.5 * f - 0.5 * x * f**3
    return f


def iternorm_eigenvalue(x: Tensor, iterations: int = 4) -> Tensor:
    """The scalar map of Theorem 1, ``h_T(x) = x f_T(x)^2``.

    Args:
        x: eigenvalues of ``Sigma / tr Sigma``, in [0, 1], any shape.
        iterations: T >= 0.

    Returns:
        The eigenvalues of the output's covariance, shape of ``x``: monotone in x, within [0, 1],
        ``h_T(0) = 0`` and ``h_T(1) = 1``.

    Example:
        >>> import torch
        >>> iternorm_eigenvalue(torch.tensor([0.0, 0.1, 1.0]))
        tensor([0.0000, 0.9186, 1.0000])
    """
    return x * iternorm_factor(x, iterations) ** 2
