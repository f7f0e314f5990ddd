"""INTL: IterNorm with trace loss (Weng et al., ICLR 2024, arXiv 2305.16789).

IterNorm alone leaves eigenvalues at zero where they are zero, so it cannot undo a collapse. The
trace loss drives every diagonal entry of the output's covariance to one; since no output eigenvalue
exceeds one, their sum can only reach the dimension if all of them are one. It punishes a collapse,
and pulls small eigenvalues up to the others (Theorem 2); where one is zero, its gradient stays in
the span of the batch (``intl-transfer figure theorem2``), and it is the network that has to leave
it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from intl_transfer.spectral.collectives import (
    Exchange,
    check_equal_rows,
    gather_rows,
    global_batch,
    replicated,
    world_size,
)
from intl_transfer.spectral.common import (
    Axis,
    at_least_float32,
    check_axis,
    check_embedding,
    check_iterations,
    check_spread,
    finite,
)
from intl_transfer.spectral.head import ViewStatistics, view_statistics
from intl_transfer.spectral.modes import full_precision, is_compiling
from intl_transfer.spectral.sharding import announce, plan_head
from intl_transfer.spectral.transforms import SpectralTransform
from intl_transfer.spectral.views import checked_views, row_mismatch, row_trace_loss


def default_trace_weight(n: int, d: int, axis: Axis = "channel") -> float:
    """The published weight of the trace loss, ``beta = 0.01 (log2 x - 3)``.

    Args:
        n: global batch size N, all ranks together.
        d: embedding width.
        axis: x is N on the channel axis and d on the batch axis.

    Returns:
        beta; 0.05 for N = 256 on the channel axis. The formula as published is 0 at x = 8, where
        nothing is left to punish a collapse.

    Raises:
        ValueError: for x below 8, where the formula is negative: it would reward the collapse that
            the trace loss is there to punish.
    """
    check_axis(axis)
    name, x = ("N", n) if axis == "channel" else ("d", d)
    if x < 8:
        raise ValueError(
            f"the published weight of the trace loss, 0.01 (log2 {name} - 3), is not positive for "
            f"{name} = {x} on the {axis} axis (below 8): it would reward collapse. Pass a "
            f"trace_weight, or take {name} > 8 (at 8 it is 0)"
        )
    return _published_weight(x)


def _published_weight(x: int) -> float:
    return 0.01 * (math.log2(x) - 3)


def _trace_weight(rows: int, width: int, axis: Axis) -> float:
    """The published weight for a batch.

    An embedding's width is chosen once and for all, so that a width that rewards collapse is
    refused. The number of rows may be small in a gradient check or a first try, so it only causes a
    warning. (Pretraining refuses both.)
    """
    if axis == "batch" or rows >= 8:
        return default_trace_weight(rows, width, axis)
    if not is_compiling():
        warnings.warn(
            f"the published weight of the trace loss, 0.01 (log2 N - 3), is not positive for "
            f"N = {rows} (below 8): it rewards collapse. Pass a trace_weight, or take N > 8",
            RuntimeWarning,
            stacklevel=5,
        )
    return _published_weight(rows)


def check_trace_weight(trace_weight: float | None) -> None:
    """Raises ValueError for a weight that is no finite number."""
    if trace_weight is not None and not math.isfinite(trace_weight):
        raise ValueError(f"trace_weight is {trace_weight}; expected a finite number or None")


@global_batch
def trace_loss(
    z_hat: Tensor, axis: Axis = "channel", *, group: Any = None, distributed: bool = True
) -> Tensor:
    """Trace loss of one view, ``sum_j (1 - Sigma_hat_jj)^2``.

    Args:
        z_hat: output of :func:`intl_transfer.spectral.iternorm` or another transformation (centered
            along ``axis``), shape (N, d), or (V, N, d), whose losses are summed; this rank's rows
            under a process group.
        axis: ``"channel"``: ``Sigma_hat_jj = ||z_hat_j||^2 / (d - 1)`` over the N samples;
            ``"batch"``: the variance of each of the d channels.
        group: process group whose ranks share the batch; the default group if None.
        distributed: False treats ``z_hat`` as the whole batch even under a process group.

    Returns:
        A scalar, float32 (float64 for float64 input), the same on every rank.

    Raises:
        ValueError: for an unknown axis, a wrong shape, or ranks with different numbers of rows.
        TypeError: if ``z_hat`` is not a floating-point tensor.
        NonFiniteError: if ``z_hat`` holds NaN or infinity, or the loss, of the fourth power of its
            scale, is beyond the range of its precision.

    Example:
        >>> import torch
        >>> trace_loss(torch.zeros(16, 64))  # collapsed: every sample misses its variance of one
        tensor(16.)
    """
    check_embedding(z_hat, "z_hat")
    check_axis(axis)
    with full_precision(z_hat.device):
        rows = gather_rows(at_least_float32(z_hat), group, distributed, is_replicated=True)
        losses = finite(row_trace_loss(rows, axis))
        return replicated(losses.sum(), group, distributed)


@global_batch
def intl_loss(
    views: Sequence[Tensor],
    axis: Axis = "channel",
    iterations: int = 4,
    trace_weight: float | None = None,
    *,
    group: Any = None,
    distributed: bool = True,
    sharded: bool | None = None,
    parts: dict[str, Tensor] | None = None,
) -> Tensor:
    """The INTL loss of V views, view 0 the target of all others.

    ``L = 1/(V-1) sum_{i>=1} [ MSE(z_i, z_0) + beta (TL_i + TL_0) ]`` on IterNorm outputs, with
    ``MSE(a, b) = 2 - 2 mean_n cos(a_n, b_n)``; gradients flow through both sides.

    Args:
        views: V >= 2 tensors of embeddings, each (N, d); this rank's rows under a process group,
            of which every rank must hold the same number.
        axis: ``"channel"`` (all published models) or ``"batch"``.
        iterations: T of IterNorm.
        trace_weight: beta; None takes :func:`default_trace_weight` of the global batch, 0 leaves
            the trace loss away.
        group: process group whose ranks share the batch; the default group if None.
        distributed: False treats the rows as the whole batch even under a process group.
        sharded: True shares the work out over ranks, False repeats it on each, None does what is
            worth it (:func:`intl_transfer.spectral.plan_head`).
        parts: a dictionary to be filled with what the loss is made of, without gradient:
            ``mismatch`` and ``trace_loss``, of which ``mismatch + beta trace_loss`` is the loss.

    Returns:
        A scalar, the loss of the global batch, the same on every rank. Averaged over ranks by
        DistributedDataParallel, its parameter gradients equal those of one process. Float32
        (float64 for float64 input) regardless of autocast.

    Raises:
        ValueError: for fewer than two views, views of different shapes, an unknown axis, a T that
            is no whole number from 0 on, ranks with different numbers of rows, or without a
            ``trace_weight`` where the published one is negative on the batch axis (d < 8; of N < 8
            on the channel axis a RuntimeWarning tells).
        TypeError: if a view is not a floating-point tensor.
        NonFiniteError: if a view holds NaN or infinity.

    Example:
        >>> import torch
        >>> views = [torch.randn(32, 128, requires_grad=True) for _ in range(6)]
        >>> intl_loss(views).backward()
    """
    beta, statistics = _statistics(
        views, axis, iterations, trace_weight, True, group, distributed, sharded
    )
    traces = statistics.traces[1:].mean() + statistics.traces[0]
    mismatch = statistics.mismatch.mean()
    _report(parts, mismatch, traces)
    loss = mismatch + beta * traces
    return replicated(loss, group, distributed)


@global_batch
def intl_ema_loss(
    online_views: Sequence[Tensor],
    target: Tensor,
    axis: Axis = "channel",
    iterations: int = 4,
    trace_weight: float | None = None,
    *,
    group: Any = None,
    distributed: bool = True,
    sharded: bool | None = None,
    parts: dict[str, Tensor] | None = None,
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
        sharded: as for :func:`intl_loss`.
        parts: as for :func:`intl_loss`.

    Returns:
        A scalar, the loss of the global batch, the same on every rank.

    Raises:
        ValueError: for no online view, or as :func:`intl_loss`.
        TypeError: if a view is not a floating-point tensor.
        NonFiniteError: if a view holds NaN or infinity.

    Example:
        >>> import torch
        >>> online = [torch.randn(32, 128, requires_grad=True)]
        >>> intl_ema_loss(online, torch.randn(32, 128)).backward()
    """
    check_embedding(target, "target")
    beta, statistics = _statistics(
        [target.detach(), *online_views],
        axis,
        iterations,
        trace_weight,
        False,
        group,
        distributed,
        sharded,
    )
    mismatch, traces = statistics.mismatch.mean(), statistics.traces[1:].mean()
    _report(parts, mismatch, traces)
    loss = mismatch + beta * traces
    return replicated(loss, group, distributed)


