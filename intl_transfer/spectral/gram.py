"""Gram matrices of embeddings, with backward passes of one product each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

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
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return cast(Tensor, (gradients[0] + gradients[0].mT) @ z)


def gram(z: Tensor) -> Tensor:
    """``Z Z^T``, shape (..., n, n) from (..., n, m).

    Autograd of the product takes its gradient for each factor, ``G Z`` and ``G^T Z``; here it is
    ``(G + G^T) Z``, one product.
    """
    return cast(Tensor, _Gram.apply(z))


class _CentredRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *views: Tensor) -> tuple[Tensor, ...]:
        return tuple(view - view.mean(-1, keepdim=True) for view in views)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients


def centred_rows(views: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Each row of each view without its mean, for :func:`view_grams` alone.

    The gradient is handed on as it comes: that of a Gram of centred rows is a linear combination
    of such rows, in which centring finds nothing to subtract.
    """
    return cast("tuple[Tensor, ...]", _CentredRows.apply(*views))


class _ViewGrams(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, target_too: bool, *views: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*views)
        ctx.target_too = target_too
        target, *others = views
        n = target.shape[0]
        own = target.new_empty(len(views), n, n)
        cross = target.new_empty(len(others), n, n)
        for view, out in zip(views, own, strict=True):
            self_product(view, out)
        for view, out in zip(others, cross, strict=True):
            out.copy_(_product(view, target))
        return own, cross

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        target, *others = ctx.saved_tensors
        own, cross = gradients
        own = own + own.mT
        # dZ_i = sym(2 dG_ii) Z_i + dC_i Z_0, and dZ_0 with all dC_i^T Z_i.
        to_others = [
            sum_of_products([(own[i + 1], view), (cross[i], target)])
            for i, view in enumerate(others)
        ]
        to_target = None
        if ctx.target_too:
            crossed = [(matrix.T, view) for matrix, view in zip(cross, others, strict=True)]
            to_target = sum_of_products([(own[0], target), *crossed])
        return None, to_target, *to_others


def view_grams(views: Sequence[Tensor], target_too: bool = True) -> tuple[Tensor, Tensor]:
    """The Grams from which the loss of V views follows on the channel axis.

    Args:
        views: V >= 2 tensors (N, m) of centred rows, or of some columns of such.
        target_too: whether view 0 takes a gradient.

    Returns:
        ``Z_v Z_v^T`` of every view, (V, N, N), and ``Z_i Z_0^T`` of views 1..V-1, (V - 1, N, N).
    """
    return cast("tuple[Tensor, Tensor]", _ViewGrams.apply(target_too, *views))


def sum_of_products(factors: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """``sum_k A_k B_k`` of matrices (n, n) and (n, m), without autograd."""
    (left, right), *more = factors
    if right.device.type != "cpu":
        result = left @ right
        for matrix, other in more:
            torch.addmm(result, matrix, other, out=result)
        return result
    result = torch.empty_like(right)
    width = right.shape[1]
    most = max(torch.get_num_threads(), _LEAST_PARTS)
    for start in range(0, width, most * _COLUMNS):
        panel = slice(start, min(start + most * _COLUMNS, width))
        parts = most if panel.stop - start == most * _COLUMNS else 1
        # Not in the result itself, whose rows lie apart by a power of two as a rule: caches bear
        # that badly.
        total = torch.bmm(left.expand(parts, -1, -1), _in_parts(right[:, panel], parts))
        for matrix, other in more:
            columns = _in_parts(other[:, panel], parts)
            torch.baddbmm(total, matrix.expand(parts, -1, -1), columns, out=total)
        _in_parts(result[:, panel], parts).copy_(total)
    return result
