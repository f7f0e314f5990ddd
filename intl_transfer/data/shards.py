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
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intl_transfer.data.augment import Pixels
from intl_transfer.data.folders import (
    class_folders,
    classes_of,
    counted,
    ending,
    is_companion,
    is_hidden,
    is_image,
    loose_in,
    say_beside,
    say_others,
)
from intl_transfer.data.images import UnreadableImageError, decode_image
from intl_transfer.data.parts import part_among, some_of
from intl_transfer.data.source import WITHOUT_CLASSES, ImageSource, NameTable, cache_file
from intl_transfer.data.tars import files_in
from intl_transfer.errors import UserError
from intl_transfer.files.stamps import is_settled, stamp_of
from intl_transfer.runs.atomic import write_atomically
from intl_transfer.runs.progress import print_line

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_WINDOW = 16  # shards among which images are shuffled
_VERSION = 6
_LABELS = (".cls.txt", ".cls")
_LONGEST_LABEL = 4096  # bytes
_MOST_SHARDS = 1_000_000


def are_shards(root: str | Path) -> bool:
    """Whether a path denotes tar shards: a pattern of ``.tar`` files, or a folder with some."""
    text = str(root)
    if text.lower().endswith(".tar"):
        return True
    return os.path.isdir(text) and any(map(_is_shard, os.listdir(text)))


def _is_shard(name: str) -> bool:
    return name.lower().endswith(".tar") and not name.startswith(".")


def shard_files(root: str | Path) -> list[str]:
    """The shards of a folder or a pattern, sorted.

    Args:
        root: a folder, ``FOLDER/train-{0000..0146}.tar``, ``FOLDER/train-*.tar``, or one file.

    Raises:
        UserError: if there is none, or one of a numbered pattern is missing.
    """
    text = str(root)
    if os.path.isdir(text):
        return sorted(os.path.join(text, name) for name in os.listdir(text) if _is_shard(name))
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


