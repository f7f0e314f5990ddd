"""Matrix products that keep their precision, forward and backward, at any order.

Autocast makes products in half precision wherever they are called, and the products of a backward
pass are called where ``backward()`` is. These here turn it off for themselves; their derivatives
are again products of this kind.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from intl_transfer.spectral.modes import (
    forward_mode,
    full_precision,
    is_compiling,
    is_plain,
)


def product(left: Tensor, right: Tensor) -> Tensor:
    """``A B``, shape (..., n, k) from (..., n, m) and (..., m, k).

    Args:
        left: matrices.
        right: matrices, of leading dimensions that broadcast.

    Returns:
        The products in the precision of the factors, regardless of autocast, and so are all
        derivatives.
    """
    if is_compiling():
        return cast(Tensor, _product_compiled(left, right))
    if not is_plain(left, right):
        return cast(Tensor, _Product.apply(left, right))
    if torch.is_grad_enabled():
        return cast(Tensor, _PlainProduct.apply(left, right))
    return _matmul(left, right)


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    with full_precision(left.device):
        return torch.matmul(left, right)


class _PlainProduct(torch.autograd.Function):
    """Of the older form, whose calls take a tenth of the time of the other's."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        return _matmul(left, right)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        left, right = ctx.saved_tensors
        needs_left, needs_right = ctx.needs_input_grad
        return _gradients(left, right, gradients[0], needs_left, needs_right)


class _Product(torch.autograd.Function):
    """Of the form that transforms of torch.func and forward mode need."""

    @staticmethod
    def forward(left: Tensor, right: Tensor) -> Tensor:
        return _matmul(left, right)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        left, right = ctx.saved_tensors
        needs_left, needs_right = ctx.needs_input_grad
        return _gradients(left, right, gradients[0], needs_left, needs_right)

    @staticmethod
    @forward_mode
    def jvp(ctx: Any, saved: Any, *tangents: Any) -> Tensor:
        left, right = saved
        parts = []
        if tangents[0] is not None:
            parts.append(product(tangents[0], right))
        if tangents[1] is not None:
            parts.append(product(left, tangents[1]))
        return sum(parts[1:], start=parts[0])

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], left: Tensor, right: Tensor
    ) -> tuple[Tensor, int]:
        factors = [
            factor if dim is None else factor.movedim(dim, 0)
            for factor, dim in zip((left, right), in_dims, strict=True)
        ]
        # Dimensions in front that one factor lacks go behind the batch.
        most = max(f.dim() - (dim is not None) for f, dim in zip(factors, in_dims, strict=True))
        for i, dim in enumerate(in_dims):
            if dim is not None:
                size, *rest = factors[i].shape
                factors[i] = factors[i].reshape(size, *[1] * (most - len(rest)), *rest)
        return product(*factors), 0


def _gradients(
    left: Tensor, right: Tensor, gradient: Tensor, needs_left: bool, needs_right: bool
) -> tuple[Tensor | None, Tensor | None]:
    to_left = product(gradient, right.mT) if needs_left else None
    to_right = product(left.mT, gradient) if needs_right else None
    if to_left is not None and to_left.shape != left.shape:
        to_left = to_left.sum_to_size(left.shape)
    if to_right is not None and to_right.shape != right.shape:
        to_right = to_right.sum_to_size(right.shape)
    return to_left, to_right


# Compiled, a product is a separate operator: autocast would otherwise decide, when the backward
# graph is traced, what it is made in.


@torch.library.custom_op(
    "intl_transfer::product", mutates_args=(), schema="(Tensor left, Tensor right) -> Tensor"
)
def _product_compiled(left: Tensor, right: Tensor) -> Tensor:
    return _matmul(left, right).contiguous()


@_product_compiled.register_fake
def _(left: Tensor, right: Tensor) -> Tensor:
    leading = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    return left.new_empty(*leading, left.shape[-2], right.shape[-1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _product_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    left, right = ctx.saved_tensors
    to_left, to_right = None, None
    if ctx.needs_input_grad[0]:
        to_left = _product_compiled(gradient, right.mT).sum_to_size(left.shape)
    if ctx.needs_input_grad[1]:
        to_right = _product_compiled(left.mT, gradient).sum_to_size(right.shape)
    return to_left, to_right


_product_compiled.register_autograd(_product_backward, setup_context=_keep)
