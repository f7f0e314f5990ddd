"""JSON, tar shards and lists: what Python's own readers give on clean ones, one line on others."""

from __future__ import annotations

import io
import json
import os
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from intl_transfer.data.shards import TarSource, shard_files
from intl_transfer.data.sources import open_source
from intl_transfer.errors import UserError
from intl_transfer.files.jsons import parse_json
from intl_transfer.files.texts import lines_of

_SCALARS = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12
)


@settings(deadline=None, max_examples=150)
@given(value=_VALUES, escaped=st.booleans())
def test_clean_json_is_pythons(value, escaped):
    text = json.dumps(value, ensure_ascii=escaped)
    assert parse_json(text, "it") == parse_json(text.encode(), "it") == json.loads(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[" * 200_000, "nested more than 200 deep"),
        (b'{"a":' * 100_000, "nested more than 200 deep"),
        (b'{"a": ' + b"1" * 400 + b"}", "a number of 400 digits"),
        (b'{"a": ' + b"1" * 100_000 + b"}", "a number of 100,000 digits"),
        (b'{"a": "\xff"}', "valid JSON"),
        (b'{"a": 1', "valid JSON"),
        (b"", "valid JSON"),
        (b"\x00", "valid JSON"),
    ],
)
def test_damaged_json_is_one_line(text, reason):
    with pytest.raises(UserError, match=f"^my.json is not valid JSON.*{reason}|{reason}") as caught:
        parse_json(text, "my.json")
    assert "\n" not in str(caught.value)


def test_json_that_python_writes_is_read():
    assert parse_json(b'{"a": NaN, "b": -Infinity, "c": "half \\ud800"}', "it")["c"] == "half ?"
    assert parse_json(b'{"a": "' + b"1" * 400 + b'"}', "it") == {"a": "1" * 400}


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_shard(file, members) -> None:
    with tarfile.open(file, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_classes_by_any_digits_and_names(tmp_path):
    """Numbers come in their order; what only looks like a digit is a name."""
    labels = ["10", "9", "²", "٣", "0" * 5000 + "8", "9" * 50, "cat"]
    members = []
    for index, label in enumerate(labels):
        members += [(f"{index}.jpg", jpeg()), (f"{index}.cls", label[-60:].encode())]
    write_shard(tmp_path / "a.tar", members)
    source = open_source(tmp_path)
    assert list(source.classes) == ["0" * 59 + "8", "9", "10", "9" * 50, "cat", "²", "٣"]
    assert source.labels.tolist() == [2, 1, 5, 6, 0, 3, 4]


def test_names_and_labels_that_are_no_text(tmp_path):
    folder = os.fsdecode(b"cl\xff")
    files = [(f"{folder}/a.jpg", jpeg()), (f"{folder}/a.cls", b"0")]
    write_shard(tmp_path / "a.tar", [*files, ("b/b.jpg", jpeg()), ("b/b.cls", b"\xff\xfe")])
    source = TarSource(tmp_path)
    assert json.dumps(list(source.classes), ensure_ascii=False).encode()
    assert source.name(0).endswith("cl\ufffd/a.jpg")
    assert source.image(0).shape == (8, 8, 3)


def numbered(size: bytes) -> bytes:
    """A tar header whose size is forged, its checksum right."""
    header = bytearray(tarfile.TarInfo("a/a.jpg").tobuf())
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\x00 " % sum(header[:512])
    return bytes(header)


@pytest.mark.parametrize(
    "data",
    [
        numbered(b"\x80" + b"\x7f" * 11),
        numbered(b"\xff" * 12),
        numbered(b"77777777777\x00"),
        numbered(b"not a number"),
        b"",
        b"\x00" * 100,
        b"PK\x03\x04" * 200,
        b"\x1f\x8b" * 600,
        bytearray(tarfile.TarInfo("x" * 90).tobuf()).replace(b"0" + b"\x00" * 100, b"L" * 101),
    ],
)
def test_shards_of_absurd_sizes(tmp_path, data):
    (tmp_path / "a.tar").write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"a\.tar|without any image"):
        TarSource(tmp_path)


@pytest.mark.parametrize(
    "pattern", ["a-{0..99999999999}.tar", "a-{1..999999999}.tar", "{0..9999}{0..9999}{0..99}.tar"]
)
def test_patterns_of_absurd_numbers(tmp_path, pattern):
    with pytest.raises(UserError, match="a pattern for more than 1,000,000 shards"):
        shard_files(tmp_path / pattern)


def test_lists_in_any_encoding_or_none(tmp_path):
    file = tmp_path / "list.txt"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        file.write_bytes("é.jpg\r\n\n # b\n".encode(encoding))
        assert lines_of(file, "a list") == ["é.jpg", "# b"]
    for data in (b"\xe9.jpg\n", b"a\x00b"):
        file.write_bytes(data)
        with pytest.raises(UserError, match=r"list\.txt, line 1: .*expected a list"):
            lines_of(file, "a list")
    with pytest.raises(UserError, match=r"is a folder; expected a list|no plain file"):
        lines_of(tmp_path, "a list")
    with pytest.raises(UserError, match="does not exist"):
        lines_of(tmp_path / "absent", "a list")
