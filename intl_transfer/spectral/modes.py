"""How a call is run: plainly, under a transform of torch.func, or compiled.

Hand-derived backward passes serve plain calls. Everything else (torch.func, forward-mode tangents,
``torch.compile``) takes the same formulas, written in operations that torch differentiates itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

P = ParamSpec("P")
R = TypeVar("R")


def is_compiling() -> bool:
    """Whether ``torch.compile`` or ``torch.export`` is tracing."""
    return bool(torch.compiler.is_compiling())


def is_transformed() -> bool:
    """Whether a transform of torch.func (grad, vjp, jvp, vmap, ...) is at work."""
    # The check of torch.autograd.Function.apply; it has no public name.
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    return active is not None and bool(active())


def is_plain(*tensors: Tensor) -> bool:
    """Whether a hand-derived backward pass may serve a call with these tensors."""
    if is_compiling() or is_transformed():
        return False
    try:
        return all(_unpacked(tensor).tangent is None for tensor in tensors)
    except RuntimeError:  # forward mode of torch.autograd.functional, mapped over a batch
        return False


def _unpacked(tensor: Tensor) -> Any:
    return forward_ad.unpack_dual(tensor)


#: By kind of device, the part of ``torch.backends`` whose products it computes.
_BACKENDS = {"cpu": "mkldnn", "cuda": "cuda", "xpu": "mkldnn"}
_EXACT = ("ieee", "none")


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which matrix products keep the precision of their inputs.

    Neither autocast applies within nor what a program allows for products of float32 (TF32 or
    bfloat16, by ``torch.set_float32_matmul_precision`` and its successors).
    """
    reduced = None if is_compiling() else _reduced_products(device)
    if not is_compiling() and not torch.is_autocast_enabled(device.type):
        return reduced or nullcontext()  # entering the other takes longer than a small product
    autocast = torch.autocast(device_type=device.type, enabled=False)
    return autocast if reduced is None else _both(autocast, reduced)


@contextmanager
def _both(one: AbstractContextManager[Any], other: AbstractContextManager[Any]) -> Iterator[None]:
    with one, other:
        yield


def _reduced_products(device: torch.device) -> AbstractContextManager[Any] | None:
    """A context that makes products of float32 exact again; None where they are."""
    name = _BACKENDS.get(device.type)
    if name is None:  # a device without faster ones
        return None
    products: Any = getattr(getattr(torch.backends, name), "matmul", None)
    if hasattr(products, "fp32_precision"):
        before = products.fp32_precision
        return None if before in _EXACT else _float32_products(products, before)
    if torch.get_float32_matmul_precision() == "highest":  # torch < 2.9
        return None
    return _float32_products_of_before()


@contextmanager
def _float32_products(products: Any, before: str) -> Iterator[None]:
    products.fp32_precision = "ieee"
    try:
        yield
    finally:
        products.fp32_precision = before


@contextmanager
def _float32_products_of_before() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def island(function: Callable[P, R]) -> Callable[P, R]:
    """A pass of an autograd function, in full precision wherever it is called.

    Backward passes need it as much as forward ones: ``loss.backward()`` inside an autocast region
    would make its products in half precision.
    """

    @functools.wraps(function)
    def exact(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next((arg.device for arg in args if isinstance(arg, Tensor)), None)
        if device is None:
            return function(*args, **kwargs)
        with full_precision(device):
            return function(*args, **kwargs)

    return exact


def forward_mode(jvp: Callable[..., Any]) -> Callable[..., Any]:
    """The ``jvp`` of an autograd function, for tangents that are themselves differentiated forward.

    Torch calls it with forward mode turned off, where operations on tangents of an inner transform
    silently lose those of an outer one. With it turned on, saved tensors still have their own
    tangents of the inner one, which are taken away here.

    Args:
        jvp: ``(ctx, saved, *tangents)`` to the tangents of the outputs.

    Returns:
        ``(ctx, *tangents)`` to the same.
    """

    @functools.wraps(jvp)
    def differentiated(ctx: Any, *tangents: Any) -> Any:
        saved = ctx.saved_tensors
        try:
            saved = [_unpacked(tensor).primal for tensor in saved]
        except RuntimeError:
            # torch.autograd.functional, which maps one level of forward mode over a batch; there
            # is no outer one.
            return jvp(ctx, saved, *tangents)
        with forward_ad._set_fwd_grad_enabled(True):
            return jvp(ctx, saved, *tangents)

    return differentiated


def is_differentiated_again(*gradients: Tensor) -> bool:
    """In a backward pass: whether its result is to be differentiated, or mapped over a batch.

    Then it takes operations that torch knows, and leaves alone what it would do in place.

    Args:
        gradients: that it was given; several at once under ``is_grads_batched=True``.
    """
    if torch.is_grad_enabled() or is_transformed():
        return True
    batched = torch._C._dispatch_key_parse("Batched")  # torch.autograd's own, which has no name
    return any(torch._C._dispatch_keys(gradient).has(batched) for gradient in gradients)


def gradient_again(outputs: Sequence[Tensor], at: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """A gradient that can be differentiated again, for a backward pass in grad mode.

    Args:
        outputs: made from ``at`` in operations of which torch knows the derivatives.
        at: a saved input.
        gradients: of the outputs, treated as constants.

    Returns:
        The gradient of ``at``, as a function of ``at`` and of ``gradients``.
    """
    pairs = [pair for pair in zip(outputs, gradients, strict=True) if pair[0].requires_grad]
    return torch.autograd.grad(
        [output for output, _ in pairs], at, [one for _, one in pairs], create_graph=True
    )[0]
