"""Reads files of pickles, torch's two formats and plain ones, without executing them.

torch's newer form is a zip archive of ``data.pkl`` and one stored record for each storage, its
older one (before torch 1.6) five pickles and then the storages, one behind the other.
"""

from __future__ import annotations

import io
import mmap
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from intl_transfer.files import arrays, containers, tensors
from intl_transfer.files.pickles import Budget, Machine, Maker, PickleError
from intl_transfer.files.placeholders import Stored
from intl_transfer.files.tensors import StorageKind, StoredStorage, number

#: How a file begins that `torch.save` wrote before torch 1.6: a number, pickled.
OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
ZIP = b"PK"
_PROTOCOL = 1001
_MOST_RECORDS = 200_000
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_ALIGNED = 16
_KNOWN: dict[str, Maker] = {**containers.MAKERS, **arrays.MAKERS, **tensors.MAKERS}


@dataclass(frozen=True)
class Pickled:
    """The content of a file of pickles.

    Attributes:
        value: the object in it.
        names: of the classes and functions in it that are not implemented here.
        verify: holds what some of the tensors were read from against its checksums, and raises an
            OSError or :class:`PickleError`; in forms without checksums it does nothing. The file
            must still be what it was.
    """

    value: Any
    names: tuple[str, ...] = field(default=())
    verify: Callable[[Iterable[Tensor]], None] = field(default=lambda tensors: None)


def read_pickled(path: str | Path, mapped: bool = False, verified: bool = False) -> Pickled:
    """Reads a file that `torch.save`, `pickle` or numpy wrote, running nothing in it.

    Args:
        path: the file.
        mapped: memory-map the tensors of torch's zip format, so that unused ones need no memory.
            The file must then not be modified.
        verified: first verify the checksum of every record of torch's zip format. The older format
            and plain pickles have none.

    Returns:
        What is in it. Tensors and arrays of numbers, numbers, texts and Python's containers are
        themselves; everything else is :class:`~intl_transfer.files.placeholders.Stored`.

    Raises:
        OSError: if it cannot be read.
        PickleError: if it is damaged or not such a file.
    """
    path = Path(path)
    with open(path, "rb") as file:
        head = file.read(len(OLD_TORCH))
        size = file.seek(0, 2)
        file.seek(0)
        budget = Budget(size)
        if head[:2] == ZIP:
            archive = _Archive(path, file, budget, mapped)
            if verified:
                archive.verify()
            value = archive.read()
            return Pickled(value, tuple(budget.names), archive.verify_used)
        if not head:
            raise PickleError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            value = _read_bytes(data, budget)
    return Pickled(value, tuple(budget.names))


def loads(data: bytes) -> Pickled:
    """As :func:`read_pickled`, of a pickle that is in memory already."""
    budget = Budget(len(data))
    return Pickled(_read_bytes(data, budget), tuple(budget.names))


def unreadable_in(value: Any) -> str | None:
    """What :func:`read_pickled` would not give back as it is from a file of a value.

    Args:
        value: that `torch.save` is to write. Its numbers are not copied.

    Returns:
        The name of the first such class, with its place in the value where that is known; None if
        everything is read back.
    """
    buffer = io.BytesIO()
    _Outline(buffer, protocol=2).dump(value)
    budget = Budget(buffer.tell())
    outline = _machine(buffer.getvalue(), 0, budget, 0, _tensor_in_outline).run()
    return next(_stored_in(outline, ""), next(iter(budget.names), None))


class _Outline(pickle.Pickler):
    """Pickles a value as `torch.save` does, without the numbers of tensors."""

    def persistent_id(self, obj: Any) -> str | None:
        """In place of a tensor "" if it is read back, otherwise what it is."""
        if not isinstance(obj, Tensor):
            return None
        is_plain = (
            type(obj) in (Tensor, torch.nn.Parameter)
            and obj.layout == torch.strided
            and not obj.is_quantized
            and not obj.is_meta
            and not vars(obj)
        )
        if is_plain:
            return ""
        facts = ", ".join(map(str, (obj.layout, obj.dtype, obj.device, *vars(obj))))
        return f"{type(obj).__name__} ({facts})"


def _tensor_in_outline(what: str) -> Stored | None:
    return Stored(what) if what else None


def _stored_in(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, Stored):
        yield f"{value.name} at '{place}'" if place else value.name
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _stored_in(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, (list, tuple, set, frozenset)):
        for index, inner in enumerate(value):
            yield from _stored_in(inner, f"{place}.{index}" if place else str(index))


def _read_bytes(data: bytes | mmap.mmap, budget: Budget, depth: int = 0) -> Any:
    if data[: len(OLD_TORCH)] == OLD_TORCH:
        return _Sequence(data, budget, depth).read()
    return _machine(data, 0, budget, depth).run()


