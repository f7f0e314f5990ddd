"""Scalar functions of eigenvalues, their derivatives, and whether they are scalar functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from intl_transfer.spectral.guards import require

Scalar = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ScalarFunction:
    """A function of eigenvalues, element by element, and its first two derivatives.

    Attributes:
        value: g.
        slope: g'.
        curvature: g''.
        given: whether g comes from outside, and is checked where it is applied.
        slope_given: whether g' does, too.
    """

    value: Scalar
    slope: Scalar
    curvature: Scalar
    given: bool = False
    slope_given: bool = False


def given_function(g: Scalar, g_prime: Scalar | None = None) -> ScalarFunction:
    """A function from outside, with derivatives by autograd where they are not given.

    Args:
        g: maps a tensor to one of its shape, each element from the element at its place.
        g_prime: its derivative, of the same kind; by autograd if None.
    """
    slope = derivative_of(g) if g_prime is None else g_prime
    return ScalarFunction(
        g, slope, derivative_of(slope), given=True, slope_given=g_prime is not None
    )


def power(p: float) -> ScalarFunction:
    """``x^-p``."""
    return ScalarFunction(
        lambda x: x.pow(-p),
        lambda x: -p * x.pow(-p - 1),
        lambda x: p * (p + 1) * x.pow(-p - 2),
    )


def derivative_of(g: Scalar) -> Scalar:
    """The derivative of an elementwise function, by autograd; itself of this kind.

    Args:
        g: maps a tensor to one of its shape, each element from the element at its place.

    Returns:
        A function of the same kind.
    """

    def g_prime(values: Tensor) -> Tensor:
        derivative: Tensor = torch.func.grad(lambda at: g(at).sum())(values)
        return derivative

    return g_prime


def applied(g: Scalar, values: Tensor, name: str = "g") -> Tensor:
    """``g(values)``, of a function from outside.

    It is evaluated a second time on some of the values, in another order and with other values:
    divided by their sum, or weighted by their place, they would come out otherwise.

    Args:
        g: the function.
        values: eigenvalues, (..., n).
        name: of the function, for the message.

    Returns:
        What g made of them.

    Raises:
        TypeError: if that is no tensor.
        ValueError: if it has another shape, or is not made element by element.
    """
    mapped = g(values)
    if not isinstance(mapped, Tensor):
        raise TypeError(f"{name} returned {type(mapped).__name__}; expected a torch.Tensor")
    if mapped.shape != values.shape:
        raise ValueError(
            f"{name} made shape {tuple(mapped.shape)} of eigenvalues of shape "
            f"{tuple(values.shape)}; expected a function of each eigenvalue alone"
        )
    mapped = mapped.to(values.dtype)
    if values.shape[-1] > 1:  # halves: one lacks the largest, the other the smallest
        middle = (values.shape[-1] + 1) // 2
        halves = (slice(0, middle), slice(values.shape[-1] - middle, None))
        parts = [(values[..., half], mapped[..., half]) for half in halves]
    else:
        parts = [(torch.cat([values, values], -1), torch.cat([mapped, mapped], -1))]
    for some, expected in parts:
        mapped = require(
            mapped,
            _is_same(g, some.flip(-1), expected.flip(-1), name),
            "value",
            f"{_alone(name)}: of some of them, in reverse, it made other values. A function of the "
            "whole spectrum (a softmax, a share of the sum) has another derivative, and is not "
            "supported",
        )
    return mapped


def _is_same(g: Scalar, values: Tensor, expected: Tensor, name: str) -> Tensor:
    """Whether g makes these of those."""
    try:
        found = g(values)
    except Exception as error:
        raise ValueError(f"{_alone(name)}; it failed on some of them: {error}") from error
    if found.shape != values.shape:
        shapes = f"{tuple(found.shape)} of {tuple(values.shape)}"
        raise ValueError(f"{_alone(name)}; it made shape {shapes}")
    # Vectorised and single evaluations of one function differ by a few roundings.
    near = torch.finfo(values.dtype).eps ** 0.5
    same = torch.isclose(found.to(values.dtype), expected, rtol=near, atol=0.0, equal_nan=True)
    return same.detach().all()


def _alone(name: str) -> str:
    return f"{name} must map each eigenvalue independently of the others, and where"


def refuse_parameters(g: Scalar, sigma: Tensor) -> None:
    """Raises ValueError if g has parameters, which would get no gradient."""
    variances = sigma.detach().diagonal(dim1=-2, dim2=-1)
    mapped = g(variances.clamp_min(torch.finfo(variances.dtype).tiny))
    if isinstance(mapped, Tensor) and mapped.requires_grad:
        raise ValueError(
            "g depends on tensors that require gradients, which they would not get: only the "
            "eigenvalues are differentiated. Detach them, or call under torch.no_grad()"
        )
