"""Gram matrices of embeddings, with backward passes of one product each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from intl_transfer.spectral.common import at_least_float32, center
from intl_transfer.spectral.modes import (
    is_compiling,
    is_differentiated_again,
    is_plain,
    island,
)
from intl_transfer.spectral.product import product

# A symmetric product needs half its entries only. In four blocks of rows, 5/8 of the work are left;
# GPUs do better with one product that fills them.
_BLOCKS = 4
_WORTH_BLOCKS = 128
# What a CPU adds up at a time: some columns, in parts side by side, few enough for its cache. Parts
# are products of one batch: threads take products each, which is faster than sharing each of them
# (measured on two cores).
_LEAST_PARTS = 4
_MOST_PARTS = 8
_COLUMNS = 512


@island
def self_product(z: Tensor, out: Tensor | None = None) -> Tensor:
    """``Z Z^T``, shape (..., n, n) from (..., n, m), without autograd."""
    n = z.shape[-2]
    if out is None:
        out = z.new_empty(*z.shape[:-1], n)
    if z.device.type != "cpu" or n < _WORTH_BLOCKS:
        return torch.matmul(z, z.mT, out=out)
    if z.dim() > 2:
        for one, its in zip(z, out, strict=True):
            self_product(one, its)
        return out
    size = -(-n // _BLOCKS)
    for start in range(0, n, size):
        end = min(start + size, n)
        out[start:end, :end] = _product(z[start:end], z[:end])
        out[:start, start:end] = out[start:end, :start].T
    return out


def _product(left: Tensor, right: Tensor) -> Tensor:
    """``A B^T`` of matrices (n, m) and (k, m), without autograd."""
    parts = min(torch.get_num_threads(), _MOST_PARTS)
    if left.device.type != "cpu" or parts == 1 or left.shape[1] % parts:
        return left @ right.T
    return torch.bmm(_in_parts(left, parts), _in_parts(right, parts).mT).sum(0)


def _in_parts(z: Tensor, parts: int) -> Tensor:
    """Shape (n, m) as (parts, n, m / parts): columns next to each other, in the same memory."""
    return z.view(z.shape[0], parts, z.shape[1] // parts).transpose(0, 1)


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return self_product(z)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return product(gradients[0] + gradients[0].mT, z)


@torch.library.custom_op("intl_transfer::gram", mutates_args=(), schema="(Tensor z) -> Tensor")
def _gram_compiled(z: Tensor) -> Tensor:
    return self_product(z)


@_gram_compiled.register_fake
def _(z: Tensor) -> Tensor:
    return z.new_empty(*z.shape[:-1], z.shape[-2])


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


_gram_compiled.register_autograd(_Gram.backward, setup_context=_keep)


def gram(z: Tensor) -> Tensor:
    """``Z Z^T``, shape (..., n, n) from (..., n, m).

    Autograd of the product takes its gradient for each factor, ``G Z`` and ``G^T Z``; here it is
    ``(G + G^T) Z``, one product.
    """
    if is_compiling():
        return cast(Tensor, _gram_compiled(z))
    return cast(Tensor, _Gram.apply(z)) if is_plain(z) else product(z, z.mT)


def _without_means(views: Sequence[Tensor]) -> list[Tensor]:
    return [center(at_least_float32(view), "channel") for view in views]


class _CenteredRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *views: Tensor) -> tuple[Tensor, ...]:
        return tuple(_without_means(views))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        if not is_differentiated_again(*gradients):
            return gradients
        # Nothing to subtract here either, but from the derivatives of this there is.
        return tuple(center(gradient, "channel") for gradient in gradients)


def centered_rows(views: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Each row of each view without its mean, for :func:`view_grams` alone.

    The gradient is passed on unchanged: that of a Gram of centered rows is a linear combination of
    such rows, in which centering finds nothing to subtract.
    """
    return cast("tuple[Tensor, ...]", _CenteredRows.apply(*views))


class _ViewGrams(torch.autograd.Function):
    @staticmethod
    @island
    def forward(ctx: Any, target_too: bool, centers: bool, *views: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*views)
        ctx.target_too, ctx.centers = target_too, centers
        # Not saved by autograd, but kept: the backward pass may use this memory for gradients.
        ctx.centered = _without_means(views) if centers else None
        target, *others = ctx.centered or views
        n = target.shape[0]
        own = target.new_empty(len(views), n, n)
        cross = target.new_empty(len(others), n, n)
        for view, out in zip([target, *others], own, strict=True):
            self_product(view, out)
        for view, out in zip(others, cross, strict=True):
            out.copy_(_product(view, target))
        return own, cross

    @staticmethod
    @island
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        own, cross = gradients
        own = own + own.mT
        if is_differentiated_again(*gradients):
            views = _without_means(ctx.saved_tensors) if ctx.centers else list(ctx.saved_tensors)
            return None, None, *_gradients_again(views, own, cross, ctx.target_too)
        if ctx.centers:
            # Of a graph that is kept, the second pass finds them gone and makes them again.
            views = ctx.centered or _without_means(ctx.saved_tensors)
            ctx.centered = None
            results = views
        else:
            views = list(ctx.saved_tensors)
            results = [torch.empty_like(view) for view in views]
        _take_gradients(views, results, own, cross, ctx.target_too)
        return None, None, results[0] if ctx.target_too else None, *results[1:]


