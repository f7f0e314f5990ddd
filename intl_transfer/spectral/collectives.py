"""The global batch of several ranks, differentiably.

Two kinds of value meet here, and each collective is exact for its own:

* *Local* values differ from rank to rank (a rank's rows). Their derivative on a rank is a part
  of the whole, and the parts of all ranks are summed in the backward pass.
* *Replicated* values are the same on every rank (a covariance after an all-reduce, the loss).
  Every rank computes the same derivative of them, so that nothing needs to be summed.

A loss is a replicated value that every rank differentiates. As a function of all ranks' inputs,
the sum of W equal losses has the gradient ``W dL/dz``; :func:`replicated` sees to that factor with
one all-reduce of one number, and DistributedDataParallel's average over ranks takes it away.

The adjoint of each collective is another one (of a sum over ranks into a replicated value, the
same value on each rank; and the other way around), so that backward passes can themselves be
differentiated, to any order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._compile import _disable_dynamo

from intl_transfer.spectral.guards import may_compare_rows
from intl_transfer.spectral.modes import is_compiling, is_transformed

P = ParamSpec("P")
R = TypeVar("R")


def world_size(group: Any = None, distributed: bool = True) -> int:
    """Number of ranks whose rows make up the global batch.

    Raises:
        NotImplementedError: for several ranks under a transform of torch.func.
    """
    if not (distributed and dist.is_available() and dist.is_initialized()):
        return 1
    size = dist.get_world_size(group)
    if size > 1 and is_transformed():
        raise NotImplementedError(
            f"torch.func transforms (grad, vmap, ...) do not reach the other {size - 1} rank(s) of "
            "the process group; pass distributed=False for this rank's rows alone, or "
            "differentiate by torch.autograd"
        )
    return size


def check_equal_rows(z: Tensor, group: Any = None, distributed: bool = True) -> None:
    """Refuses ranks with batches of different shapes, where there are several.

    Every formula takes N for W times a rank's rows: with other rows elsewhere it would give each
    rank another number, or a collective would wait for what never comes.

    Args:
        z: this rank's, (..., n, d), at the same place of the program on every rank.
        group: process group; the default one if None.
        distributed: False for a batch that is whole here.

    Raises:
        ValueError: on every rank, with the shapes. Nothing is checked within :func:`equal_rows`,
            and :func:`without_waiting`, since that waits.
    """
    ranks = world_size(group, distributed)
    if ranks == 1 or not may_compare_rows():
        return
    own = torch.tensor([z.shape[-2], z.shape[-1]], device=z.device)
    everyone = [torch.empty_like(own) for _ in range(ranks)]
    dist.all_gather(everyone, own, group=group)
    shapes = torch.stack(everyone).tolist()
    if any(shape != shapes[0] for shape in shapes):
        found = ", ".join(f"{rows} x {width}" for rows, width in shapes)
        raise ValueError(
            f"ranks have embeddings of {found}; expected the same shape on each (a last batch that "
            "is not full is dropped), or distributed=False for each rank by itself"
        )


def global_batch(function: Callable[P, R]) -> Callable[P, R]:
    """A function of the global batch, which ``torch.compile`` leaves alone where ranks share it.

    With ``fullgraph=True`` the compiler raises, naming the reason; without, it breaks its graph
    around the call.
    """
    # As torch.compiler.disable, which would import the whole compiler for the decoration.
    as_it_is = _disable_dynamo(function)

    @functools.wraps(function)
    def dispatch(*args: P.args, **kwargs: P.kwargs) -> R:
        distributed = bool(kwargs.get("distributed", True))
        if is_compiling() and world_size(kwargs.get("group"), distributed) > 1:
            torch._dynamo.graph_break(
                msg="the loss exchanges rows between ranks, which is not compiled; call it outside "
                "of the compiled function, or with distributed=False"
            )
            return as_it_is(*args, **kwargs)
        return function(*args, **kwargs)

    return dispatch


class _GatherRows(torch.autograd.Function):
    """Every rank's rows one below the other."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, group: Any, is_replicated: bool) -> Tensor:
        ctx.group, ctx.is_replicated = group, is_replicated
        ctx.rank, ctx.rows = dist.get_rank(group), z.shape[-2]
        parts = [torch.empty_like(z) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, z, group=group)
        return torch.cat(parts, dim=-2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0].contiguous()
        gradient = _AllReduce.apply(gradient, ctx.group, not ctx.is_replicated, True)
        return gradient.narrow(-2, ctx.rank * ctx.rows, ctx.rows).contiguous(), None, None


class _AllReduce(torch.autograd.Function):
    """Sums over ranks forward, backward, or both."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Any, forward: bool, backward: bool) -> Tensor:
        ctx.group, ctx.forward_too, ctx.backward_too = group, forward, backward
        if not forward:
            return value.view_as(value)
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = _AllReduce.apply(gradients[0], ctx.group, ctx.backward_too, ctx.forward_too)
        return gradient, None, None, None


def sum_over_ranks(value: Tensor, group: Any = None) -> Tensor:
    """Local to local: the sum of every rank's tensor (of one shape); needs a process group."""
    return cast(Tensor, _AllReduce.apply(value, group, True, True))


def gather_rows(
    z: Tensor,
    group: Any = None,
    distributed: bool = True,
    *,
    is_replicated: bool = False,
    is_checked: bool = False,
) -> Tensor:
    """The global batch: every rank's rows one below the other, in rank order.

    Args:
        z: this rank's rows, shape (..., n, d); n must be the same on every rank.
        group: process group; the default one if None.
        distributed: False uses only the local batch, even under a process group.
        is_replicated: True if what is made of the result is the same on every rank up to
            :func:`replicated`: the backward pass then communicates nothing. False sums the
            gradients of all ranks.
        is_checked: True after :func:`check_equal_rows`.

    Returns:
        Shape (..., W * n, d) for W ranks; ``z`` itself without a process group.

    Raises:
        ValueError: if ranks have different shapes.
    """
    if world_size(group, distributed) == 1:
        return z
    if not is_checked:
        check_equal_rows(z, group, distributed)
    return cast(Tensor, _GatherRows.apply(z.contiguous(), group, is_replicated))