@global_batch
def spectral_loss(
    views: Sequence[Tensor],
    transform: SpectralTransform,
    trace_weight: float = 0.0,
    *,
    group: Any = None,
    distributed: bool = True,
    parts: dict[str, Tensor] | None = None,
) -> Tensor:
    """The framework's loss for any spectral transformation: match, with or without trace loss.

    ``L = 1/(V-1) sum_{i>=1} [ MSE(z_i, z_0) + beta (TL_i + TL_0) ]`` on ``transform``'s outputs.

    Args:
        views: V >= 2 tensors (N, d), view 0 the target; this rank's rows under a process group.
        transform: for example ``PowerTransform(0.5)`` (whitening) or ``IterNorm(9)``.
        trace_weight: beta; 0 leaves the trace loss away.
        group: process group whose ranks share the batch; the default group if None.
        distributed: False treats the rows as the whole batch even under a process group.
        parts: as for :func:`intl_loss`, filled if there is a trace loss.

    Returns:
        A scalar, the loss of the global batch, the same on every rank.

    Raises:
        ValueError: for fewer than two views or views of different shapes, also between ranks.
        TypeError: if a view is not a floating-point tensor.
        NonFiniteError: if a view holds NaN or infinity, or the loss is too large for its precision.

    Example:
        >>> import torch
        >>> from intl_transfer.spectral import PowerTransform
        >>> views = [torch.randn(32, 128, requires_grad=True) for _ in range(2)]
        >>> spectral_loss(views, PowerTransform(0.5)).backward()
    """
    return _spectral_loss(views, transform, trace_weight, True, group, distributed, parts)