def _machine(
    data: bytes | mmap.mmap, position: int, budget: Budget, depth: int, persistent: Any = None
) -> Machine:
    def nested(machine: Machine, arguments: tuple[Any, ...]) -> Any:
        """A storage in a plain pickle: a whole file of torch's older form."""
        (content,) = arguments
        if not isinstance(content, bytes) or depth > 0:
            raise PickleError("a storage without its numbers")
        return _read_bytes(content, budget, depth + 1)

    known: Mapping[str, Maker] = {**_KNOWN, "torch.storage._load_from_bytes": nested}
    return Machine(data, position, known, tensors.CONSTANTS, budget, persistent)


def _announced(what: Any) -> tuple[torch.dtype, str, int, Any]:
    """Type, key, number of elements and further facts of a storage, from a persistent id."""
    if not isinstance(what, tuple) or len(what) not in (5, 6) or what[0] != "storage":
        raise PickleError("an object outside the file")
    _, kind, key, _, numel, *rest = what
    if not isinstance(kind, StorageKind) or not isinstance(key, str):
        raise PickleError("a storage of an unknown type")
    return kind.dtype, key, number(numel, "a storage", 2**48), rest[0] if rest else None


class _Archive:
    """Torch's newer form."""

    def __init__(self, path: Path, file: IO[bytes], budget: Budget, mapped: bool) -> None:
        self._path, self._file, self._budget = path, file, budget
        self._whole = (
            torch.UntypedStorage.from_file(str(path), False, budget.size) if mapped else None
        )
        self._storages: dict[str, StoredStorage] = {}
        self._origins: dict[int, str] = {}  # of storages, by where they lie in memory
        try:
            with zipfile.ZipFile(file) as archive:
                self._records = {record.filename: record for record in archive.infolist()}
        # A damaged directory can cause any exception.
        except Exception as error:
            raise PickleError(f"its archive is damaged ({_first(error)})") from None
        # Records may overlap; compressed ones are not read.
        stored = (r for r in self._records.values() if r.compress_type == zipfile.ZIP_STORED)
        if sum(record.file_size for record in stored) > budget.size:
            raise PickleError("its records are larger than the file")
        if len(self._records) > _MOST_RECORDS:
            raise PickleError(f"it has more than {_MOST_RECORDS} records")
        pickles = [n for n in self._records if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise PickleError("it is an archive without a data.pkl")
        self._folder = pickles[0].removesuffix("data.pkl")
        order = self._record("byteorder") if f"{self._folder}byteorder" in self._records else b""
        if order not in (b"", b"little", b"big"):
            raise PickleError("an unknown byte order")
        self._swapped = bool(order) and order.decode() != sys.byteorder

    def read(self) -> Any:
        """The object in it."""
        data = self._record("data.pkl")
        return _machine(data, 0, self._budget, 0, self._storage).run()

    def verify(self) -> None:
        """Verifies the checksum of every record."""
        for name in self._records:
            self._verify(name.removeprefix(self._folder))

    def verify_used(self, tensors: Iterable[Tensor]) -> None:
        """Verifies the checksums of the records of some tensors."""
        places = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        with open(self._path, "rb") as self._file:
            for place in sorted(places & self._origins.keys()):
                self._verify(self._origins[place])

    def _verify(self, name: str) -> None:
        start, left = self._place(name)
        self._file.seek(start)
        found = 0
        while left:
            block = self._file.read(min(left, 1 << 20))
            if not block:
                raise PickleError("it ends too early")
            found, left = zlib.crc32(block, found), left - len(block)
        self._check(name, found)

    def _check(self, name: str, found: int) -> None:
        name = f"{self._folder}{name}"
        expected = self._records[name].CRC
        # Zero: `torch.serialization.set_crc32_options(False)` wrote none.
        if expected not in (0, found):
            raise PickleError(f"the checksum of its record '{name[:60]}' is wrong")

    def _record(self, name: str) -> bytes:
        start, size = self._place(name)
        self._file.seek(start)
        data = self._file.read(size)
        self._check(name, zlib.crc32(data))
        return data

    def _place(self, name: str) -> tuple[int, int]:
        """Offset and size of a record."""
        record = self._records.get(f"{self._folder}{name}")
        if record is None:
            raise PickleError(f"it has no record '{name[:40]}'")
        if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
            raise PickleError(f"its record '{name[:40]}' is compressed; unpack and save it again")
        self._file.seek(record.header_offset)
        header = self._file.read(_LOCAL_HEADER.size)
        if len(header) != _LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
            raise PickleError(f"its record '{name[:40]}' is not where its directory says")
        *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start = record.header_offset + len(header) + name_length + extra_length
        if start + record.file_size > self._budget.size:
            raise PickleError(f"its record '{name[:40]}' reaches behind its end")
        return start, record.file_size

    def _storage(self, what: Any) -> StoredStorage | Stored:
        if isinstance(what, tuple) and len(what) > 1 and isinstance(what[1], Stored):
            return what[1]  # of quantized numbers: the tensor made of it is stored, not read
        dtype, key, numel, _ = _announced(what)
        known = self._storages.get(key)
        if known is None:
            known = self._storages[key] = StoredStorage(self._bytes_of(key, dtype, numel), dtype)
            self._origins[known.bytes.data_ptr()] = f"data/{key}"
        return StoredStorage(known.bytes, dtype)

    def _bytes_of(self, key: str, dtype: torch.dtype, numel: int) -> torch.UntypedStorage:
        start, size = self._place(f"data/{key}")
        if size != numel * dtype.itemsize:
            raise PickleError(f"a storage of {numel} numbers in {size} bytes")
        if not size:
            return _empty(0)
        if self._whole is not None and start % _ALIGNED == 0:
            found = self._whole[start : start + size]
            assert isinstance(found, torch.UntypedStorage)
        else:
            self._file.seek(start)
            found = _filled(self._file, size)
        if self._swapped:
            copied = _empty(size)
            copied.copy_(found)
            copied.byteswap(dtype)
            return copied
        return found


def _empty(size: int) -> torch.UntypedStorage:
    return torch.empty(size, dtype=torch.uint8, device="cpu").untyped_storage()


def _filled(file: IO[bytes], size: int) -> torch.UntypedStorage:
    buffer = torch.empty(size, dtype=torch.uint8, device="cpu")
    # Every binary file has it; IO[bytes] does not say so.
    if file.readinto(buffer.numpy()) != size:  # type: ignore[attr-defined]
        raise PickleError("it ends too early")
    return buffer.untyped_storage()


class _Sequence:
    """Torch's older form."""

    def __init__(self, data: bytes | mmap.mmap, budget: Budget, depth: int) -> None:
        self._data, self._budget, self._depth = data, budget, depth
        self._storages: dict[str, StoredStorage] = {}
        self._bytes_read = 0

    def read(self) -> Any:
        """The object in it."""
        position, values = 0, []
        for index in range(5):  # a number, a protocol, the machine, the object, its storages
            persistent = self._storage if index == 3 else None
            machine = _machine(self._data, position, self._budget, self._depth, persistent)
            values.append(machine.run())
            position = machine.position
        _, protocol, _, value, keys = values
        if protocol != _PROTOCOL:
            raise PickleError("an unknown protocol of torch's older form")
        if not isinstance(keys, list) or set(map(str, keys)) != self._storages.keys():
            raise PickleError("other storages than its tensors have")
        for key in keys:
            position = self._fill(self._storages[str(key)], position)
        return value

    def _fill(self, storage: StoredStorage, position: int) -> int:
        """Reads a storage; returns the offset of the next one."""
        start = position + 8
        if len(self._data) < start:
            raise PickleError("it ends too early")
        (numel,) = struct.unpack("<q", self._data[position:start])
        size = storage.bytes.nbytes()
        if numel * storage.dtype.itemsize != size or len(self._data) < start + size:
            raise PickleError(f"a storage of {size} bytes that has {numel} numbers")
        if size:
            target = torch.empty(0, dtype=torch.uint8, device="cpu")
            target.set_(storage.bytes, 0, (size,), (1,))
            source = np.frombuffer(self._data, np.uint8, size, start)
            target.numpy()[:] = source
            del source  # a mapped file cannot be closed before
        return start + size

    def _storage(self, what: Any) -> Any:
        if isinstance(what, tuple) and len(what) == 4 and what[0] == "module":
            return what[1]  # a class with its sources
        dtype, key, numel, view = _announced(what)
        if key not in self._storages:
            size = numel * dtype.itemsize
            self._bytes_read += size
            if self._bytes_read > len(self._data):
                raise PickleError("its storages are larger than the file")
            self._storages[key] = StoredStorage(_empty(size), dtype)
        whole = self._storages[key].bytes
        if view is None:
            return StoredStorage(whole, dtype)
        if not isinstance(view, tuple) or len(view) != 3:
            raise PickleError("a part of a storage that is none")
        first = number(view[1], "an offset") * dtype.itemsize
        size = number(view[2], "a length") * dtype.itemsize
        if first + size > whole.nbytes():
            raise PickleError("a part that reaches out of its storage")
        part = whole[first : first + size]
        assert isinstance(part, torch.UntypedStorage)
        return StoredStorage(part, dtype)


def _first(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
