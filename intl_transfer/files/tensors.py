"""Reads torch's tensors from pickles, with all sizes checked.

A tensor is a view of a storage: an offset, a shape and strides, all stated in the file. Here a view
must lie inside its storage, and the total size of a file's views must be close to the file's size:
with stride 0, a single number can appear 10^12 times at no cost until it is copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from intl_transfer.files.pickles import Budget, Machine, Maker, PickleError
from intl_transfer.files.placeholders import Stored

_SPARE_BYTES = 512 * 2**20
_MOST_DIMENSIONS = 64
# Types by the names of their storages, which older files give.
_STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
    "ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64,
}  # fmt: skip
_DTYPES = {
    f"torch.{name}": value
    for name, value in vars(torch).items()
    if isinstance(value, torch.dtype) and not name.startswith(("q", "bits"))
}


@dataclass
class StoredStorage:
    """Bytes of a file that tensors are views of.

    Attributes:
        bytes: of all of it.
        dtype: of its numbers.
    """

    bytes: torch.UntypedStorage
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return self.bytes.nbytes() // self.dtype.itemsize


@dataclass(frozen=True)
class StorageKind:
    """What a file calls the class of a storage."""

    dtype: torch.dtype


CONSTANTS: dict[str, Any] = {
    **_DTYPES,
    **{
        f"torch{module}.{name}Storage": StorageKind(dtype)
        for name, dtype in _STORAGES.items()
        for module in ("", ".cuda", ".storage")
    },
    "torch.storage.UntypedStorage": StorageKind(torch.uint8),
    "torch.UntypedStorage": StorageKind(torch.uint8),
}


def number(value: Any, what: str, most: int = 2**62) -> int:
    """A whole number of a file that is none below zero.

    Raises:
        PickleError: for anything else.
    """
    if type(value) is not int or not 0 <= value <= most:
        raise PickleError(f"{what} of {str(value)[:40] if type(value) is int else 'no number'}")
    return value


def window(
    storage: Any, dtype: torch.dtype | None, offset: Any, size: Any, stride: Any, budget: Budget
) -> Tensor:
    """Builds a tensor, a view of a storage.

    Args:
        storage: from the file.
        dtype: of the tensor; None for the storage's.
        offset: of its first number.
        size: its shape.
        stride: between neighbors along each axis.
        budget: of the file.

    Raises:
        PickleError: if it is outside its storage, or far larger than the file.
    """
    if not isinstance(storage, StoredStorage):
        raise PickleError("a tensor without numbers")
    dtype = dtype or storage.dtype
    is_shape = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)
    if not is_shape or len(size) > _MOST_DIMENSIONS:
        raise PickleError("a tensor without a shape")
    last = number(offset, "an offset")
    elements = 1
    for length, step in zip(size, stride, strict=True):
        number(length, "a length")
        number(step, "a stride")
        elements = min(elements * length, 2**62)
        last += (length - 1) * step if length else 0
    held = storage.bytes.nbytes() // dtype.itemsize
    if elements and last >= held:
        raise PickleError(f"a tensor that reaches to number {last} of a storage of {held}")
    budget.tensor_bytes += elements * max(dtype.itemsize, 4)
    if budget.tensor_bytes > 8 * budget.size + _SPARE_BYTES:
        raise PickleError("tensors that show far more numbers than the file holds")
    tensor = torch.empty((0,), dtype=dtype, device="cpu")
    if not elements:
        return tensor.reshape(size)
    return tensor.set_(storage.bytes, offset, size, stride)


def _rebuilt(machine: Machine, arguments: tuple[Any, ...]) -> Tensor:
    """``torch._utils._rebuild_tensor_v2`` and its relatives."""
    storage, offset, size, stride, *more = arguments
    tensor = window(storage, None, offset, size, stride, machine.budget)
    return _learning(_marked(tensor, more[2:3]), more[:1])


def _rebuilt_as(machine: Machine, arguments: tuple[Any, ...]) -> Tensor:
    """``_rebuild_tensor_v3``, of types that have no storage class of their own."""
    storage, offset, size, stride, learns, _, dtype, *more = arguments
    if not isinstance(dtype, torch.dtype):
        raise PickleError("a tensor without a type")
    tensor = window(storage, dtype, offset, size, stride, machine.budget)
    return _learning(_marked(tensor, more), [learns])


def _marked(tensor: Tensor, metadata: list[Any]) -> Tensor:
    """A tensor that torch stored as conjugate or negative of its numbers."""
    marks = metadata[0] if metadata and isinstance(metadata[0], dict) else {}
    if marks.get("conj") is True and tensor.is_complex():
        tensor = tensor.conj()
    return torch._neg_view(tensor) if marks.get("neg") is True else tensor


def _learning(tensor: Tensor, flags: list[Any]) -> Tensor:
    is_number = tensor.is_floating_point() or tensor.is_complex()
    return tensor.requires_grad_() if flags == [True] and is_number else tensor


def _parameter(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    data, learns = (*arguments, True)[:2] if arguments else (torch.empty(0, device="cpu"), True)
    if not isinstance(data, Tensor):
        return Stored("torch.nn.parameter.Parameter", arguments)
    is_number = data.is_floating_point() or data.is_complex()
    return torch.nn.Parameter(data.detach(), requires_grad=bool(learns is True and is_number))


def _subclass(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    """A tensor with further attributes, or of a class of its own: its numbers."""
    maker, _, inner, *_ = arguments
    made = machine.call(maker, inner)
    return made if isinstance(made, Tensor) else Stored("torch.Tensor", arguments)


def _size(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    (lengths,) = arguments or ((),)
    if not isinstance(lengths, (list, tuple)) or len(lengths) > _MOST_DIMENSIONS:
        raise PickleError("a size that is none")
    return torch.Size([number(length, "a length") for length in lengths])


def _device(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    """A name: which devices there are, only torch could say."""
    return Stored("torch.device", arguments)


MAKERS: dict[str, Maker] = {
    "torch._utils._rebuild_tensor": _rebuilt,
    "torch._utils._rebuild_tensor_v2": _rebuilt,
    "torch._utils._rebuild_tensor_v3": _rebuilt_as,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch._tensor._rebuild_from_type": _subclass,
    "torch.Size": _size,
    "torch.device": _device,
}
__all__ = ["CONSTANTS", "MAKERS", "StorageKind", "StoredStorage", "number", "window"]