def own_rows(z: Tensor, rows: int, group: Any = None, distributed: bool = True) -> Tensor:
    """This rank's ``rows`` rows of a global batch (..., W * rows, d)."""
    if world_size(group, distributed) == 1:
        return z
    return z.narrow(-2, dist.get_rank(group) * rows, rows)


def replicated(loss: Tensor, group: Any = None, distributed: bool = True) -> Tensor:
    """Marks a loss that every rank has computed alike; its gradient is summed over ranks.

    Everything between the inputs and this mark may then take its gradient for that of all ranks.
    """
    if world_size(group, distributed) == 1:
        return loss
    return cast(Tensor, _AllReduce.apply(loss, group, False, True))


class Exchange:
    """The communication of a sharded computation.

    With one rank, or on a batch that every rank holds whole, all methods leave their argument as
    it is. ``sent`` counts the bytes this rank has handed to collectives (all-reduce counted twice:
    a reduce-scatter and an all-gather), less the share that stays here.

    Args:
        group: process group; the default one if None.
        active: False for a batch that is whole on every rank.
    """

    def __init__(self, group: Any = None, active: bool = True) -> None:
        self.group = group
        self.size = dist.get_world_size(group) if active else 1
        self.rank = dist.get_rank(group) if active else 0
        self.sent = 0

    def reduce(self, value: Tensor) -> Tensor:
        """Local to replicated: the sum over ranks; no communication in the backward pass."""
        if self.size == 1:
            return value
        self.count(value, 2)
        return cast(Tensor, _AllReduce.apply(value, self.group, True, False))

    def spread(self, value: Tensor) -> Tensor:
        """Replicated to local: the same value; its gradients are summed in the backward pass."""
        if self.size == 1:
            return value
        self.count(value, 2)
        return cast(Tensor, _AllReduce.apply(value, self.group, False, True))

    def sum(self, value: Tensor) -> Tensor:
        """Local to local: the sum over ranks, forward and backward."""
        return self.spread(self.reduce(value))

    def columns(self, z: Tensor) -> Tensor:
        """Own rows (V, n, d) of all columns to all rows (V, N, d_r) of own columns."""
        if self.size == 1:
            return z
        self.count(z, 2)
        return cast(Tensor, _RowsToColumns.apply(z, self.group))

    def largest(self, value: Tensor) -> Tensor:
        """The maximum over ranks of each number, without gradient; NaN propagates."""
        if self.size == 1:
            return value
        # Gathered: whether a maximum over ranks keeps NaN is up to the backend.
        everyone = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(everyone, value.contiguous(), group=self.group)
        return torch.stack(everyone).amax(0)

    def count(self, value: Tensor, times: int) -> None:
        """Adds what a ring moves for ``value``, ``times`` times over, to ``sent``."""
        share = value.numel() * value.element_size() * (self.size - 1) / self.size
        self.sent += round(times * share)


def shard_sizes(width: int, ranks: int) -> list[int]:
    """Columns of each rank: as equal as can be, larger ones first."""
    least, more = divmod(width, ranks)
    return [least + (rank < more) for rank in range(ranks)]


class _RowsToColumns(torch.autograd.Function):
    """All-to-all; its adjoint is the reverse all-to-all."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, group: Any) -> Tensor:
        ctx.group, ctx.width = group, z.shape[-1]
        return rows_to_columns(z, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _ColumnsToRows.apply(gradients[0], ctx.width, ctx.group), None


class _ColumnsToRows(torch.autograd.Function):
    """The reverse all-to-all."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, width: int, group: Any) -> Tensor:
        ctx.group = group
        return columns_to_rows(z, width, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _RowsToColumns.apply(gradients[0], ctx.group), None, None


def rows_to_columns(z: Tensor, group: Any = None) -> Tensor:
    """Shape (V, n, d) on each of W ranks to (V, W n, d_r), without autograd."""
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    views, rows, width = z.shape
    sizes = shard_sizes(width, ranks)
    outgoing = torch.cat([part.reshape(-1) for part in torch.split(z, sizes, dim=-1)])
    incoming = z.new_empty(ranks * views * rows * sizes[rank])
    dist.all_to_all_single(
        incoming,
        outgoing,
        [views * rows * sizes[rank]] * ranks,
        [views * rows * size for size in sizes],
        group=group,
    )
    parts = incoming.view(ranks, views, rows, sizes[rank])
    return parts.transpose(0, 1).reshape(views, ranks * rows, sizes[rank])


def columns_to_rows(z: Tensor, width: int, group: Any = None) -> Tensor:
    """Shape (V, W n, d_r) on each of W ranks to (V, n, d), without autograd."""
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    views, rows = z.shape[0], z.shape[1] // ranks
    sizes = shard_sizes(width, ranks)
    outgoing = z.reshape(views, ranks, rows, sizes[rank]).transpose(0, 1).reshape(-1)
    incoming = z.new_empty(views * rows * width)
    dist.all_to_all_single(
        incoming,
        outgoing.contiguous(),
        [views * rows * size for size in sizes],
        [views * rows * sizes[rank]] * ranks,
        group=group,
    )
    parts = torch.split(incoming, [views * rows * size for size in sizes])
    return torch.cat(
        [part.view(views, rows, size) for part, size in zip(parts, sizes, strict=True)], dim=-1
    )
