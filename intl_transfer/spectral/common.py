"""What every spectral transformation shares: axes, checks of the input, precision, centering."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from intl_transfer.spectral.guards import NonFiniteError, require

__all__ = ["AXES", "Axis", "NonFiniteError"]

Axis = Literal["channel", "batch"]
AXES = ("channel", "batch")


def check_axis(axis: str) -> None:
    """Raises ValueError unless ``axis`` is ``"channel"`` or ``"batch"``."""
    if axis not in AXES:
        raise ValueError(f"axis is {axis!r}; expected 'channel' or 'batch'")


def check_embedding(z: Tensor, name: str = "z") -> None:
    """Raises unless ``z`` is a floating tensor of shape (..., N, d) with N, d >= 1."""
    if not isinstance(z, Tensor):
        raise TypeError(
            f"{name}: expected a torch.Tensor of embeddings (N, d), found {type(z).__name__}"
        )
    if not z.is_floating_point():
        raise TypeError(
            f"{name}: expected a floating-point tensor (float32, float64 or a half precision), "
            f"found {z.dtype}"
        )
    if z.dim() < 2 or z.shape[-1] < 1 or z.shape[-2] < 1:
        raise ValueError(f"{name}: expected shape (N, d) with N, d >= 1, found {tuple(z.shape)}")


def check_spread(rows: int, width: int, axis: str) -> None:
    """Raises unless a batch of ``rows`` x ``width`` has a variance along ``axis``.

    The channel axis needs two channels, the batch axis two samples: centering one alone leaves
    nothing.
    """
    check_axis(axis)
    if axis == "channel" and width < 2:
        raise ValueError(
            f"an embedding of width d = {width} has no variance over its channels; axis='channel' "
            "needs d >= 2"
        )
    if axis == "batch" and rows < 2:
        raise ValueError(
            f"a batch of N = {rows} has no variance over its samples; axis='batch' needs N >= 2 "
            "(all ranks together)"
        )


def check_iterations(iterations: int) -> None:
    """Raises ValueError unless T is a whole number from 0 on."""
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"iterations is {iterations!r}; expected an integer T >= 0")


def finite(values: Tensor) -> Tensor:
    """The total variances of some batches, or their losses, unless one is NaN or infinite.

    One look at V numbers instead of at V x N x d: whatever is not finite in an embedding is not
    finite in its total variance. On a GPU this waits for the covariance.

    Args:
        values: one number of each of V batches, shape (V,) or (), or several, (V, ...).

    Returns:
        ``values``.

    Raises:
        NonFiniteError: if one is NaN or infinite.
    """
    precision = str(values.dtype).removeprefix("torch.")
    is_finite = torch.isfinite(values.detach())
    return require(
        values,
        is_finite.flatten(1).all(-1) if is_finite.dim() > 1 else is_finite,
        "nonfinite",
        f"NaN or infinity in the embeddings{{where}}, or values so large that the result "
        f"overflows {precision}; look at the network's activations, or lower the learning rate",
    )


def total_variance(sigma: Tensor, centered: Tensor) -> Tensor:
    """The trace of covariances, unless squares are beyond the range of float64.

    Args:
        sigma: covariances, (..., n, n).
        centered: the embeddings that they are of, (..., N, d).

    Returns:
        Shape (...); zero of embeddings that do not vary.

    Raises:
        NonFiniteError: if a trace is NaN or infinite, or nothing is left of it although embeddings
            vary: squares of values below 1e-154 are no normal numbers.
    """
    trace = finite(sigma.diagonal(dim1=-2, dim2=-1).sum(-1))
    is_left = trace.detach() >= torch.finfo(trace.dtype).tiny
    return require(
        trace,
        is_left | ~centered.detach().flatten(-2).any(-1),
        "nonfinite",
        "embeddings{where} so small that nothing is left of their variance; scale them",
    )


def representable(z_hat: Tensor, dtype: torch.dtype) -> Tensor:
    """Float64 rows (..., N, d) in the precision of the embeddings, unless that overflows.

    Raises:
        NonFiniteError: if a value has become infinite, or is NaN.
    """
    rows = z_hat.to(dtype)
    precision = str(dtype).removeprefix("torch.")
    return require(
        rows,
        torch.isfinite(rows.detach()).flatten(-2).all(-1),
        "nonfinite",
        f"NaN or infinity in the embeddings{{where}}, or transformed ones beyond the range of "
        f"{precision}; look at the network's activations, scale them, or pass them as float64",
    )


def at_least_float32(z: Tensor) -> Tensor:
    """Half precision and below up to float32; float32 and float64 as they are.

    Covariances of half-precision embeddings lose the small eigenvalues that decide the loss.
    """
    return z.float() if z.dtype.itemsize < 4 else z


def center(z: Tensor, axis: Axis) -> Tensor:
    """Subtracts the mean along the axis over which the covariance is taken.

    Args:
        z: embeddings, shape (..., N, d).
        axis: ``"channel"`` centers each sample over its d channels, ``"batch"`` each channel
            over the N samples.

    Returns:
        The centered embeddings, same shape.
    """
    return z - z.mean(dim=-1 if axis == "channel" else -2, keepdim=True)


def degrees_of_freedom(z: Tensor, axis: Axis) -> int:
    """The divisor of the covariance: d - 1 (channel) or N - 1 (batch), at least 1."""
    return max(1, z.shape[-1 if axis == "channel" else -2] - 1)
