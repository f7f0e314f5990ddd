"""Numpy's arrays in pickles, without believing what a pickle says of their memory.

numpy takes the state of a type or an array from a pickle as it is. Sizes and flags that are not the
type's own make it read and free memory that is not the array's: a damaged file then ends the
process, a forged one may do worse.
"""

from __future__ import annotations

import math
import pickle
import re
from typing import Any, cast

import numpy as np

_NUMBERS = re.compile(r"[<>=|]?[biufc]\d{1,2}")
_TEXTS = re.compile(r"[<>=|]?([USO])\d*")
_ORDERS = ("<", ">", "=", "|")
# No subarray, no fields, and sizes and flags as the type has them.
_PLAIN = (None, None, None, -1, -1, 0)
# numpy's own function for scalars, wherever its version keeps it.
_SCALAR: Any = np.float64(0).__reduce__()[0]


class ForbiddenError(pickle.UnpicklingError):
    """A pickle asked for something that is neither a number nor a container.

    Attributes:
        wanted: its name.
    """

    def __init__(self, wanted: str) -> None:
        super().__init__(f"asked for {wanted}")
        self.wanted = wanted


def number_type(code: Any, *_: Any) -> np.dtype[Any]:
    """The type of numbers that a code stands for: an array of objects could hold anything.

    Raises:
        ForbiddenError: for any other type.
    """
    if not _NUMBERS.fullmatch(str(code)):
        raise ForbiddenError(f"numpy.dtype('{code}')")
    # A copy: the pickle gives it a state, which must not be that of numpy's own.
    return np.dtype(str(code), align=False, copy=True)


def check_number_type(dtype: Any) -> np.dtype[Any]:
    """A type of :func:`number_type`.

    Raises:
        pickle.UnpicklingError: for anything else.
    """
    if not isinstance(dtype, np.dtype) or dtype.kind not in "biufc":
        raise pickle.UnpicklingError(f"numbers of the type {dtype!r}")
    return dtype


def check_type_state(state: Any) -> str:
    """Lets the state of a type of numbers set its byte order alone, which it gives back.

    Raises:
        pickle.UnpicklingError: if it says anything else of the type.
    """
    known = isinstance(state, tuple) and len(state) == 8 and state[0] == 3
    if not (known and state[1] in _ORDERS and state[2:] == _PLAIN):
        raise pickle.UnpicklingError(f"a type of numbers with the state {state!r}")
    return str(state[1])


def check_array_state(shape: Any, dtype: np.dtype[Any], data: Any) -> None:
    """Lets numbers fill an array's shape exactly.

    Raises:
        pickle.UnpicklingError: if they are more or fewer, or no bytes.
    """
    is_shape = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if not is_shape or not isinstance(data, (bytes, str)):
        raise pickle.UnpicklingError(f"an array of shape {shape!r} of {type(data).__name__}")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise pickle.UnpicklingError(f"an array of {shape} and {dtype} in {len(data)} bytes")


def empty(*_: Any) -> np.ndarray[Any, Any]:
    """An array that takes its shape and type from its state, whatever it was asked to be."""
    return np.ndarray((0,), np.int8)


def scalar(dtype: Any, data: Any = b"") -> Any:
    """A single number."""
    return _SCALAR(check_number_type(dtype), data)


class StoredType:
    """A numpy type in a file of torch's, whose reader gives states to objects by their class.

    Attributes:
        dtype: of numbers; None for texts and objects, whose arrays are left out.
        code: of another type, ``U``, ``S`` or ``O``.
    """

    def __init__(self, code: Any, *_: Any) -> None:
        text = _TEXTS.fullmatch(str(code))
        self.code = text.group(1) if text else None
        self.dtype = None if text else number_type(code)

    def __setstate__(self, state: Any) -> None:
        """Takes the byte order."""
        if self.dtype is not None:
            self.dtype = self.dtype.newbyteorder(cast(Any, check_type_state(state)))


class StoredArray:
    """A numpy array in a file of torch's.

    Attributes:
        value: the array; None for one that is not of numbers.
    """

    value: np.ndarray[Any, Any] | None = None

    def __init__(self, *_: Any) -> None:
        """Takes its shape and type from its state, whatever it was asked to be."""

    def __setstate__(self, state: Any) -> None:
        """Takes the numbers."""
        _, shape, kind, in_columns, data = state
        if not isinstance(kind, StoredType):
            raise pickle.UnpicklingError(f"an array of the type {kind!r}")
        if kind.dtype is None:
            return
        check_array_state(shape, kind.dtype, data)
        data = data.encode("latin1") if isinstance(data, str) else data
        flat = np.frombuffer(data, kind.dtype)
        self.value = flat.reshape(shape, order="F" if in_columns else "C")


def stored_scalar(kind: Any, data: Any = b"") -> Any:
    """A single number or text in a file of torch's."""
    if not isinstance(kind, StoredType):
        raise pickle.UnpicklingError(f"a number of the type {kind!r}")
    if kind.dtype is not None:
        return scalar(kind.dtype, data)
    if kind.code == "U" and isinstance(data, bytes):
        return data.decode("utf-32-le", "replace")
    return data
