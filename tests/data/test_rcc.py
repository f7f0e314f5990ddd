"""Qt's resource files: written here by the format's description, and those of a package."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intl_transfer.errors import UserError
from intl_transfer.files import rcc
from intl_transfer.files.rcc import RccFile

GCOMPRIS = Path("/usr/share/gcompris-qt/rcc")
needs_gcompris = pytest.mark.skipif(
    not GCOMPRIS.is_dir(), reason="needs the Debian package gcompris-qt-data"
)


def qt_hash(name: str) -> int:
    """Of a name (qresource.cpp, ``qt_hash``); readers that search use it, ours does not."""
    h = 0
    for unit in name.encode("utf-16-be")[::2]:
        h = (h << 4) + unit
        h ^= (h & 0xF0000000) >> 23
        h &= 0x0FFFFFFF
    return h


def compose(files: dict[str, bytes], version: int = 3, compressed: frozenset = frozenset()):
    """A resource file, folders breadth first as rcc writes them."""
    root: dict = {}
    for path, content in files.items():
        *folders, leaf = path.strip("/").split("/")
        place = root
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = (path, content)
    names, data = b"", b""
    nodes: list[bytes] = []
    waiting = [("", root)]
    placed = 1
    while waiting:
        name, item = waiting.pop(0)
        offset = len(names) if name else 0
        if name:
            text = name.encode("utf-16-be")
            names += struct.pack(">HI", len(text) // 2, qt_hash(name)) + text
        if isinstance(item, dict):
            node = struct.pack(">IHII", offset, 2, len(item), placed)
            placed += len(item)
            waiting += item.items()
        else:
            path, content = item
            flags = 1 if path in compressed else 0
            if flags:
                content = struct.pack(">I", len(content)) + zlib.compress(content)
            node = struct.pack(">IHHHI", offset, flags, 0, 31, len(data))
            data += struct.pack(">I", len(content)) + content
        nodes.append(node + (bytes(8) if version >= 2 else b""))
    head = 20 if version < 3 else 24
    tree = head + len(data)
    tail = b"" if version < 3 else struct.pack(">I", 0)
    where = struct.pack(">4I", version, tree, head, tree + len(b"".join(nodes)))
    return b"qres" + where + tail + data + b"".join(nodes) + names


NAMES = st.text(st.characters(blacklist_characters="/", blacklist_categories=("Cs",)), min_size=1)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(PATHS, st.binary(max_size=200), max_size=6), st.sampled_from([1, 2, 3]))
def test_what_was_written_is_read(tmp_path_factory, files, version):
    kept = {p: c for p, c in files.items() if not any(o.startswith(p + "/") for o in files)}
    file = tmp_path_factory.mktemp("rcc") / "a.rcc"
    file.write_bytes(compose(kept, version, frozenset(list(kept)[::2])))
    found = RccFile(file)
    assert found.names() == sorted(kept)
    assert {name: found.read(name) for name in found.names()} == kept


def written(tmp_path, content: bytes) -> Path:
    file = tmp_path / "a.rcc"
    file.write_bytes(content)
    return file


def test_damage_is_named(tmp_path, monkeypatch):
    whole = compose({"/a/b.txt": b"x" * 50, "/a/c": b"y"}, compressed=frozenset(["/a/b.txt"]))
    with pytest.raises(UserError, match="has no file /a/d"):
        RccFile(written(tmp_path, whole)).read("/a/d")
    with pytest.raises(UserError, match="does not begin with 'qres'"):
        RccFile(written(tmp_path, b"PK" + whole))
    with pytest.raises(UserError, match="version 9; expected 1 to 3"):
        RccFile(written(tmp_path, whole[:7] + b"\x09" + whole[8:]))
    with pytest.raises(UserError, match="cannot be read"):
        RccFile(tmp_path / "none.rcc")
    for cut in range(4, len(whole)):  # whatever is cut off, it is read whole or named
        try:
            found = RccFile(written(tmp_path, whole[:cut]))
            assert {n: found.read(n) for n in found.names()} == {
                "/a/b.txt": b"x" * 50,
                "/a/c": b"y",
            }
        except UserError:
            pass
    monkeypatch.setattr(rcc, "LARGEST_CONTENT", 40)
    with pytest.raises(UserError, match="50 bytes, over the limit of 40"):
        RccFile(written(tmp_path, whole)).read("/a/b.txt")


def test_forged_files_cost_nothing(tmp_path):
    """A folder in itself, a billion children, and what unpacks to more than it says."""
    whole = bytearray(compose({"/a/b": b"x"}, version=1))
    (tree,) = struct.unpack(">I", whole[8:12])
    for count, first, message in (
        (1, 0, "in itself"),
        (0xFFFFFFF0, 1, "files and folders"),
        (1, 0x0FFFFFFF, "leads out of it"),
    ):
        forged = bytearray(whole)
        forged[tree + 14 + 6 : tree + 14 + 14] = struct.pack(">II", count, first)
        with pytest.raises(UserError, match=message):
            RccFile(written(tmp_path, bytes(forged)))
    bomb = zlib.compress(bytes(1 << 22))
    whole = compose({"/b": struct.pack(">I", 100) + bomb}, version=1)
    (tree,) = struct.unpack(">I", whole[8:12])
    flagged = bytearray(whole)
    flagged[tree + 14 + 5] = 1
    with pytest.raises(UserError, match="has not the 100 bytes that it says"):
        RccFile(written(tmp_path, bytes(flagged))).read("/b")
    flagged[tree + 14 + 5] = 4
    with pytest.raises(UserError, match="compressed by zstd"):
        RccFile(written(tmp_path, bytes(flagged))).read("/b")


@needs_gcompris
def test_files_that_qt_wrote_are_read_whole():
    """Every WebP says its own length (RIFF), every SVG ends its root: independent of our reader."""
    found = RccFile(GCOMPRIS / "categorization.rcc")
    images = [name for name in found.names() if name.endswith(".webp")]
    assert len(images) > 100
    for name in images:
        content = found.read(name)
        assert (content[:4], content[8:12]) == (b"RIFF", b"WEBP")
        assert struct.unpack("<I", content[4:8])[0] + 8 == len(content)
    drawings = [name for name in found.names() if name.endswith(".svg")]
    assert drawings
    assert all(found.read(name).rstrip().endswith(b"</svg>") for name in drawings)
