"""Images in tar shards, as webdataset writes them: few large files, for parallel file systems.

A shard is indexed once (its headers are read, not its images) and images are read at their offset,
so that epochs have an exact length and a run resumes at any step. The order of an epoch shuffles
the shards, and images within windows of some shards: reading stays local, and the global batch is
the same on any number of ranks.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intl_transfer.data.augment import Pixels
from intl_transfer.data.folders import (
    classes_of,
    ending,
    is_companion,
    is_hidden,
    is_image,
    say_others,
)
from intl_transfer.data.images import UnreadableImageError, decode_image
from intl_transfer.data.source import ImageSource, NameTable, cache_file
from intl_transfer.errors import UserError
from intl_transfer.files.stamps import is_settled, stamp_of
from intl_transfer.runs.atomic import write_atomically

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_WINDOW = 16  # shards among which images are shuffled
_VERSION = 5
_LONGEST_LABEL = 4096  # bytes
_MOST_SHARDS = 1_000_000


def are_shards(root: str | Path) -> bool:
    """Whether a path denotes tar shards: a pattern of ``.tar`` files, or a folder with some."""
    text = str(root)
    if text.endswith(".tar"):
        return True
    return os.path.isdir(text) and any(
        name.endswith(".tar") and not is_companion(name) for name in os.listdir(text)
    )


def shard_files(root: str | Path) -> list[str]:
    """The shards of a folder or a pattern, sorted.

    Args:
        root: a folder, ``FOLDER/train-{0000..0146}.tar``, ``FOLDER/train-*.tar``, or one file.

    Raises:
        UserError: if there is none, or one of a numbered pattern is missing.
    """
    text = str(root)
    if os.path.isdir(text):
        return sorted(glob(os.path.join(glob_escape(text), "*.tar")))
    parts: list[list[str]] = []
    position = 0
    for match in _BRACES.finditer(text):
        first, last = match.groups()
        many = len(first) > 9 or len(last) > 9 or int(last) - int(first) >= _MOST_SHARDS
        if many or len(parts) > 8:
            raise UserError(f"{text[:200]}: a pattern for more than {_MOST_SHARDS:,} shards")
        numbers = [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
        parts += [[text[position : match.start()]], numbers]
        position = match.end()
    parts.append([text[position:]])
    if math.prod(map(len, parts)) > _MOST_SHARDS:
        raise UserError(f"{text[:200]}: a pattern for more than {_MOST_SHARDS:,} shards")
    files = ["".join(pieces) for pieces in itertools.product(*parts)]
    if len(files) == 1 and any(sign in text for sign in "*?["):
        files = sorted(glob(text))
    missing = [file for file in files if not os.path.isfile(file)]
    if missing or not files:
        raise UserError(
            f"no tar shard {missing[0] if missing else text}"
            + (f" ({len(missing)} of {len(files)} are missing)" if len(files) > 1 else "")
        )
    return files


def glob_escape(text: str) -> str:
    """A path with pattern characters escaped."""
    return re.sub(r"([*?[])", r"[\1]", text)


class TarSource(ImageSource):
    """Images in tar shards: members ``KEY.jpg`` with ``KEY.cls`` beside, or ``CLASS/NAME.jpg``.

    A key ends at the last dot, or where that has no label at the first, as in webdataset. Folders
    mean what they mean to :class:`~intl_transfer.data.folders.FolderSource`, but one around all.

    Args:
        root: for :func:`shard_files`.
        upright: as for :func:`~intl_transfer.data.images.decode_image`.

    Raises:
        UserError: if a shard is missing, truncated or not a tar file, or there are no images, or
            only some of them have a class.
    """

    def __init__(self, root: str | Path, upright: bool = True) -> None:
        self._files, self._upright = shard_files(root), upright
        with ThreadPoolExecutor(8) as pool:
            indexed = list(pool.map(_index, self._files))
        tables = [table for table, _ in indexed]
        if any(is_new for _, is_new in indexed):
            say_others(root, (json.loads(table["others"].tobytes()) for table in tables))
        counts = [len(table["offsets"]) for table in tables]
        if not sum(counts):
            raise UserError(f"{root}: {len(self._files)} tar shard(s) without any image")
        self._ends = np.cumsum(counts)
        self._offsets = np.concatenate([table["offsets"] for table in tables])
        self._sizes = np.concatenate([table["sizes"] for table in tables])
        names = [name for table in tables for name in NameTable(table["names"], table["ends"])]
        written = [
            label for table in tables for label in NameTable(table["cls"], table["cls_ends"])
        ]
        label_of = written if any(written) else classes_of(names, str(root))
        if any(label_of) and not all(label_of):
            bare = [name for name, label in zip(names, label_of, strict=True) if not label]
            raise UserError(
                f"{root}: {len(bare)} of {len(names)} images have no class, the first: {bare[0]}. "
                "Expected a .cls beside each, or a folder around each; images without any labels "
                "have neither"
            )
        # Numbers as numbers: 10 comes after 9.
        known = sorted(set(label_of), key=_in_order)
        self.classes = known
        number = {name: index for index, name in enumerate(known)}
        self.labels = np.array([number[label] for label in label_of], np.int64)
        self._names = NameTable.of(names)
        self._open: dict[int, int] = {}
        self._process = os.getpid()

    def name(self, index: int) -> str:
        """``SHARD/MEMBER``."""
        return f"{self._files[self._shard(index)]}/{self._names[index]}"

    def image(self, index: int) -> Pixels:
        """Reads a member at its offset and decodes it."""
        try:
            data = self.content(index)
        except OSError as error:
            raise UnreadableImageError(
                f"{self.name(index)} cannot be read ({error.strerror or error})"
            ) from None
        return decode_image(data, self.name(index), self._upright)

    def content(self, index: int) -> bytes:
        """The member, at its offset."""
        if self._process != os.getpid():  # each worker process opens its own
            self._open, self._process = {}, os.getpid()
        shard = self._shard(index)
        if shard not in self._open:
            self._forget()
            self._open[shard] = os.open(self._files[shard], os.O_RDONLY)
        return os.pread(self._open[shard], int(self._sizes[index]), int(self._offsets[index]))

    def epoch_order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Shards in random order, images shuffled among 16 shards at a time."""
        generator = np.random.default_rng((seed, epoch))
        shards = generator.permutation(len(self._files))
        starts = np.concatenate([[0], self._ends[:-1]])
        order = []
        for first in range(0, len(shards), _WINDOW):
            window = shards[first : first + _WINDOW]
            indices = np.concatenate([np.arange(starts[s], self._ends[s]) for s in window])
            order.append(generator.permutation(indices))
        return np.concatenate(order).astype(np.int64)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}}

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index, side="right"))

    def _forget(self) -> None:
        """Closes the files opened first, which are no longer needed."""
        while len(self._open) >= 2 * _WINDOW:
            os.close(self._open.pop(next(iter(self._open))))


