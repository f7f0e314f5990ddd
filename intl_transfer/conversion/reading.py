"""Opens a checkpoint of any make, without running any code in it, and lays its tensors out flat."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from intl_transfer.conversion.arrays import ForbiddenError, StoredArray
from intl_transfer.conversion.pickles import read_pickle
from intl_transfer.conversion.safe_types import allowed
from intl_transfer.errors import UserError

# How a file begins that `torch.save` wrote before torch 1.6: a number, pickled.
_OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_EXPECTED = "expected what torch.save or safetensors writes, or a pickle of numpy arrays"
# Dictionaries in dictionaries; a file could hold a circle.
_DEEPEST = 8


@dataclass(frozen=True)
class Content:
    """What is in a file.

    Attributes:
        path: the file.
        values: its dictionary as it was read.
        tensors: all tensors in it, also in dictionaries inside, under names such as
            ``state_dict/module.encoder_q.conv1.weight``; numpy arrays among them.
        metadata: the strings that a safetensors file carries.
    """

    path: Path
    values: Mapping[str, Any]
    tensors: dict[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_content(path: Path, mmap: bool = True) -> Content:
    """Reads a checkpoint.

    Args:
        path: a file of torch (either form), safetensors, Detectron2 or Caffe2.
        mmap: leave the tensors of torch's newer form in the file until they are used, so that an
            optimiser's state costs no memory.

    Returns:
        Its content.

    Raises:
        UserError: if it is absent, damaged, or asks for a type that is not known to be harmless.
    """
    values, metadata = _read(path, mmap)
    if not isinstance(values, Mapping):
        raise UserError(f"{path}: expected a dictionary, found {type(values).__name__}")
    return Content(path, values, dict(_flat(values)), metadata)


def first_keys(values: Mapping[Any, Any]) -> str:
    """The first few names in a dictionary, for messages."""
    return f"its first keys: {', '.join(list(map(str, values))[:5]) or 'none'}"


def _flat(values: Mapping[Any, Any], place: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if not isinstance(key, str):  # such as the numbers of an optimiser's parameters
            continue
        if isinstance(value, StoredArray):
            value = value.value
        if isinstance(value, Tensor):
            yield place + key, value
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            with warnings.catch_warnings():  # of memory that is not writable: nothing writes here
                warnings.simplefilter("ignore")
                yield place + key, torch.from_numpy(value)
        elif isinstance(value, Mapping) and depth < _DEEPEST:
            yield from _flat(value, f"{place}{key}/", depth + 1)


def _read(path: Path, mmap: bool) -> tuple[Any, dict[str, str]]:
    try:
        with open(path, "rb") as file:
            head = file.read(len(_OLD_TORCH))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if len(head) < 9:
        raise UserError(f"{path} is damaged: only {path.stat().st_size} bytes long")
    if head[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
        try:
            with safe_open(path, "pt") as opened:
                names = opened.keys()
                return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}
        except SafetensorError as error:
            raise UserError(f"{path} is damaged: {error}") from None
    try:
        if head[:2] == b"PK" or head == _OLD_TORCH:
            with torch.serialization.safe_globals(allowed()):
                mapped = mmap and head[:2] == b"PK"
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped), {}
        return read_pickle(path), {}
    except Exception as error:  # a damaged pickle can make its reader raise anything
        raise _unreadable(path, head, error) from None


def _unreadable(path: Path, head: bytes, error: Exception) -> UserError:
    """Tells a file that wants to run code from one that is damaged."""
    text = str(error)
    reason = text.splitlines()[0] if text else type(error).__name__
    if isinstance(error, pickle.UnpicklingError):
        # torch's own text is left out: it tells how to switch the protection off.
        found = re.search(r"GLOBAL (\S+)|but got (<class .*?>)|class (\S+)", text)
        name = next((group for group in found.groups() if group), None) if found else None
        if isinstance(error, ForbiddenError):
            name = error.wanted
        if name is not None:
            return UserError(
                f"{path} wants more than tensors and plain values, so it was not read: it holds "
                f"{name}. Where the file is trusted, save its state dict alone in a file of its own"
            )
        if "Unsupported operand" in text:
            reason = "its pickle is of a newer protocol than torch.save's; save it again"
        else:
            reason = "its pickle is broken"
    if head[:2] != b"PK" and head[:1] != b"\x80":
        reason = f"it begins with {head[:9]!r}"
    return UserError(f"{path} is damaged or not a checkpoint ({reason}); {_EXPECTED}")
