"""Images in class folders, listed once.

Listing 1.28 million files of a parallel file system takes minutes; the list is kept in the user's
cache. A folder's modification time changes with every file that comes or goes, so that an outdated
list is detected by a thousand calls instead of a million, and only changed folders are listed
again. A folder that changed just before it was listed is listed again the next time: what comes
after may leave it the same time.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from intl_transfer.data.augment import Pixels
from intl_transfer.data.images import EXTENSIONS, read_image
from intl_transfer.data.made import command_for
from intl_transfer.data.source import ImageSource, NameTable, cache_file
from intl_transfer.errors import UserError
from intl_transfer.runs.atomic import write_atomically
from intl_transfer.runs.progress import print_line

_VERSION = 4
# Time stamps are as coarse as this on some file systems, in ns; and the time of a folder whose
# list is not to be kept.
_COARSEST = 2 * 10**9
_UNKNOWN = -2
_PARTS = ("train", "training", "trainval", "val", "valid", "validation", "test", "testing")
# Of macOS, Linux, Windows, Synology and QNAP. Whole names: sets of characters have classes such as
# "#", "$" and "@".
_SYSTEM_FOLDERS = frozenset(
    {
        *("__macosx", "lost+found", "$recycle.bin", "system volume information"),
        *("@eadir", "@tmp", "#recycle", "#snapshot"),
        *("@recycle", "@recently-snapshot", "@__thumb"),
    }
)


@dataclass
class _Class:
    """A class folder: its subfolders with modification times in ns, all images, and endings.

    The last are of the files that are no images, with their numbers.
    """

    name: str
    folders: dict[str, int]
    files: list[str]
    others: dict[str, int]


class FolderSource(ImageSource):
    """A folder of ``CLASS/IMAGE`` files, in the order of torchvision's ``ImageFolder``.

    Files that are no images are left out, and counted in a note when the folder is listed.

    Args:
        root: the folder. Images may also be in subfolders of a class.
        key: the setting that names it, for messages.
        upright: as for :func:`~intl_transfer.data.images.decode_image`.

    Attributes:
        listed: number of class folders that had to be listed; 0 if the cache was up to date.

    Raises:
        UserError: if the folder does not exist, has no class folders, or has one without images.
    """

    def __init__(self, root: str | Path, key: str = "data.root", upright: bool = True) -> None:
        self._root, self._upright = Path(root), upright
        if not self._root.is_dir():
            raise UserError(
                f"no image folder {root} (looked for {self._root.resolve()}); expected CLASS/IMAGE "
                f"files, .tar shards or CIFAR's files in it. {_remedy(self._root, key)}"
            )
        _refuse_parts(self._root, key)
        listings, self.listed = _listings(self._root)
        empty = [entry.name for entry in listings if not entry.files]
        if not listings or len(empty) == len(listings):
            loose = sum(is_image(path.name) for path in self._root.iterdir())
            found = f"{loose} images lie in it directly" if loose else f"{len(listings)} folders"
            raise UserError(
                f"{root}: no images in class folders ({found}); expected CLASS/IMAGE files. "
                "Without classes, put all images into one folder below it"
            )
        if empty:
            raise UserError(
                f"{root}: no image in class folder '{empty[0]}'"
                + (f" and {len(empty) - 1} more" if len(empty) > 1 else "")
                + f"; expected files ending in {', '.join(EXTENSIONS)}"
            )
        if self.listed:
            _say_others(self._root, listings)
        self.classes = [entry.name for entry in listings]
        counts = [len(entry.files) for entry in listings]
        self.labels = np.repeat(np.arange(len(listings)), counts).astype(np.int64)
        self._names = NameTable.of(f"{one.name}/{file}" for one in listings for file in one.files)

    def name(self, index: int) -> str:
        """The image's path."""
        return os.path.join(self._root, self._names[index])

    def image(self, index: int) -> Pixels:
        """Reads and decodes the file."""
        return read_image(self.name(index), self._upright)

    def content(self, index: int) -> bytes:
        """The file."""
        return Path(self.name(index)).read_bytes()


def is_companion(name: str) -> bool:
    """Whether a file belongs to another, ``._a.jpg`` to ``a.jpg``: macOS's attributes of it."""
    return name.startswith("._")


def is_image(name: str) -> bool:
    """Whether a file is an image, by its name."""
    return name.lower().endswith(EXTENSIONS) and not is_companion(name)


def is_hidden(name: str) -> bool:
    """Whether a folder belongs to the system: hidden, snapshots, thumbnails or trash."""
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def class_folders(root: Path) -> list[str]:
    """Names of the class folders, sorted."""
    with os.scandir(root) as entries:
        return sorted(
            entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name)
        )


def has_classes(root: str | Path) -> bool:
    """Whether a folder has class folders with images; archives next to them are then ignored."""
    root = Path(root)
    if not root.is_dir():
        return False
    return any(
        is_image(file.name)
        for name in class_folders(root)[:20]
        for file in islice((root / name).iterdir(), 100)
    )


