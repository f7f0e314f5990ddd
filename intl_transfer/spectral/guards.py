"""Checks that also work where tensor values are unavailable: under torch.func, and compiled."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from intl_transfer.spectral.modes import forward_mode, is_compiling, is_transformed


class NonFiniteError(FloatingPointError):
    """An embedding holds NaN or infinity, or a result is too large for its precision."""


class _Mode(threading.local):
    waits = True
    compares_rows = True


_mode = _Mode()


@contextmanager
def _off(name: str) -> Iterator[None]:
    before = getattr(_mode, name)
    setattr(_mode, name, False)
    try:
        yield
    finally:
        setattr(_mode, name, before)


@contextmanager
def without_waiting() -> Iterator[None]:
    """Within the block, checks do not synchronize with a GPU: non-finite results become NaN.

    In place of :class:`NonFiniteError` the result is NaN, for the caller to find when it suits.
    Losses of IterNorm up to T = 6 (Newton's iteration) pass NaN on; decompositions may refuse it.
    """
    with _off("waits"):
        yield


def may_wait() -> bool:
    """Whether a result may depend on what the device answers."""
    return _mode.waits


@contextmanager
def equal_rows() -> Iterator[None]:
    """Within the block, ranks are known to hold equally many rows, and do not compare them.

    The comparison is a collective and waits for it; a loader that drops what does not fill every
    rank's batch leaves nothing to compare.
    """
    with _off("compares_rows"):
        yield


def may_compare_rows() -> bool:
    """Whether ranks ask each other for their numbers of rows."""
    return _mode.compares_rows and _mode.waits


def refuse_unless(ok: Tensor, kind: str, message: str) -> None:
    """Raises unless ``ok`` holds everywhere; see :func:`require`. On a GPU this waits for it."""
    if bool(ok.all()):
        return
    which = (~ok).reshape(-1).nonzero().reshape(-1).tolist()
    where = f" in batch {', '.join(map(str, which))} of {ok.numel()}" if ok.dim() else ""
    message = message.replace("{where}", where)
    raise NonFiniteError(message) if kind == "nonfinite" else ValueError(message)


def require(value: Tensor, ok: Tensor, kind: str, message: str) -> Tensor:
    """``value`` if ``ok`` holds everywhere; an error otherwise.

    What follows must be made of the result: a compiled graph drops a check that nothing needs.

    Args:
        value: a tensor on the way to the result, a small one.
        ok: booleans, of each batch or one for all.
        kind: of the error, ``"nonfinite"`` or ``"value"``.
        message: of the error; ``{where}`` in it becomes `` in batch 1, 3 of 6``.

    Returns:
        ``value``.

    Raises:
        NonFiniteError: of kind ``"nonfinite"``.
        ValueError: of kind ``"value"``.
    """
    if is_compiling():
        return cast(Tensor, _require_compiled(value, ok, kind, message))
    if is_transformed():
        return cast(Tensor, _Require.apply(value, ok, kind, message))
    if kind == "nonfinite" and not may_wait():
        return torch.where(ok.all(), value, torch.full_like(value, torch.nan))
    refuse_unless(ok, kind, message)
    return value


class _Require(torch.autograd.Function):
    """Under torch.func: inside, tensors are plain."""

    @staticmethod
    def forward(value: Tensor, ok: Tensor, kind: str, message: str) -> Tensor:
        refuse_unless(ok, kind, message)
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return gradients[0], None, None, None

    @staticmethod
    @forward_mode
    def jvp(ctx: Any, saved: Any, *tangents: Any) -> Tensor:
        return cast(Tensor, tangents[0].clone())

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], value: Tensor, ok: Tensor, kind: str, message: str
    ) -> tuple[Tensor, int | None]:
        return cast(Tensor, _Require.apply(value, ok, kind, message)), in_dims[0]


# Compiled, a check is a separate operator, of which the compiler knows only the shape.


@torch.library.custom_op(
    "intl_transfer::require",
    mutates_args=(),
    schema="(Tensor value, Tensor ok, str kind, str message) -> Tensor",
)
def _require_compiled(value: Tensor, ok: Tensor, kind: str, message: str) -> Tensor:
    refuse_unless(ok, kind, message)
    return value.clone()


@torch.library.custom_op(
    "intl_transfer::once_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor value) -> Tensor",
)
def _once_backward(gradient: Tensor, value: Tensor) -> Tensor:
    return gradient.clone()


@torch.library.custom_op("intl_transfer::once", mutates_args=(), schema="(Tensor value) -> Tensor")
def once(value: Tensor) -> Tensor:
    """The value, whose gradient refuses to be differentiated again; for compiled graphs."""
    return value.clone()


@_require_compiled.register_fake
def _(value: Tensor, ok: Tensor, kind: str, message: str) -> Tensor:
    return torch.empty_like(value)


@_once_backward.register_fake
def _(gradient: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(gradient)


@once.register_fake
def _(value: Tensor) -> Tensor:
    return torch.empty_like(value)


def _keep_value(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _refuse_second(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
    raise NotImplementedError(
        "second derivatives of a compiled function of eigenvalues are not at hand; differentiate "
        "the function as it is, without torch.compile"
    )


_require_compiled.register_autograd(lambda ctx, gradient: (gradient, None, None, None))
once.register_autograd(
    lambda ctx, gradient: _once_backward(gradient, ctx.saved_tensors[0]), setup_context=_keep_value
)
_once_backward.register_autograd(_refuse_second)
