"""Reads the plain pickles of Detectron2 and Caffe2 without running what they ask for.

A pickle is a program. This reader lets it build arrays of numbers and Python's own containers, and
refuses, by name, whatever else it asks for.
"""

from __future__ import annotations

import pickle
import re
import struct
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from intl_transfer.conversion.arrays import (
    ForbiddenError,
    check_array_state,
    check_number_type,
    check_type_state,
    empty,
    number_type,
    scalar,
)

_BUILTINS = {
    kind.__name__: kind
    for kind in (dict, list, tuple, set, frozenset, int, float, bool, str, bytes, complex)
}
# Stands for numpy's class of arrays, which pickles name and never need to call.
_ARRAY = object()


def read_pickle(path: str | Path) -> Any:
    """Reads a pickle that holds numpy arrays, numbers, strings and containers.

    Python 2's files too, as Detectron2 reads them (``encoding="latin1"``).

    Args:
        path: the file.

    Returns:
        The object in it.

    Raises:
        ForbiddenError: if it asks for anything else.
        pickle.UnpicklingError: if it is damaged; a damaged pickle can raise other errors too.
    """
    with open(path, "rb") as file:
        return _Unpickler(file, encoding="latin1").load()


class _Unpickler(pickle._Unpickler):
    """Python's own reader, not C's: a number in a damaged file does not make it fill the memory."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def _build(self: Any) -> None:
        """Gives an object its state: arrays, their types and dictionaries alone have one."""
        target, state = self.stack[-2:]
        if isinstance(target, np.dtype):
            check_type_state(state)
        elif isinstance(target, np.ndarray):
            if not isinstance(state, tuple) or len(state) != 5:
                raise pickle.UnpicklingError(f"an array with a state of {type(state).__name__}")
            check_array_state(state[1], check_number_type(state[2]), state[4])
        elif not isinstance(target, OrderedDict):
            raise ForbiddenError(f"a change of {target!r}")
        self.load_build()

    dispatch[pickle.BUILD[0]] = _build

    def _bytearray(self: Any) -> None:
        """Bytes that the file has; Python's reader would fill memory of any size first."""
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(min(size, sys.maxsize))))

    dispatch[pickle.BYTEARRAY8[0]] = _bytearray

    def find_class(self, module: str, name: str) -> Any:
        made = {
            ("collections", "OrderedDict"): OrderedDict,
            ("numpy", "ndarray"): _ARRAY,
            ("numpy", "dtype"): number_type,
            ("multiarray", "_reconstruct"): empty,
            ("multiarray", "scalar"): scalar,
            ("numeric", "_frombuffer"): _frombuffer,
            ("_codecs", "encode"): _encode,
        }
        key = (re.sub(r"numpy\._?core\.", "", module), name)
        if key in made:
            return made[key]
        if module in ("builtins", "__builtin__") and name in _BUILTINS:
            return _bytes if name == "bytes" else _BUILTINS[name]
        raise ForbiddenError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise ForbiddenError("an object outside the file")


def _frombuffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> Any:
    """How numpy pickles arrays from protocol 5 on."""
    dtype = check_number_type(dtype)
    writable = buffer if isinstance(buffer, bytearray) else bytearray(buffer)
    return np.frombuffer(writable, dtype=dtype).reshape(shape, order=order)


def _bytes(value: Any = b"", *more: Any) -> bytes:
    """As Python's, but for a number, of which it makes as many zeros."""
    if isinstance(value, int):
        raise ForbiddenError(f"{value} zeros")
    return bytes(value, *more)


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in Python 2's protocols; any other codec has no place here."""
    if encoding not in ("latin1", "latin-1"):
        raise ForbiddenError(f"_codecs.encode(…, '{encoding}')")
    return text.encode("latin1")