def _refuse_parts(root: Path, key: str) -> None:
    """Refuses the parent of ``train/`` and ``val/``: these are splits, not classes."""
    names = class_folders(root)
    parts = [name for name in names if name.lower() in _PARTS]
    inner = [name for name in parts if class_folders(root / name)]
    if parts and parts == names and inner:
        given = next((name for name in inner if name.lower().startswith("train")), inner[0])
        raise UserError(
            f"{root} holds {', '.join(names)}: parts of a data set, not classes. Give one of them, "
            f"{key}={root / given}"
        )


def _remedy(root: Path, key: str) -> str:
    """Advice for a missing folder."""
    command = command_for(root)
    if command is not None:
        return f"Generate this data set with `{command}`"
    return (
        f"Give another with {key}=DIR; for {key} below datasets/, DETECTRON2_DATASETS and "
        "IMAGENET_DIR say where that is"
    )


def _listings(root: Path) -> tuple[list[_Class], int]:
    """All class folders with their files, and how many had to be listed."""
    names = class_folders(root)
    cache = _cache_file(root)
    known = {entry.name: entry for entry in _read_cache(cache)}

    def is_current(name: str) -> bool:
        return name in known and all(
            _modified(root / name / inner) == time for inner, time in known[name].folders.items()
        )

    with ThreadPoolExecutor(16) as pool:  # the file system's latency, not our time
        current = list(pool.map(is_current, names))
        stale = [name for name, good in zip(names, current, strict=True) if not good]
        listed = pool.map(lambda name: _list(root, name), stale)
        fresh = dict(zip(stale, listed, strict=True))
    listings = [fresh[name] if name in fresh else known[name] for name in names]
    if stale or len(known) != len(names):
        _write_cache(cache, listings)
    return listings, len(stale)


def _modified(folder: Path) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return -1


def _list(root: Path, name: str) -> _Class:
    found = _Class(name, {}, [], Counter())
    seen: set[tuple[int, int]] = set()  # a link to a parent folder would recurse forever
    pending = ["."]
    while pending:
        relative = pending.pop()
        parent = root / name / relative
        try:
            status = os.stat(parent)  # before it is listed: a file added meanwhile changes the time
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            is_settled = time.time_ns() - status.st_mtime_ns > _COARSEST
            found.folders[relative] = status.st_mtime_ns if is_settled else _UNKNOWN
            with os.scandir(parent) as entries:
                is_folder = {entry.name: _is_folder(entry) for entry in entries}
        except OSError:
            found.folders[relative] = _UNKNOWN
            continue
        prefix = "" if relative == "." else f"{relative}/"
        for file in sorted(is_folder, reverse=True):
            if is_folder[file] and not is_hidden(file):
                pending.append(prefix + file)
        for file in sorted(file for file in is_folder if not is_folder[file]):
            if is_image(file):
                found.files.append(prefix + file)
            elif not file.startswith("."):
                found.others[Path(file).suffix.lower()] += 1
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _say_others(root: Path, listings: list[_Class]) -> None:
    """Says which files of a folder are left out."""
    counts = sum((Counter(entry.others) for entry in listings), Counter[str]())
    if counts:
        words = [f"{count:,} {ending or 'without one'}" for ending, count in counts.most_common(8)]
        rest = f" and {len(counts) - 8} more" if len(counts) > 8 else ""
        print_line(f"note: {root}: files that are no images, by their ending, are left out: "
                   f"{', '.join(words)}{rest}")  # fmt: skip


def _cache_file(root: Path) -> Path:
    return cache_file("folder", str(root.resolve()))


def _read_cache(file: Path) -> list[_Class]:
    """The cached list; empty if the cache is missing or damaged."""
    try:
        with np.load(file, allow_pickle=False) as saved:
            classes = json.loads(saved["classes"].tobytes())
            if classes["version"] != _VERSION:
                return []
            names = NameTable(saved["files"], saved["ends"])
            listings, start = [], 0
            for name, folders, count, others in classes["classes"]:
                files = [names[index] for index in range(start, start + count)]
                listings.append(_Class(name, folders, files, others))
                start += count
            return listings
    except Exception:  # a cache: on any error, list again
        return []


def _write_cache(file: Path, listings: list[_Class]) -> None:
    names = NameTable.of(name for entry in listings for name in entry.files)
    classes = [[entry.name, entry.folders, len(entry.files), entry.others] for entry in listings]
    text = json.dumps({"version": _VERSION, "classes": classes}).encode()
    arrays = {"classes": np.frombuffer(text, np.uint8), "files": names.text, "ends": names.ends}
    with contextlib.suppress(OSError):  # no cache, then
        # Numpy takes names by keyword.
        write_atomically(file, lambda out: np.savez(out, **arrays))  # type: ignore[arg-type]