def _in_order(label: str) -> tuple[bool, int, str, str]:
    """Sort key: digits as numbers, before names; ``²`` is a name."""
    if label.isascii() and label.isdecimal():
        digits = label.lstrip("0")
        return False, len(digits), digits, label
    return True, 0, "", label


def _index(file: str) -> tuple[dict[str, NDArray[Any]], bool]:
    """The offsets of a shard's images, and whether they are not from the cache.

    They are if the shard has not changed.
    """
    stamp = stamp_of(os.stat(file))  # before it is read: a change meanwhile gives another
    cache = cache_file("shard", f"{os.path.realpath(file)} {stamp} {_VERSION}")
    with contextlib.suppress(Exception), np.load(cache, allow_pickle=False) as saved:
        return dict(saved), False
    table = _read_headers(file)
    if is_settled(stamp):
        with contextlib.suppress(OSError):
            # Numpy takes names by keyword.
            write_atomically(cache, lambda out: np.savez(out, **table))  # type: ignore[arg-type]
    return table, True


def _read_headers(file: str) -> dict[str, NDArray[Any]]:
    labels: dict[str, str] = {}
    images: list[tuple[str, int, int]] = []
    others: list[str] = []
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                if not member.isfile() or member.issparse():
                    continue
                # Names that are not UTF-8 could not be stored in a manifest.
                name = member.name.encode(errors="surrogateescape").decode(errors="replace")
                *parents, last = (part for part in name.split("/") if part not in ("", "."))
                if is_companion(last) or any(map(is_hidden, parents)):
                    continue
                name = "/".join([*parents, last])
                if is_image(name):
                    images.append((name, member.offset_data, member.size))
                elif not last.startswith("."):
                    others.append(name)
                if name.endswith(".cls"):
                    content = archive.extractfile(member)
                    text = content.read(_LONGEST_LABEL) if content else b""
                    labels[_key(name)] = text.decode(errors="replace").strip()
            end = max((offset + size for _, offset, size in images), default=0)
    except Exception as error:  # a damaged header can cause any exception
        reason = str(error) or type(error).__name__
        raise UserError(f"{file} is not a whole, uncompressed tar file ({reason})") from None
    if end > os.path.getsize(file) or any(size < 0 for _, _, size in images):
        raise UserError(f"{file} is cut off: an image ends behind the file's end")
    names = NameTable.of(name for name, _, _ in images)
    cls = NameTable.of(_labels_of([name for name, _, _ in images], labels))
    # What has an image's key belongs to its sample.
    keys = {key for name, _, _ in images for key in (_key(name), _webdatasets_key(name))}
    counts = Counter(ending(name) for name in others if _key(name) not in keys)
    return {
        "names": names.text,
        "ends": names.ends,
        "cls": cls.text,
        "cls_ends": cls.ends,
        "offsets": np.array([offset for _, offset, _ in images], np.int64),
        "sizes": np.array([size for _, _, size in images], np.int64),
        "others": np.frombuffer(json.dumps(counts).encode(), np.uint8),
    }


def _labels_of(names: list[str], labels: dict[str, str]) -> list[str]:
    """The label of each image, or "": of its key to the last dot, or to the first."""
    short = [_webdatasets_key(name) for name in names]
    images = Counter(short)  # a picture and its mask have one key, and only one has the label
    return [
        labels.get(_key(name)) or (labels.get(key, "") if images[key] == 1 else "")
        for name, key in zip(names, short, strict=True)
    ]


def _key(name: str) -> str:
    return name.rpartition(".")[0]


def _webdatasets_key(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"
