"""Reads numpy's arrays from pickles, without trusting their stated memory layout.

numpy does not validate the state of a dtype or array in a pickle. Wrong sizes and flags make it
read and free foreign memory, and an object field dereferences addresses from the file. So arrays of
numbers are built here, from a dtype code and exactly as many bytes as the shape needs; any other
array is kept as a placeholder.
"""

from __future__ import annotations

import math
import re
from typing import Any, cast

import numpy as np

from intl_transfer.files.pickles import Machine, Maker, Pending, PickleError
from intl_transfer.files.placeholders import Stored

# Floats of 12 and 16 bytes depend on the machine; texts and objects are not numbers.
_NUMBERS = re.compile(r"[<>=|]?(?:b1|[iu][1248]|f[248]|c(?:8|16))")
_TEXTS = re.compile(r"[<>=|]?U\d*")
_ORDERS = ("<", ">", "=", "|")
# No subarray, no fields, and the dtype's own sizes and flags.
_PLAIN = (None, None, None, -1, -1, 0)
_MOST_DIMENSIONS = 32


class StoredType(Pending):
    """A numpy type.

    Attributes:
        dtype: of numbers; None for any other.
        is_text: whether it is of unicode texts.
    """

    def __init__(self, code: Any) -> None:
        super().__init__("numpy.dtype", (code,))
        known = isinstance(code, str)
        self.dtype = np.dtype(code) if known and _NUMBERS.fullmatch(code) else None
        self.is_text = known and _TEXTS.fullmatch(code) is not None

    def made(self, state: Any) -> StoredType:
        """Sets the byte order; a dtype with any other state is not numeric."""
        known = isinstance(state, tuple) and len(state) == 8 and state[0] == 3
        if self.dtype is None:
            self.state = state
        elif known and state[1] in _ORDERS and all(map(_same, state[2:], _PLAIN)):
            self.dtype = self.dtype.newbyteorder(cast(Any, state[1]))
        else:
            raise PickleError("a numeric type with a contradictory state")
        return self


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


class StoredArray(Pending):
    """A numpy array before its state is set, or one that is not numeric."""

    def made(self, state: Any) -> Any:
        """The array for a state; itself if not numeric."""
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise PickleError("an array with a state that is none")
        shape, kind, in_columns, data = state[-4:]
        if not isinstance(kind, StoredType):
            raise PickleError("an array without a type")
        if kind.dtype is None:
            self.state = state
            return self
        array = _array(shape, kind.dtype, data, "F" if in_columns else "C")
        return array.astype(kind.dtype.newbyteorder("="), copy=False)  # as numpy does


def _array(shape: Any, dtype: np.dtype[Any], data: Any, order: Any) -> np.ndarray[Any, Any]:
    if isinstance(data, str):  # bytes of Python 2
        data = data.encode("latin1")
    if not isinstance(data, (bytes, bytearray)) or order not in ("C", "F"):
        raise PickleError("an array without its numbers")
    is_shape = isinstance(shape, tuple) and len(shape) <= _MOST_DIMENSIONS
    if not is_shape or not all(type(n) is int and 0 <= n < 2**48 for n in shape):
        raise PickleError("an array without a shape")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise PickleError(
            f"an array of {math.prod(shape)} numbers of {dtype.itemsize} bytes in {len(data)}"
        )
    if not data:
        return np.empty(shape, dtype, order)
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _type(machine: Machine, arguments: tuple[Any, ...]) -> StoredType:
    return StoredType(arguments[0] if arguments else None)


def _reconstruct(machine: Machine, arguments: tuple[Any, ...]) -> StoredArray:
    """An array that takes its shape and type from its state, whatever it was asked to be."""
    return StoredArray("numpy.ndarray", arguments)


def _from_buffer(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    """How numpy writes arrays from protocol 5 on."""
    data, kind, shape, order = arguments
    if not isinstance(kind, StoredType):
        raise PickleError("an array without a type")
    if kind.dtype is None:
        return Stored("numpy.ndarray", arguments)
    return _array(shape, kind.dtype, data, order)


def _scalar(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    """A single number or text."""
    kind, data = arguments if len(arguments) == 2 else (None, None)
    if not isinstance(kind, StoredType):
        raise PickleError("a number without a type")
    if kind.dtype is not None:
        return _array((), kind.dtype, data, "C")[()]
    if kind.is_text and isinstance(data, bytes):
        return data.decode("utf-32-le", "replace")
    return Stored("numpy.generic", arguments)


MAKERS: dict[str, Maker] = {
    "numpy.ndarray": _reconstruct,
    "numpy.dtype": _type,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _from_buffer,
}
