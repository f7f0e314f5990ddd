"""Images in class folders, listed once.

Listing 1.28 million files of a parallel file system takes minutes; the list is kept in the user's
cache. A folder's times change with every file that comes or goes, so that an outdated list is
detected by a thousand calls instead of a million, and only changed folders are listed again. A
folder that changed just before it was listed is listed again the next time: what comes after may
leave it the same times.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from intl_transfer.data.augment import Pixels
from intl_transfer.data.images import EXTENSIONS, read_image
from intl_transfer.data.made import command_for
from intl_transfer.data.parts import part_among, part_below, some_of
from intl_transfer.data.source import ImageSource, NameTable, cache_file
from intl_transfer.errors import UserError
from intl_transfer.files.stamps import Stamp, is_settled, stamp_of
from intl_transfer.runs.atomic import write_atomically
from intl_transfer.runs.progress import print_line

_VERSION = 5
# The stamp of a folder whose list is not to be kept.
_UNKNOWN: Stamp = []
_ARCHIVES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")
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
    """A class folder: its subfolders with their stamps, all images, and endings.

    The last are of the files that are no images, with their numbers.
    """

    name: str
    folders: dict[str, Stamp]
    files: list[str]
    others: dict[str, int]


class FolderSource(ImageSource):
    """A folder of ``CLASS/IMAGE`` files, in the order of torchvision's ``ImageFolder``.

    Files that are no images, and images and archives beside the class folders, are left out, and
    counted in a note when the folder is listed.

    Args:
        root: the folder. Images may also be in subfolders of a class.
        key: the setting that names it, for messages.
        upright: as for :func:`~intl_transfer.data.images.decode_image`.

    Attributes:
        listed: number of class folders that had to be listed; 0 if the cache was up to date.

    Raises:
        UserError: if the folder does not exist, has no class folders, or has one without images, or
            there are parts of a data set (``train/`` and ``val/``) among them or in one.
    """

    def __init__(self, root: str | Path, key: str = "data.root", upright: bool = True) -> None:
        self._root, self._upright = Path(root), upright
        _check_folder(self._root, key)
        listings, self.listed = _listings(self._root)
        _refuse_parts_below(self._root, listings)
        empty = [entry.name for entry in listings if not entry.files]
        if len(empty) == len(listings):
            raise _without_images(self._root, len(listings))
        if empty:
            raise UserError(
                f"{root}: no image in class folder '{empty[0]}'"
                + (f" and {len(empty) - 1} more" if len(empty) > 1 else "")
                + f"; expected files ending in {', '.join(EXTENSIONS)}"
            )
        if self.listed:
            say_others(self._root, (one.others for one in listings))
            unpacked = {entry.name for entry in listings}
            say_beside(self._root, "class folders", loose_in(self._root, unpacked))
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


def classes_of(paths: Sequence[str], where: str) -> list[str]:
    """The class of each image of a packed tree: its first folder, "" without one.

    Folders that all images lie below are no classes (of ``train/cat/a.jpg`` and ``train/dog/b.jpg``
    it is the second), unless there are images in the last of them.

    Args:
        paths: of all images.
        where: they are, for messages.

    Raises:
        UserError: if the folders are parts of a data set, ``train/`` and ``val/``.
    """
    folders = [path.rpartition("/")[0] for path in paths]
    split = {folder: folder.split("/") if folder else [] for folder in set(folders)}
    deepest = max(min(map(len, split.values()), default=0) - 1, 0)
    depth = 0
    while depth < deepest and len({parts[depth] for parts in split.values()}) == 1:
        depth += 1
    names = {folder: parts[depth] if parts else "" for folder, parts in split.items()}
    inner: dict[str, list[str]] = {name: [] for name in names.values()}
    for parts in split.values():
        if parts:
            inner[parts[depth]].append("/".join(parts[depth + 1 :]))
    below = part_below(inner)
    if below or part_among(inner, lambda name: any(inner[name])) is not None:
        some = some_of(f"{below[0]}/{part}" for part in below[1]) if below else some_of(inner)
        raise UserError(
            f"{where}: images lie below {some}: parts of a data set, not classes. Pack each of "
            "them by itself"
        )
    return [names[folder] for folder in folders]


def _refuse_parts_below(root: Path, listings: Sequence[_Class]) -> None:
    """Refuses ``images/train`` and ``images/val``: all would be the class "images"."""
    below = part_below({entry.name: entry.folders for entry in listings})
    if below is not None:
        name, inside, given = below
        raise UserError(
            f"{root / name} holds {some_of(inside)}: parts of a data set, of which one is to be "
            "read. Expected PART/CLASS/IMAGE files, and the folder of one part"
            + (f", such as {root / name / given}" if len(listings) == 1 else "")
        )


def _check_folder(root: Path, key: str) -> list[str]:
    """The class folders of what exists, has some, and is not the parent of ``train/`` and ``val/``.

    Raises:
        UserError: if it is not.
    """
    if not root.is_dir():
        raise UserError(
            f"no image folder {root} (looked for {root.resolve()}); expected CLASS/IMAGE files, "
            f".tar shards or CIFAR's files in it. {_remedy(root, key)}"
        )
    names = class_folders(root)
    given = part_among(names, lambda name: bool(class_folders(root / name)))
    if given is not None:
        raise UserError(
            f"{root} holds {some_of(names)}: parts of a data set, not classes. Give one of them, "
            f"{key}={root / given}"
        )
    if not names:
        raise _without_images(root, 0)
    return names


def check_first(root: str | Path, key: str = "data.root") -> None:
    """Refuses a folder in which :class:`FolderSource` would find no image of its first class.

    Args:
        root: the folder.
        key: the setting that names it, for messages.

    Raises:
        UserError: if there is none.
    """
    names = _check_folder(Path(root), key)
    first = _list(Path(root), names[0])
    _refuse_parts_below(Path(root), [first])
    if not first.files:
        raise _without_images(Path(root), len(names))


def _without_images(root: Path, folders: int) -> UserError:
    loose = loose_in(root)
    found = f"{folders} folders"
    if loose:
        found = f"{counted(loose)} lie in it directly"
    return UserError(
        f"{root}: no images in class folders ({found}); expected CLASS/IMAGE files. "
        "Without classes, put all images into one folder below it"
    )


def loose_in(root: Path, unpacked: Collection[str] = ()) -> Counter[str]:
    """Numbers of the images and archives that lie in a folder directly.

    Args:
        root: the folder.
        unpacked: class folders; the archives of these names are theirs.
    """
    found: Counter[str] = Counter()
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if not _is_folder(entry)]
    for name in names:
        end = next((end for end in _ARCHIVES if name.lower().endswith(end)), None)
        if is_image(name):
            found["images"] += 1
        elif end and not name.startswith(".") and name[: -len(end)] not in unpacked:
            found["archives"] += 1
    return found


def say_beside(root: str | Path, what: str, loose: Mapping[str, int]) -> None:
    """Says what lies beside the class folders or the shards that are read, and is not."""
    if loose:
        print_line(f"note: {root}: beside its {what}, {counted(loose)} are left out")


def counted(numbers: Mapping[str, int]) -> str:
    """Numbers of things in words, the most first, at most 8."""
    most = Counter(numbers).most_common()
    rest = f" and {len(most) - 8} more" if len(most) > 8 else ""
    return ", ".join(f"{count:,} {name or 'without one'}" for name, count in most[:8]) + rest


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
            _stamp(root / name / inner) == stamp for inner, stamp in known[name].folders.items()
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


def _stamp(folder: Path) -> Stamp | None:
    try:
        return stamp_of(os.stat(folder))
    except OSError:
        return None


def _list(root: Path, name: str) -> _Class:
    found = _Class(name, {}, [], Counter())
    seen: set[tuple[int, int]] = set()  # a link to a parent folder would recurse forever
    pending = ["."]
    while pending:
        relative = pending.pop()
        parent = root / name / relative
        try:
            status = os.stat(parent)  # before it is listed: a file added meanwhile changes it
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            stamp = stamp_of(status)
            found.folders[relative] = stamp if is_settled(stamp) else _UNKNOWN
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
                found.others[ending(file)] += 1
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def ending(name: str) -> str:
    """The ending by which files that are no images are counted."""
    return Path(name).suffix.lower()


def say_others(root: str | Path, others: Iterable[Mapping[str, int]]) -> None:
    """Says which files of a data set are left out, by the numbers of their endings."""
    counts = sum(map(Counter, others), Counter[str]())
    if counts:
        print_line(
            f"note: {root}: files that are no images, by their ending, are left out: "
            f"{counted(counts)}"
        )


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
