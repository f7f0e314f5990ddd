"""A method: views are drawn together until their cosine is within a margin of 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from intl_transfer.methods import Option, comparison
from intl_transfer.spectral.baselines.common import prepare
from intl_transfer.spectral.collectives import global_batch, replicated
from intl_transfer.spectral.scale import unit_rows


@global_batch
def margin_loss(
    views: Sequence[Tensor],
    margin: float = 0.1,
    *,
    group: Any = None,
    distributed: bool = True,
) -> Tensor:
    """Mean of ``max(0, 1 - cos(z_0, z_i) - margin)`` over samples and views i >= 1.

    Args:
        views: V >= 2 tensors (N, d), view 0 the target; this rank's rows under a process group.
        margin: from 0 to 2.
        group: process group whose ranks share the batch; the default group if None.
        distributed: False treats the rows as the whole batch even under a process group.

    Returns:
        A scalar, the loss of the global batch, the same on every rank.
    """
    z, exchange, rows = prepare(views, group, distributed)
    z = unit_rows(z)
    missing = (1 - (z[1:] * z[:1]).sum(-1) - margin).relu()
    return replicated(exchange.reduce(missing.sum()) / (rows * len(missing)), group, distributed)


METHOD = comparison(
    "margin",
    "Margin matching",
    margin_loss,
    has_target=True,
    margin=Option(expected="a number from 0 to 2", is_good=lambda margin: 0 <= margin <= 2),
)