@global_batch
def spectral_ema_loss(
    online_views: Sequence[Tensor],
    target: Tensor,
    transform: SpectralTransform,
    trace_weight: float = 0.0,
    *,
    group: Any = None,
    distributed: bool = True,
    parts: dict[str, Tensor] | None = None,
) -> Tensor:
    """:func:`spectral_loss` against a target from a moving-average copy of the network.

    ``L = mean_i [ MSE(z_i, k_0) + beta TL_i ]`` on ``transform``'s outputs, without gradient to
    ``k_0``.

    Args:
        online_views: one or more tensors (N, d), views 1..V-1 through the online network.
        target: (N, d), view 0 through the moving-average copy; detached here.
        transform: as for :func:`spectral_loss`.
        trace_weight: beta; 0 leaves the trace loss away.
        group: process group whose ranks share the batch; the default group if None.
        distributed: False treats the rows as the whole batch even under a process group.
        parts: as for :func:`intl_loss`.

    Returns:
        A scalar, the loss of the global batch, the same on every rank.

    Raises:
        ValueError: for no online view, or views of different shapes, also between ranks.
        TypeError: if a view is not a floating-point tensor.
        NonFiniteError: as :func:`spectral_loss`.

    Example:
        >>> import torch
        >>> from intl_transfer.spectral import PowerTransform
        >>> online = [torch.randn(32, 128, requires_grad=True)]
        >>> spectral_ema_loss(online, torch.randn(32, 128), PowerTransform(0.5)).backward()
    """
    check_embedding(target, "target")
    views = [target.detach(), *online_views]
    return _spectral_loss(views, transform, trace_weight, False, group, distributed, parts)


