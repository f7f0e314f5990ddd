"""The loss head sharded over ranks.

Gathered, every rank repeats the whole head. Sharded, each does 1/W of the part that is as wide as
the embedding:

* **columns** (N <= d): ranks exchange their rows for all rows of their own columns (all-to-all),
  form partial N x N Grams, and sum these with one all-reduce. The gradient comes back by the
  reverse exchange.
* **rows** (N > d): partial d x d Grams of the rows that each rank has are summed; no exchange.

Where there are several views, each rank can also solve the small matrices of some views only.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from intl_transfer.spectral.collectives import Exchange
from intl_transfer.spectral.iternorm import small_iternorm
from intl_transfer.spectral.modes import gradient_again

logger = logging.getLogger(__name__)

# Chosen by counting, not tuned on GPUs: below a million numbers a view, an exchange costs more in
# latency than the products that it saves; the same of solves below 512 x 512.
_WORTH_SHARDING = 2**20
_WORTH_SHARING = 512


@dataclass(frozen=True)
class HeadPlan:
    """How ranks compute the loss of a batch.

    Attributes:
        form: ``"alone"`` (one rank), ``"gathered"``, ``"columns"`` or ``"rows"``.
        share_solves: whether ranks solve the small matrices of some views each.
        reason: why, in a few words.
    """

    form: str
    share_solves: bool
    reason: str

    @property
    def is_sharded(self) -> bool:
        """Whether each rank does a part of the wide products."""
        return self.form in ("columns", "rows")

    def __str__(self) -> str:
        solves = ", solves shared over views" if self.share_solves else ""
        return f"{self.form}{solves} ({self.reason})"


def plan_head(
    views: int,
    rows: int,
    width: int,
    ranks: int,
    sharded: bool | None = None,
) -> HeadPlan:
    """Chooses how ranks share the loss head.

    Args:
        views: V.
        rows: global batch size N.
        width: d.
        ranks: W.
        sharded: True or False insists; None shards where N x d is at least 2^20 and each rank
            has 64 columns (or rows) or more.

    Returns:
        The plan; ``str(plan)`` states the choice and the reason.

    Example:
        >>> print(plan_head(views=2, rows=256, width=8192, ranks=8))
        columns (8 ranks, 1024 columns each)
        >>> print(plan_head(views=2, rows=256, width=512, ranks=8))
        gathered (256 x 512 is too small to be worth an exchange)
    """
    if ranks == 1:
        return HeadPlan("alone", False, "one rank")
    if sharded is False:
        return HeadPlan("gathered", False, "requested")
    form, parts = ("columns", width) if rows <= width else ("rows", rows)
    small = min(rows, width)
    share = views > 1 and small >= _WORTH_SHARING
    if sharded:
        return HeadPlan(form, share, "requested")
    if rows * width < _WORTH_SHARDING or parts < 64 * ranks:
        return HeadPlan("gathered", False, f"{rows} x {width} is too small to be worth an exchange")
    return HeadPlan(form, share, f"{ranks} ranks, {-(-parts // ranks)} {form} each")


_logged: set[tuple[Any, ...]] = set()


def announce(plan: HeadPlan, rows: int, width: int) -> None:
    """Logs a plan, once for each shape."""
    key = (plan, rows, width)
    if plan.form != "alone" and key not in _logged:
        _logged.add(key)
        logger.info("loss head of %d x %d: %s", rows, width, plan)


class _SharedIterNorm(torch.autograd.Function):
    """Each rank solves its views; all are gathered. Replicated values in, replicated out."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, iterations: int, group: Any) -> tuple[Tensor, Tensor]:
        ranks = dist.get_world_size(group)
        each = -(-s.shape[0] // ranks)
        ctx.own = slice(dist.get_rank(group) * each, (dist.get_rank(group) + 1) * each)
        ctx.group, ctx.each, ctx.iterations = group, each, iterations
        ctx.save_for_backward(s)
        with torch.enable_grad():
            ctx.input = s[ctx.own].detach().requires_grad_()
            ctx.solved = small_iternorm(ctx.input, iterations) if len(ctx.input) else None
        if ctx.solved is None:
            p, diagonal = s.new_empty(0, *s.shape[1:]), s.new_empty(0, s.shape[-1])
        else:
            p, diagonal = (part.detach() for part in ctx.solved)
        return (
            _gather_views(p, each, s.shape[0], group),
            _gather_views(diagonal, each, s.shape[0], group),
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():
            # To be differentiated again: each rank solves all views.
            (s,) = ctx.saved_tensors
            both = small_iternorm(s, ctx.iterations)
            return gradient_again(both, s, gradients), None, None
        if ctx.solved is None:
            gradient = torch.zeros_like(ctx.input)
        else:
            (gradient,) = torch.autograd.grad(
                ctx.solved, ctx.input, [part[ctx.own] for part in gradients], retain_graph=True
            )
        return _gather_views(gradient, ctx.each, len(gradients[0]), ctx.group), None, None


def _gather_views(own: Tensor, each: int, views: int, group: Any) -> Tensor:
    """All ranks' blocks of ``each`` views, the last ones padded for the way, without autograd."""
    block = own.new_zeros(each, *own.shape[1:])
    block[: len(own)] = own
    blocks = [torch.empty_like(block) for _ in range(dist.get_world_size(group))]
    dist.all_gather(blocks, block, group=group)
    return torch.cat(blocks)[:views]


def shared_iternorm(
    s: Tensor, iterations: int, exchange: Exchange, share: bool
) -> tuple[Tensor, Tensor]:
    """:func:`small_iternorm` of (V, n, n) replicated matrices, by all ranks or by some each."""
    if exchange.size == 1 or not share:
        return small_iternorm(s, iterations)
    exchange.count(s, 2)
    return cast("tuple[Tensor, Tensor]", _SharedIterNorm.apply(s, iterations, exchange.group))
