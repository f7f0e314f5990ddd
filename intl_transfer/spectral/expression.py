"""Scalar functions of an eigenvalue, written down: ``1 / (1 + x)``, ``exp(-x)``, ``x ** -0.3``."""

from __future__ import annotations

import ast
import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from intl_transfer.spectral.scalar import Scalar

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    name: getattr(torch, name)
    for name in ("exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "tanh", "sigmoid", "abs")
}
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_MOST_CHARACTERS = 200
_LARGEST = 1e300


def scalar_expression(text: str) -> Scalar:
    """A function of ``x`` from its formula.

    Numbers, ``x``, ``pi``, ``e``, ``+ - * / **``, brackets and the functions exp, expm1, log,
    log1p, sqrt, rsqrt, tanh, sigmoid and abs; nothing else is looked up, so that no formula runs
    code. All valid expressions map each eigenvalue independently.

    Args:
        text: the formula.

    Returns:
        A function for :func:`intl_transfer.spectral.spectral_transform`.

    Raises:
        ValueError: if the formula cannot be read, has something else in it, or no ``x``.

    Example:
        >>> import torch
        >>> scalar_expression("1 / (1 + x)")(torch.tensor([1.0, 3.0]))
        tensor([0.5000, 0.2500])
    """
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(
            f"a formula of {len(text)} characters; expected {_MOST_CHARACTERS} at most"
        )
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"{text!r} is no formula; expected for example '1 / (1 + x)'") from None
    if not any(isinstance(node, ast.Name) and node.id == "x" for node in ast.walk(tree)):
        raise ValueError(f"{text!r} has no x; expected a function of an eigenvalue x")
    _checked(tree, text)
    return functools.partial(_value, tree)  # no local function: modules with it are pickled


def _checked(tree: ast.AST, text: str) -> None:
    """Refuses everything but numbers, x, known functions and operators."""
    if isinstance(tree, ast.BinOp) and type(tree.op) in _OPERATORS:
        parts: list[ast.AST] = [tree.left, tree.right]
    elif isinstance(tree, ast.UnaryOp) and type(tree.op) in _OPERATORS:
        parts = [tree.operand]
    elif isinstance(tree, ast.Call) and _is_function(tree):
        parts = [tree.args[0]]
    elif isinstance(tree, ast.Name) and tree.id in ("x", "pi", "e"):
        parts = []
    elif isinstance(tree, ast.Constant) and type(tree.value) in (int, float):
        if not abs(_number(tree)) < _LARGEST:
            raise ValueError(f"{text!r}: a number is beyond the range of float64")
        parts = []
    else:
        raise ValueError(
            f"{text!r}: '{ast.unparse(tree)}' is not understood; expected numbers, x, pi, e, "
            f"+ - * / **, brackets, and {', '.join(_FUNCTIONS)} of one argument"
        )
    for part in parts:
        _checked(part, text)


def _number(tree: ast.AST) -> float:
    if isinstance(tree, ast.Name):
        return math.pi if tree.id == "pi" else math.e
    value = tree.value if isinstance(tree, ast.Constant) else None
    try:
        return float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf


def _is_function(call: ast.Call) -> bool:
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    return name in _FUNCTIONS and len(call.args) == 1 and not call.keywords


def _value(tree: ast.AST, x: Tensor) -> Tensor:
    """What a checked formula makes of eigenvalues: tensors throughout, so that nothing grows."""
    if isinstance(tree, ast.BinOp):
        made: Tensor = _OPERATORS[type(tree.op)](_value(tree.left, x), _value(tree.right, x))
        return made
    if isinstance(tree, ast.UnaryOp):
        return torch.as_tensor(_OPERATORS[type(tree.op)](_value(tree.operand, x)))
    if isinstance(tree, ast.Call):
        assert isinstance(tree.func, ast.Name)
        return _FUNCTIONS[tree.func.id](_value(tree.args[0], x))
    if isinstance(tree, ast.Name) and tree.id == "x":
        return x
    return torch.full_like(x, _number(tree))
