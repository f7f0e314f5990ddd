"""IterNorm: whitening by T Newton iterations, a spectral transformation.

With the trace-normalised covariance ``S = Sigma / tr Sigma``, ``P_0 = I`` and
``P_{k+1} = (3 P_k - P_k^3 S) / 2``, the output is ``P_T Z / sqrt(tr Sigma)``.

Theorem 1 of Weng et al., *Modulate Your Spectrum in Self-Supervised Learning* (ICLR 2024): this
maps each eigenvalue ``lambda`` of Sigma to ``h_T(x) = x f_T(x)^2`` with ``x = lambda / tr Sigma``,
``f_0 = 1`` and ``f_{k+1}(x) = 1.5 f_k(x) - 0.5 x f_k(x)^3``.
"""

from __future__ import annotations

from typing import Any

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

# From this many iterations on, rounding of a float32 Gram matrix (relative 1e-7, negative
# eigenvalues among it) has been amplified by 2.25 per iteration to where it shows.
_DOUBLE_FROM = 7
# Lifts the negative eigenvalues that rounding leaves in a float64 Gram matrix above zero; an
# eigenvalue of relative size 1e-8 is changed by one part in 1e6.
_SHIFT = 1e-14


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
        z: embeddings, shape (N, d), or (V, N, d) for V batches at once. Under an initialised
            process group these are this rank's rows, and the covariance is the global batch's.
        axis: ``"channel"`` centres each sample and works on the N x N covariance
            ``Z Z^T / (d - 1)``; ``"batch"`` centres each channel and works on the d x d
            covariance ``Z^T Z / (N - 1)``.
        iterations: T >= 0. T = 0 centres and divides by ``sqrt(tr Sigma)``.
        stable: True uses the coupled form of the iteration, in float64 for T > 6; False the
            direct form of the paper, which diverges for large T (its Figure 3d).
        group: process group whose ranks share the batch; the default group if None.
        distributed: False treats ``z`` as the whole batch even under a process group.

    Returns:
        The transformed rows, shape of ``z``, float32 (float64 for float64 input) whatever
        autocast says.

    Raises:
        ValueError: for an unknown axis, a negative T or a tensor without N and d.
        TypeError: if ``z`` is not a floating-point tensor.

    Example:
        >>> import torch
        >>> z_hat = iternorm(torch.randn(8, 64, dtype=torch.float64), iterations=20)
        >>> bool(torch.allclose(z_hat @ z_hat.T / 63, torch.eye(8).double(), atol=1e-6))
        True
    """
    check_embedding(z)
    with no_autocast(z.device):
        rows = gather_rows(at_least_float32(z), group, distributed)
        z_hat = transform_global(rows, axis, iterations, stable)
        return own_rows(z_hat, z.shape[-2], group, distributed)


def transform_global(z: Tensor, axis: Axis, iterations: int, stable: bool = True) -> Tensor:
    """IterNorm of a batch that is all here, shape (..., N, d), float32 or float64."""
    check_axis(axis)
    if iterations < 0:
        raise ValueError(f"iterations is {iterations}; expected T >= 0")
    centred = centre(z, axis)
    work = centred.double() if stable and iterations >= _DOUBLE_FROM else centred
    # P is a polynomial in Sigma and Z p(Z^T Z) = p(Z Z^T) Z, so that either axis can be solved
    # on whichever of N x N and d x d is smaller.
    left = z.shape[-2] <= z.shape[-1]
    gram = work @ work.mT if left else work.mT @ work
    sigma = gram / degrees_of_freedom(z, axis)
    trace = sigma.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    # A batch without any variance has trace 0 and stays at zero instead of becoming NaN.
    trace = trace.clamp_min(torch.finfo(trace.dtype).tiny)
    newton = _coupled if stable else _direct
    p = (newton(sigma / trace, iterations) * trace.rsqrt()).to(centred.dtype)
    return p @ centred if left else centred @ p


def _direct(sigma: Tensor, iterations: int) -> Tensor:
    """``P_{k+1} = (3 P_k - P_k^3 Sigma) / 2`` as it is written."""
    p = torch.eye(sigma.shape[-1], dtype=sigma.dtype, device=sigma.device).expand_as(sigma)
    for _ in range(iterations):
        p = 1.5 * p - 0.5 * (p @ p @ p @ sigma)
    return p


def _coupled(sigma: Tensor, iterations: int) -> Tensor:
    """The same iterates through ``M_k = P_k^2 Sigma``: ``R = (3 I - M) / 2``, P <- P R, M <- M R^2.

    M converges to the identity and is its own correction, so that rounding in P is not fed back
    into the iteration (Higham, *Functions of Matrices*, section 6.3, the product form).
    """
    eye = torch.eye(sigma.shape[-1], dtype=sigma.dtype, device=sigma.device)
    p = eye.expand_as(sigma)
    m = sigma + _SHIFT * eye if sigma.dtype == torch.float64 else sigma
    for k in range(iterations):
        r = 1.5 * eye - 0.5 * m
        p = r if k == 0 else p @ r
        if k + 1 < iterations:
            m = m @ r @ r
    return p


def iternorm_eigenvalue(x: Tensor, iterations: int = 4) -> Tensor:
    """The scalar map of Theorem 1, ``h_T(x) = x f_T(x)^2``.

    Args:
        x: eigenvalues of ``Sigma / tr Sigma``, in [0, 1], any shape.
        iterations: T >= 0.

    Returns:
        The eigenvalues of the output's covariance, shape of ``x``: monotone in x, within [0, 1],
        ``h_T(0) = 0`` and ``h_T(1) = 1``.
    """
    f = torch.ones_like(x)
    for _ in range(iterations):
        f = 1.5 * f - 0.5 * x * f**3
    return x * f**2
