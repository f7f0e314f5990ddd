"""INTL: IterNorm with trace loss (Weng et al., ICLR 2024, arXiv 2305.16789).

IterNorm alone leaves eigenvalues at zero where they are zero, so it cannot undo a collapse. The
trace loss asks every diagonal entry of the output's covariance to be one; since no output
eigenvalue exceeds one, their sum can only reach the dimension if all of them are one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from intl_transfer.spectral.common import (
    Axis,
    at_least_float32,
    check_axis,
    check_embedding,
    degrees_of_freedom,
    gather_rows,
    no_autocast,
)
from intl_transfer.spectral.iternorm import transform_global


def default_trace_weight(n: int, d: int, axis: Axis = "channel") -> float:
    """The published weight of the trace loss, ``beta = 0.01 (log2 x - 3)``.

    Args:
        n: global batch size N, all ranks together.
        d: embedding width.
        axis: x is N on the channel axis and d on the batch axis.

    Returns:
        beta; 0.05 for N = 256 on the channel axis. The formula as published: 0 at x = 8, and
        negative below, where a weight of one's own is wanted.
    """
    check_axis(axis)
    return 0.01 * (math.log2(n if axis == "channel" else d) - 3)


def trace_loss(
    z_hat: Tensor, axis: Axis = "channel", *, group: Any = None, distributed: bool = True
) -> Tensor:
    """Trace loss of one view, ``sum_j (1 - Sigma_hat_jj)^2``.

    Args:
        z_hat: output of :func:`intl_transfer.spectral.iternorm` (centred along ``axis``), shape
            (N, d); this rank's rows under a process group.
        axis: ``"channel"``: ``Sigma_hat_jj = ||z_hat_j||^2 / (d - 1)`` over the N samples;
            ``"batch"``: the variance of each of the d channels.
        group: process group whose ranks share the batch; the default group if None.
        distributed: False treats ``z_hat`` as the whole batch even under a process group.

    Returns:
        A scalar, float32 (float64 for float64 input), the same on every rank.

    Raises:
        ValueError: for an unknown axis or a wrong shape.
    """
    check_embedding(z_hat, "z_hat")
    check_axis(axis)
    with no_autocast(z_hat.device):
        rows = gather_rows(at_least_float32(z_hat), group, distributed)
        return _trace_loss(rows, axis).sum()


def intl_loss(
    views: Sequence[Tensor],
    axis: Axis = "channel",
    iterations: int = 4,
    trace_weight: float | None = None,
    *,
    group: Any = None,
    distributed: bool = True,
) -> Tensor:
    """The INTL loss of V views, view 0 the target of all others.

    ``L = 1/(V-1) sum_{i>=1} [ MSE(z_i, z_0) + beta (TL_i + TL_0) ]`` on IterNorm outputs, with
    ``MSE(a, b) = 2 - 2 mean_n cos(a_n, b_n)``; gradients flow through both sides.

    Args:
        views: V >= 2 tensors of embeddings, each (N, d); this rank's rows under a process group,
            of which every rank must hold the same number.
        axis: ``"channel"`` (all published models) or ``"batch"``.
        iterations: T of IterNorm.
        trace_weight: beta; None takes :func:`default_trace_weight` of the global batch.
        group: process group whose ranks share the batch; the default group if None.
        distributed: False treats the rows as the whole batch even under a process group.

    Returns:
        A scalar, the loss of the global batch, the same on every rank. Averaged over ranks by
        DistributedDataParallel, its parameter gradients equal those of one process.

    Raises:
        ValueError: for fewer than two views, views of different shapes or an unknown axis.
    """
    z = _gather_views(views, group, distributed)
    with no_autocast(z.device):
        z_hat = transform_global(z, axis, iterations)
        traces = _trace_loss(z_hat, axis)
        beta = _weight(trace_weight, z, axis)
        similarity = _mse(z_hat[1:], z_hat[:1]).mean()
        return similarity + beta * (traces[1:].mean() + traces[0])


def intl_ema_loss(
    online_views: Sequence[Tensor],
    target: Tensor,
    axis: Axis = "channel",
    iterations: int = 4,
    trace_weight: float | None = None,
    *,
    group: Any = None,
    distributed: bool = True,
) -> Tensor:
    """The INTL loss against a target from a moving-average copy of the network.

    ``L = mean_i [ MSE(z_i, k_0) + beta TL_i ]`` on IterNorm outputs, without gradient to ``k_0``.

    Args:
        online_views: one or more tensors (N, d), views 1..V-1 through the online network.
        target: (N, d), view 0 through the moving-average copy; detached here.
        axis: ``"channel"`` (all published models) or ``"batch"``.
        iterations: T of IterNorm.
        trace_weight: beta; None takes :func:`default_trace_weight` of the global batch.
        group: process group whose ranks share the batch; the default group if None.
        distributed: False treats the rows as the whole batch even under a process group.

    Returns:
        A scalar, the loss of the global batch, the same on every rank.

    Raises:
        ValueError: for no online view, views of different shapes or an unknown axis.
    """
    z = _gather_views([target.detach(), *online_views], group, distributed)
    with no_autocast(z.device):
        z_hat = transform_global(z, axis, iterations)
        k_hat, online = z_hat[:1].detach(), z_hat[1:]
        beta = _weight(trace_weight, z, axis)
        return _mse(online, k_hat).mean() + beta * _trace_loss(online, axis).mean()


def _gather_views(views: Sequence[Tensor], group: Any, distributed: bool) -> Tensor:
    """All views of the global batch, (V, N, d), by one exchange."""
    if len(views) < 2:
        raise ValueError(f"{len(views)} view(s); INTL needs a target and at least one other view")
    for index, view in enumerate(views):
        check_embedding(view, f"view {index}")
        if view.dim() != 2 or view.shape != views[0].shape:
            raise ValueError(
                f"view {index} has shape {tuple(view.shape)}, view 0 {tuple(views[0].shape)}; "
                "expected the same (N, d) for all"
            )
    with no_autocast(views[0].device):
        return gather_rows(
            torch.stack([at_least_float32(view) for view in views]), group, distributed
        )


def _weight(trace_weight: float | None, z: Tensor, axis: Axis) -> float:
    if trace_weight is not None:
        return trace_weight
    return default_trace_weight(z.shape[-2], z.shape[-1], axis)


def _trace_loss(z_hat: Tensor, axis: Axis) -> Tensor:
    """Trace loss of each batch in (..., N, d): shape (...)."""
    if axis == "channel":
        variances = z_hat.square().sum(dim=-1) / degrees_of_freedom(z_hat, axis)
    else:
        variances = z_hat.var(dim=-2, correction=1 if z_hat.shape[-2] > 1 else 0)
    return (1 - variances).square().sum(dim=-1)


def _mse(a: Tensor, b: Tensor) -> Tensor:
    """``2 - 2 mean_n cos(a_n, b_n)`` of each batch in (..., N, d): shape (...)."""
    return 2 - 2 * F.cosine_similarity(a, b, dim=-1, eps=1e-12).mean(dim=-1)