def _gradients_again(
    views: list[Tensor], own: Tensor, cross: Tensor, target_too: bool
) -> list[Tensor | None]:
    """As :func:`_take_gradients`, in operations that can be differentiated again."""
    target, *others = views
    results: list[Tensor | None] = [product(own[0], target) if target_too else None]
    for i, other in enumerate(others):
        if results[0] is not None:
            results[0] = results[0] + product(cross[i].mT, other)
        results.append(product(own[i + 1], other) + product(cross[i], target))
    return results


def view_grams(
    views: Sequence[Tensor], target_too: bool = True, centers: bool = False
) -> tuple[Tensor, Tensor]:
    """The Grams from which the loss of V views follows on the channel axis.

    Args:
        views: V >= 2 tensors (N, m).
        target_too: whether view 0 takes a gradient.
        centers: True takes the mean of each row away first, in float32 at least. The gradients
            then take the memory of the centered rows, one after the other.

    Returns:
        ``Z_v Z_v^T`` of every view, (V, N, N), and ``Z_i Z_0^T`` of views 1..V-1, (V - 1, N, N).
    """
    if is_plain(*views):
        return cast("tuple[Tensor, Tensor]", _ViewGrams.apply(target_too, centers, *views))
    target, *others = _without_means(views) if centers else views
    target = target if target_too else target.detach()
    own = torch.stack([gram(view) for view in (target, *others)])
    return own, torch.stack([product(view, target.mT) for view in others])


def _take_gradients(
    views: list[Tensor], results: list[Tensor], own: Tensor, cross: Tensor, target_too: bool
) -> None:
    """Gradients of :func:`view_grams` into ``results``, which may be ``views`` itself.

    ``own`` is ``G + G^T`` of each view's own Gram, (V, N, N), ``cross`` the gradients of the
    others' Grams with view 0, (V - 1, N, N).
    """
    if views[0].device.type != "cpu":
        whole = [view[None] for view in views]
        for i, gradient in _gradients(whole, own, cross, target_too):
            # Where the results are the views, the last that held this one lets go of it.
            whole[i], results[i] = gradient, gradient[0]
        return
    width = views[0].shape[1]
    most = max(torch.get_num_threads(), _LEAST_PARTS)
    for start in range(0, width, most * _COLUMNS):
        panel = slice(start, min(start + most * _COLUMNS, width))
        parts = most if panel.stop - start == most * _COLUMNS else 1
        columns = [_in_parts(view[:, panel], parts) for view in views]
        for i, gradient in _gradients(columns, own, cross, target_too):
            _in_parts(results[i][:, panel], parts).copy_(gradient)


def _gradients(
    views: list[Tensor], own: Tensor, cross: Tensor, target_too: bool
) -> Iterator[tuple[int, Tensor]]:
    """One view after the other, that of view 0 last: none reads a view whose own has been given.

    ``dZ_i = 2 sym(dG_ii) Z_i + dC_i Z_0``, and ``dZ_0`` with all ``dC_i^T Z_i``. Views are parts
    side by side, (parts, N, m).
    """
    last = len(views) - 1
    to_target = None
    if target_too:
        crossed = [(cross[i].T, views[i + 1]) for i in range(last)]
        to_target = _sum_of_products([(own[0], views[0]), *crossed])
    for i in range(last):
        yield i + 1, _sum_of_products([(own[i + 1], views[i + 1]), (cross[i], views[0])])
    if to_target is not None:
        yield 0, to_target


def _sum_of_products(factors: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """``sum_k A_k B_k`` of matrices (n, n) and parts (parts, n, m)."""
    (left, right), *more = factors
    parts = right.shape[0]
    # Not in the result itself, whose rows lie apart by a power of two as a rule: caches bear that
    # badly.
    total = torch.bmm(left.expand(parts, -1, -1), right)
    for matrix, other in more:
        torch.baddbmm(total, matrix.expand(parts, -1, -1), other, out=total)
    return total
