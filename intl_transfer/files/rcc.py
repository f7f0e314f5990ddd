"""Qt's binary resource files (``.rcc``), read without Qt.

The format is that of ``rcc --binary``, versions 1 to 3 (qtbase, ``src/tools/rcc/rcc.cpp`` and
``src/corelib/io/qresource.cpp``): ``qres``, then big-endian 32-bit numbers for the version and the
offsets of tree, data and names. A node of the tree is 14 bytes (22 from version 2, with a time):
offset of its name, flags, then for a folder the number of its children and the first of them, for
a file language, country and the offset of its data. A name is its length in UTF-16 units, a hash
and the text; data is its size and the bytes, compressed ones behind their size uncompressed.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from intl_transfer.errors import UserError

#: Bytes that such a file may have; GCompris' largest has 5 million.
LARGEST_FILE = 1 << 28
#: Bytes that one of its contents may have, unpacked.
LARGEST_CONTENT = 1 << 26
#: Files and folders in it; GCompris' largest has some hundreds.
MOST_NODES = 100_000
#: Characters of a path in it.
LONGEST_PATH = 4096

_COMPRESSED, _FOLDER, _ZSTD = 1, 2, 4


class RccFile:
    """The files in a Qt resource file.

    Only the list is read at first, contents on request. In a damaged or forged file, nothing
    outside of it is read, and no node twice.

    Args:
        path: the file.

    Raises:
        UserError: if it cannot be read, is no resource file, or its list is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            size = self.path.stat().st_size
            if size > LARGEST_FILE:
                raise self._error(f"{size:,} bytes, over the limit of {LARGEST_FILE:,}")
            self._bytes = self.path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
        if self._bytes[:4] != b"qres":
            raise self._error("it does not begin with 'qres'")
        version, self._tree, self._data, self._names = self._numbers(">4I", 4)
        if not 1 <= version <= 3:
            raise self._error(f"version {version}; expected 1 to 3")
        self._node = 14 if version == 1 else 22
        self._files = self._listed()

    def names(self) -> list[str]:
        """Paths of the files in it, sorted: ``/gcompris/src/…``."""
        return sorted(self._files)

    def read(self, name: str) -> bytes:
        """A file's content.

        Args:
            name: its path, one of :meth:`names`.

        Raises:
            UserError: if there is none of this name, or its content is damaged, too large or
                compressed by another way than zlib.
        """
        if name not in self._files:
            raise UserError(f"{self.path} has no file {name} in it")
        flags, offset = self._files[name]
        begin = self._data + offset
        (size,) = self._numbers(">I", begin)
        content = self._bytes[begin + 4 : begin + 4 + size]
        if len(content) != size:
            raise self._error(f"{name} is cut off")
        if flags & _ZSTD:
            raise self._error(f"{name} is compressed by zstd; expected zlib, or nothing")
        if not flags & _COMPRESSED:
            return self._bounded(name, size, content)
        if size < 4:
            raise self._error(f"{name} is cut off")
        (unpacked,) = struct.unpack(">I", content[:4])
        self._bounded(name, unpacked, content)
        reader = zlib.decompressobj()
        try:
            found = reader.decompress(content[4:], unpacked + 1)
        except zlib.error as error:
            raise self._error(f"{name} cannot be unpacked: {error}") from None
        if len(found) != unpacked or not reader.eof:
            raise self._error(f"{name} has not the {unpacked:,} bytes that it says")
        return found

    def _bounded(self, name: str, size: int, content: bytes) -> bytes:
        if size > LARGEST_CONTENT:
            raise self._error(f"{name} has {size:,} bytes, over the limit of {LARGEST_CONTENT:,}")
        return content

    def _listed(self) -> dict[str, tuple[int, int]]:
        """Flags and offset of every file, by path."""
        files: dict[str, tuple[int, int]] = {}
        seen = {0}
        waiting = [(0, "")]
        while waiting:
            index, path = waiting.pop()
            begin = self._tree + index * self._node
            name, flags = self._numbers(">IH", begin)
            if not flags & _FOLDER:
                _, _, offset = self._numbers(">HHI", begin + 6)
                files.setdefault(path, (flags, offset))  # of several languages the first
                continue
            count, first = self._numbers(">II", begin + 6)
            if len(seen) + count > MOST_NODES:
                raise self._error(f"more than {MOST_NODES:,} files and folders")
            children = range(first, first + count)
            for child in reversed(children):
                if child in seen:
                    raise self._error("a folder that lies in two, or in itself")
                seen.add(child)
                (name,) = self._numbers(">I", self._tree + child * self._node)
                waiting.append((child, f"{path}/{self._name(name, path)}"))
        return files

    def _name(self, offset: int, folder: str) -> str:
        (length,) = self._numbers(">H", self._names + offset)
        begin = self._names + offset + 6
        raw = self._bytes[begin : begin + 2 * length]
        if len(raw) != 2 * length or len(folder) + length > LONGEST_PATH:
            raise self._error("a name is cut off, or too long")
        return raw.decode("utf-16-be", errors="replace")

    def _numbers(self, layout: str, offset: int) -> tuple[int, ...]:
        try:
            return struct.unpack_from(layout, self._bytes, offset)
        except struct.error:
            raise self._error("it is cut off, or an offset in it leads out of it") from None

    def _error(self, reason: str) -> UserError:
        return UserError(
            f"{self.path} cannot be read as a Qt resource file ({reason}); expected one made by "
            "`rcc --binary`"
        )
