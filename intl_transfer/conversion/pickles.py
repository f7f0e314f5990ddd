"""Reads the plain pickles of Detectron2 and Caffe2 without running what they ask for.

A pickle is a program. This reader lets it build arrays of numbers and Python's own containers, and
refuses, by name, whatever else it asks for.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

_BUILTINS = {
    kind.__name__: kind
    for kind in (dict, list, tuple, set, frozenset, int, float, bool, str, bytes, complex)
}
# numpy's own functions for arrays and scalars, wherever its version keeps them.
RECONSTRUCT = np.zeros(1).__reduce__()[0]
SCALAR = np.float64(0).__reduce__()[0]


class ForbiddenError(pickle.UnpicklingError):
    """A pickle asked for something that is neither a number nor a container.

    Attributes:
        wanted: its name.
    """

    def __init__(self, wanted: str) -> None:
        super().__init__(f"asked for {wanted}")
        self.wanted = wanted


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
        target = self.stack[-2]
        if not isinstance(target, (np.ndarray, np.dtype, OrderedDict)):
            raise ForbiddenError(f"a change of {target!r}")
        self.load_build()

    dispatch[pickle.BUILD[0]] = _build

    def find_class(self, module: str, name: str) -> Any:
        made = {
            ("collections", "OrderedDict"): OrderedDict,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): _dtype,
            ("multiarray", "_reconstruct"): RECONSTRUCT,
            ("multiarray", "scalar"): SCALAR,
            ("numeric", "_frombuffer"): _frombuffer,
            ("_codecs", "encode"): _encode,
        }
        key = (re.sub(r"numpy\._?core\.", "", module), name)
        if key in made:
            return made[key]
        if module in ("builtins", "__builtin__") and name in _BUILTINS:
            return _BUILTINS[name]
        raise ForbiddenError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise ForbiddenError("an object outside the file")


def _dtype(code: Any, *flags: Any) -> np.dtype[Any]:
    """Types of numbers alone: an array of objects could hold anything."""
    if not re.fullmatch(r"[<>=|]?[biufc]\d{1,2}", str(code)):
        raise ForbiddenError(f"numpy.dtype('{code}')")
    # A copy: the pickle gives it a state, which must not be that of numpy's own.
    return np.dtype(str(code), align=False, copy=True)


def _frombuffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> Any:
    """How numpy pickles arrays from protocol 5 on."""
    writable = buffer if isinstance(buffer, bytearray) else bytearray(buffer)
    return np.frombuffer(writable, dtype=dtype).reshape(shape, order=order)


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in Python 2's protocols; any other codec has no place here."""
    if encoding not in ("latin1", "latin-1"):
        raise ForbiddenError(f"_codecs.encode(…, '{encoding}')")
    return text.encode("latin1")
