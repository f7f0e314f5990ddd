"""Several views of one batch: their check, and how well their rows match."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from intl_transfer.spectral.common import Axis, check_embedding, degrees_of_freedom


def check_views(views: Sequence[Tensor]) -> None:
    """Raises unless there are two or more floating tensors (N, d) of one shape and dtype."""
    if len(views) < 2:
        raise ValueError(f"{len(views)} view(s); expected a target and at least one other view")
    for index, view in enumerate(views):
        check_embedding(view, f"view {index}")
        if view.dim() != 2 or view.shape != views[0].shape:
            raise ValueError(
                f"view {index} has shape {tuple(view.shape)}, view 0 {tuple(views[0].shape)}; "
                "expected the same (N, d) for all"
            )


def row_trace_loss(z_hat: Tensor, axis: Axis) -> Tensor:
    """Trace loss of each batch in (..., N, d) that is all here: shape (...)."""
    if axis == "channel":
        variances = z_hat.square().sum(dim=-1) / degrees_of_freedom(z_hat, axis)
    else:
        variances = z_hat.var(dim=-2, correction=1 if z_hat.shape[-2] > 1 else 0)
    return (1 - variances).square().sum(dim=-1)


def row_mismatch(a: Tensor, b: Tensor) -> Tensor:
    """``2 - 2 mean_n cos(a_n, b_n)`` of each batch in (..., N, d): shape (...)."""
    return 2 - 2 * F.cosine_similarity(a, b, dim=-1, eps=1e-12).mean(dim=-1)
