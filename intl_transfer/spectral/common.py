"""What every spectral transformation shares: axes, centring, precision, and the global batch."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor

Axis = Literal["channel", "batch"]
AXES = ("channel", "batch")


def check_axis(axis: str) -> None:
    """Raises ValueError unless ``axis`` is ``"channel"`` or ``"batch"``."""
    if axis not in AXES:
        raise ValueError(f"axis is {axis!r}; expected 'channel' or 'batch'")


def check_embedding(z: Tensor, name: str = "z") -> None:
    """Raises unless ``z`` is a floating tensor of shape (..., N, d) with N, d >= 1."""
    if not isinstance(z, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, found {type(z).__name__}")
    if z.dim() < 2 or z.shape[-1] < 1 or z.shape[-2] < 1:
        raise ValueError(f"{name}: expected shape (N, d) with N, d >= 1, found {tuple(z.shape)}")
    if not z.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, found {z.dtype}")


def at_least_float32(z: Tensor) -> Tensor:
    """Half precision up to float32; float32 and float64 as they are.

    Covariances of half-precision embeddings lose the small eigenvalues that decide the loss.
    """
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z


def no_autocast(device: torch.device) -> torch.autocast:
    """A context in which matrix products keep the precision of their inputs."""
    return torch.autocast(device_type=device.type, enabled=False)


def centre(z: Tensor, axis: Axis) -> Tensor:
    """Subtracts the mean along the axis over which the covariance is taken.

    Args:
        z: embeddings, shape (..., N, d).
        axis: ``"channel"`` centres each sample over its d channels, ``"batch"`` each channel
            over the N samples.

    Returns:
        The centred embeddings, same shape.
    """
    return z - z.mean(dim=-1 if axis == "channel" else -2, keepdim=True)


def degrees_of_freedom(z: Tensor, axis: Axis) -> int:
    """The divisor of the covariance: d - 1 (channel) or N - 1 (batch), at least 1."""
    return max(1, z.shape[-1 if axis == "channel" else -2] - 1)


def world_size(group: Any = None, distributed: bool = True) -> int:
    """Number of ranks whose rows make up the global batch."""
    if not (distributed and dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size(group)


class _GatherRows(torch.autograd.Function):
    """Concatenates every rank's rows; the backward pass sums every rank's gradient of them.

    The sum makes the gather exact as a function of all ranks' inputs. Where every rank forms the
    same global loss L, the gradient at its own rows is W * dL/dz, and the average over W ranks
    that DistributedDataParallel takes of the parameter gradients gives dL/dparameters exactly.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, group: Any) -> Tensor:
        ctx.group = group
        ctx.rank = dist.get_rank(group)
        ctx.rows = z.shape[-2]
        parts = [torch.empty_like(z) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, z, group=group)
        return torch.cat(parts, dim=-2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient, group=ctx.group)
        own = gradient.narrow(-2, ctx.rank * ctx.rows, ctx.rows)
        return own.contiguous(), None


class _SumOverRanks(torch.autograd.Function):
    """The sum of every rank's tensor; its derivative sums every rank's gradient likewise."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = value.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].clone()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


def sum_over_ranks(value: Tensor, group: Any = None) -> Tensor:
    """The sum of every rank's tensor (of one shape), differentiable; needs a process group."""
    return cast(Tensor, _SumOverRanks.apply(value, group))


def gather_rows(z: Tensor, group: Any = None, distributed: bool = True) -> Tensor:
    """The global batch: every rank's rows one below the other, in rank order.

    Args:
        z: this rank's rows, shape (..., n, d); n must be the same on every rank.
        group: process group; the default one if None.
        distributed: False leaves the batch as it is, even under a process group.

    Returns:
        Shape (..., W * n, d) for W ranks; ``z`` itself without a process group.
    """
    if world_size(group, distributed) == 1:
        return z
    return cast(Tensor, _GatherRows.apply(z.contiguous(), group))


def own_rows(z: Tensor, rows: int, group: Any = None, distributed: bool = True) -> Tensor:
    """This rank's ``rows`` rows of a global batch (..., W * rows, d)."""
    if world_size(group, distributed) == 1:
        return z
    return z.narrow(-2, dist.get_rank(group) * rows, rows)