class TarSource(ImageSource):
    """Images in tar shards: members ``KEY.jpg`` with ``KEY.cls`` beside, or ``CLASS/NAME.jpg``.

    A key ends at the last dot, or where that has no label at the first, as in webdataset. Folders
    mean what they mean to :class:`~intl_transfer.data.folders.FolderSource`, but one around all.
    Without labels and folders the tar is the class, if its name is not a shard's number.

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
        is_new = any(new for _, new in indexed)
        if is_new:
            say_others(root, (json.loads(table["others"].tobytes()) for table in tables))
        counts = [len(table["offsets"]) for table in tables]
        if not sum(counts):
            raise UserError(f"{root}: {len(self._files)} tar shard(s) without any image")
        self._ends = np.cumsum(counts)
        self._offsets = np.concatenate([table["offsets"] for table in tables])
        self._sizes = np.concatenate([table["sizes"] for table in tables])
        names, label_of, are_tars = _labeled(root, self._files, tables)
        if is_new and os.path.isdir(root):
            say_beside(root, "shards", _beside(Path(root)))
        if is_new and are_tars:
            print_line(
                f"note: {root}: no image has a folder or a label; the name of its tar is taken for "
                f"its class, {some_of(set(label_of))}"
            )
        # Numbers as numbers: 10 comes after 9.
        known = sorted(set(label_of), key=_in_order)
        self.classes = known
        number = {name: index for index, name in enumerate(known)}
        self.labels = np.array([number[label] for label in label_of], np.int64)
        beside = sum(
            (Counter(json.loads(table["beside"].tobytes())) for table in tables), Counter()
        )
        self.beside = counted(beside)
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


def check_first(root: str | Path) -> None:
    """Refuses shards in the first of which :class:`TarSource` would find no image with a class.

    Args:
        root: for :func:`shard_files`.

    Raises:
        UserError: if there is none.
    """
    files = shard_files(root)[:2]  # one has no name to differ from
    names, label_of, _ = _labeled(root, files, [_read_headers(file) for file in files])
    if not names:
        raise UserError(f"{files[0]}: a tar shard without any image")
    if not any(label_of):
        raise UserError(f"{files[0]}: images without classes, {WITHOUT_CLASSES}")


def _labeled(
    root: str | Path, files: Sequence[str], tables: Sequence[Mapping[str, NDArray[Any]]]
) -> tuple[list[str], list[str], bool]:
    """All images' names, their labels, and whether these are the names of their tars.

    Raises:
        UserError: if only some images have a label, or folders or tars are parts of a data set.
    """
    inside = [list(NameTable(table["names"], table["ends"])) for table in tables]
    names = [name for some in inside for name in some]
    written = [label for table in tables for label in NameTable(table["cls"], table["cls_ends"])]
    label_of = written if any(written) else classes_of(names, str(root))
    if not any(label_of):
        tars = {Path(file).stem: some for file, some in zip(files, inside, strict=True) if some}
        if len(tars) == sum(map(bool, inside)) and _are_classes(root, tars):
            return names, [tar for tar, some in tars.items() for _ in some], True
    elif not all(label_of):
        bare = [name for name, label in zip(names, label_of, strict=True) if not label]
        raise UserError(
            f"{root}: {len(bare)} of {len(names)} images have no class, the first: {bare[0]}. "
            "Expected a .cls beside each, or a folder around each; images without any labels "
            "have neither"
        )
    return names, label_of, False


def _are_classes(root: str | Path, tars: Mapping[str, Sequence[str]]) -> bool:
    """Whether each tar is a class, as ImageNet's training images are packed, and not a shard.

    Where names of tars differ in their numbers alone, they are classes if all images are named
    after their tar (``n01440764_10026.JPEG``) and no two numbers are adjacent.

    Args:
        root: they are, for messages.
        tars: their names, without endings, and those of the images in each.
    """
    if len(tars) < 2:
        return False
    if part_among(tars, lambda name: False, are_classes=False) is not None:
        raise UserError(
            f"{root} holds {some_of(f'{tar}.tar' for tar in tars)}: parts of a data set, not "
            "classes. Give one of them"
        )
    numbers: dict[str, list[list[int]]] = {}
    for tar in tars:
        digits = [int(number) for number in re.findall(r"[0-9]+", tar)]
        numbers.setdefault(re.sub(r"[0-9]+", "0", tar), []).append(digits)
    pairs = [pair for some in numbers.values() for pair in itertools.pairwise(sorted(some))]
    adjacent = any(sum(abs(a - b) for a, b in zip(*pair, strict=True)) <= 1 for pair in pairs)
    named = all(
        re.match(re.escape(tar) + r"[\W_]", name) for tar, names in tars.items() for name in names
    )
    return not pairs or (named and not adjacent)


def _beside(folder: Path) -> Counter[str]:
    """Numbers of what lies beside the shards of a folder, and is not read."""
    found = loose_in(folder)
    found["archives"] -= sum(map(_is_shard, os.listdir(folder)))
    found["folders"] = len(class_folders(folder))
    return +found


def _read_headers(file: str) -> dict[str, NDArray[Any]]:
    labels: dict[str, str] = {}
    images: list[tuple[str, int, int]] = []
    others: list[str] = []
    files = files_in(file)
    with open(file, "rb") as opened:
        for name, packed in files.items():
            *parents, last = name.split("/")
            if is_companion(last) or any(is_hidden(one) for one in parents if one != ".."):
                continue
            key = _labels_key(name)
            if packed.problem and (is_image(last) or key is not None or packed.link):
                raise UserError(
                    f"{file}: {name} {packed.problem}; pack it again with `tar --dereference "
                    "--hard-dereference`"
                )
            if key is not None:
                opened.seek(packed.offset)
                text = opened.read(min(packed.size, _LONGEST_LABEL))
                labels[key] = text.decode(errors="replace").strip()
            elif is_image(last):
                images.append((name, packed.offset, packed.size))
            elif not last.startswith("."):
                others.append(name)
    names = NameTable.of(name for name, _, _ in images)
    cls = NameTable.of(_labels_of([name for name, _, _ in images], labels))
    # What has an image's key belongs to its sample.
    keys = {key for name, _, _ in images for key in (_key(name), _webdatasets_key(name))}
    counts = Counter(ending(name) for name in others if _key(name) not in keys)
    beside = Counter(ending(name) for name in others if _key(name) in keys)
    return {
        "names": names.text,
        "ends": names.ends,
        "cls": cls.text,
        "cls_ends": cls.ends,
        "offsets": np.array([offset for _, offset, _ in images], np.int64),
        "sizes": np.array([size for _, _, size in images], np.int64),
        "others": np.frombuffer(json.dumps(counts).encode(), np.uint8),
        "beside": np.frombuffer(json.dumps(beside).encode(), np.uint8),
    }


def _labels_key(name: str) -> str | None:
    """The key of the image that a file is the label of; None if it is none."""
    end = next((end for end in _LABELS if name.lower().endswith(end)), None)
    return name[: -len(end)] if end else None


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