def _spectral_loss(
    views: Sequence[Tensor],
    transform: SpectralTransform,
    trace_weight: float,
    target_too: bool,
    group: Any,
    distributed: bool,
    parts: dict[str, Tensor] | None,
) -> Tensor:
    """The framework's loss, the target's trace loss in it or not."""
    views = checked_views(views)
    check_trace_weight(trace_weight)
    with full_precision(views[0].device):
        stacked = torch.stack([at_least_float32(view) for view in views])
        rows = gather_rows(stacked, group, distributed, is_replicated=True)
        # Powers of small or large eigenvalues may be beyond float32 where their cosines are not.
        z_hat = transform.apply_to(rows.double() if transform.is_precise else rows)
        loss = row_mismatch(z_hat[1:], z_hat[:1]).mean()
        if trace_weight:
            mismatch, traces = loss, row_trace_loss(z_hat, transform.axis)
            summed = traces[1:].mean() + (traces[0] if target_too else 0.0)
            loss = mismatch + trace_weight * summed
            _report(parts, mismatch.to(rows.dtype), summed.to(rows.dtype))
        return replicated(finite(loss.to(rows.dtype)), group, distributed)


class INTLLoss(nn.Module):
    """:func:`intl_loss` as a module.

    Args:
        axis: ``"channel"`` or ``"batch"``.
        iterations: T of IterNorm.
        trace_weight: beta; None takes the published formula.
        sharded: as for :func:`intl_loss`.

    Example:
        >>> import torch
        >>> criterion = INTLLoss()
        >>> loss = criterion([torch.randn(16, 64), torch.randn(16, 64)])
    """

    def __init__(
        self,
        axis: Axis = "channel",
        iterations: int = 4,
        trace_weight: float | None = None,
        sharded: bool | None = None,
    ) -> None:
        super().__init__()
        check_axis(axis)
        check_iterations(iterations)
        check_trace_weight(trace_weight)
        self.axis: Axis = axis
        self.iterations, self.trace_weight, self.sharded = iterations, trace_weight, sharded

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """The loss of V views (N, d), view 0 the target."""
        return intl_loss(views, self.axis, self.iterations, self.trace_weight, sharded=self.sharded)

    def extra_repr(self) -> str:
        """Its settings, for ``print``."""
        return (
            f"axis={self.axis!r}, T={self.iterations}, trace_weight={self.trace_weight}, "
            f"sharded={self.sharded}"
        )


def _report(parts: dict[str, Tensor] | None, mismatch: Tensor, trace_loss: Tensor) -> None:
    """Fills the dictionary that a caller gave to know the parts of the loss."""
    if parts is not None:
        parts["mismatch"], parts["trace_loss"] = mismatch.detach(), trace_loss.detach()


def _statistics(
    views: Sequence[Tensor],
    axis: Axis,
    iterations: int,
    trace_weight: float | None,
    target_too: bool,
    group: Any,
    distributed: bool,
    sharded: bool | None,
) -> tuple[float, ViewStatistics]:
    """The weight of the trace loss, and what it weighs."""
    views = checked_views(views)
    check_iterations(iterations)
    check_trace_weight(trace_weight)
    ranks = world_size(group, distributed)
    check_equal_rows(views[0], group, distributed)
    rows, width = views[0].shape[0] * ranks, views[0].shape[1]
    check_spread(rows, width, axis)
    plan = plan_head(len(views), rows, width, ranks, sharded)
    announce(plan, rows, width)
    beta = _trace_weight(rows, width, axis) if trace_weight is None else trace_weight
    with full_precision(views[0].device):
        if plan.form == "gathered":
            views = [at_least_float32(view) for view in views]
            together = gather_rows(torch.stack(views), group, is_replicated=True, is_checked=True)
            views = list(together.unbind(0))
        exchange = Exchange(group, active=plan.is_sharded)
        found = view_statistics(views, axis, iterations, exchange, target_too, plan.share_solves)
        # Above T = 6 they come in float64.
        precision = torch.float64 if views[0].dtype == torch.float64 else torch.float32
        return beta, ViewStatistics(*(part.to(precision) for part in found))
