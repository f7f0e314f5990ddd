"""Several views of one batch: their check, and how well their rows match."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from intl_transfer.spectral.common import (
    Axis,
    check_embedding,
    degrees_of_freedom,
)
from intl_transfer.spectral.scale import unit_rows


def checked_views(views: Sequence[Tensor] | Tensor) -> list[Tensor]:
    """The views of one batch, in precisions that go together.

    Half and single precision are computed in float32, float64 in float64. Views of both are
    computed in float64, and each has its gradient in its own precision.

    Args:
        views: V >= 2 tensors (N, d), or one tensor (V, N, d).

    Returns:
        The views; float64 all, if one of them is.

    Raises:
        TypeError: if that is no sequence, or one of it no floating-point tensor.
        ValueError: for fewer than two, another shape, or views on different devices.
    """
    if not isinstance(views, (Sequence, Tensor)):
        raise TypeError(
            f"views: expected a sequence of V >= 2 tensors (N, d), found {type(views).__name__}"
        )
    if isinstance(views, Tensor) and views.dim() != 3:
        raise ValueError(
            f"views: expected a sequence of V >= 2 tensors (N, d), or one tensor (V, N, d), found "
            f"a tensor of shape {tuple(views.shape)}"
        )
    if len(views) < 2:
        raise ValueError(f"{len(views)} view(s); expected a target and at least one other view")
    for index, view in enumerate(views):
        check_embedding(view, f"view {index}")
        if view.dim() != 2 or view.shape != views[0].shape:
            raise ValueError(
                f"view {index} has shape {tuple(view.shape)}, view 0 {tuple(views[0].shape)}; "
                "expected the same (N, d) for all"
            )
        if view.device != views[0].device:
            raise ValueError(
                f"view {index} is on {view.device}, view 0 on {views[0].device}; "
                "expected one device"
            )
    return same_precision(list(views))


def same_precision(views: list[Tensor]) -> list[Tensor]:
    """As they are, or float64 all if one of them is."""
    if any(view.dtype == torch.float64 for view in views):
        return [view.double() for view in views]
    return views


def row_trace_loss(z_hat: Tensor, axis: Axis) -> Tensor:
    """Trace loss of each batch in (..., N, d) that is all here: shape (...)."""
    if axis == "channel":
        variances = z_hat.square().sum(dim=-1) / degrees_of_freedom(z_hat, axis)
    else:
        variances = z_hat.var(dim=-2, correction=1 if z_hat.shape[-2] > 1 else 0)
    return (1 - variances).square().sum(dim=-1)


def row_mismatch(a: Tensor, b: Tensor) -> Tensor:
    """``2 - 2 mean_n cos(a_n, b_n)`` of each batch in (..., N, d): shape (...).

    Rows below 1e-12 of the largest entry of their batch are zeros that rounding has touched; their
    cosine counts as zero.
    """
    cosine = (unit_rows(a, noise=1e-12) * unit_rows(b, noise=1e-12)).sum(-1)
    return 2 - 2 * cosine.mean(dim=-1)
