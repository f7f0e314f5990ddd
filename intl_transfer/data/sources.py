"""Opens labeled images: class folders, tar shards, CIFAR's and MNIST's files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from intl_transfer.data import cifar, folders, idx, shards
from intl_transfer.data.roots import located
from intl_transfer.data.source import WITHOUT_CLASSES, ImageSource, Subset
from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.files.texts import lines_of


@dataclass(frozen=True)
class SourceKind:
    """A layout of labeled images on disk.

    Attributes:
        fits: whether a path (folder, file or pattern) has this layout.
        open: opens it, given the path, ``train`` or ``test`` of a data set that has both, and
            whether images are turned upright.
        has_parts: whether it has both; otherwise a path with ``:test`` is refused.
    """

    fits: Callable[[str], bool]
    open: Callable[[str, str, bool], ImageSource]
    has_parts: bool = False


#: All layouts, most specific first; class folders are the default.
SOURCES: tuple[SourceKind, ...] = (
    SourceKind(
        lambda place: shards.are_shards(place) and not folders.has_classes(place),
        lambda place, part, upright: shards.TarSource(place, upright),
    ),
    SourceKind(
        lambda place: cifar.find(place) is not None,
        lambda place, part, upright: cifar.CifarSource(place, part),
        has_parts=True,
    ),
    SourceKind(
        lambda place: idx.find(place) is not None,
        lambda place, part, upright: idx.IdxSource(place, part),
        has_parts=True,
    ),
)


def select(source: ImageSource, listing: str | Path) -> Subset:
    """The images that a text file lists.

    Args:
        source: the whole.
        listing: a file with one entry per line: class names (ImageNet-100), or image names with or
            without their folders and ending, ``n01440764_10026.JPEG`` (the 1 % and 10 % lists).
            Empty lines and lines that begin with ``#`` are ignored.

    Returns:
        The subset, whose ``keeps_classes`` says which of both was listed; with class names its
        classes are those listed, in the source's order.

    Raises:
        UserError: if the file is missing or empty, or an entry is not in the source or means
            several images of it.
    """
    listing = Path(listing)
    try:
        lines = lines_of(listing, "a list of names")
    except UserError as error:
        raise UserError(f"the subset list {listing} cannot be read: {error}") from None
    numbers = {name: index for index, name in enumerate(source.classes)}
    # A class may be called "#".
    kept = (line for line in lines if not line.startswith("#") or line in numbers)
    entries = list(dict.fromkeys(kept))
    if not entries:
        raise UserError(f"the subset list {listing} is empty")
    if all(entry in numbers for entry in entries):
        keep = np.isin(source.labels, [numbers[entry] for entry in entries])
        kept_names = [name for name in source.classes if name in set(entries)]
        return Subset(source, np.flatnonzero(keep), kept_names)
    found = _images_of(source, entries)
    missing = [entry for entry in entries if not found[entry]]
    if missing:
        some = (Path(source.name(index)).name for index in range(min(len(source), 999)))
        near = did_you_mean(missing[0], [*source.classes, *some])
        raise UserError(
            f"{listing}: {len(missing)} of {len(entries)} entries are neither a class nor an image "
            f"of the data set, the first: '{missing[0]}'.{near}"
        )
    unclear = [entry for entry in entries if len(found[entry]) > 1]
    if unclear:
        one, other, *more = (source.name(index) for index in found[unclear[0]])
        raise UserError(
            f"{listing}: {len(unclear)} of {len(entries)} entries mean several images, the first: "
            f"'{unclear[0]}' ({one}, {other}{f' and {len(more)} more' if more else ''}). Write the "
            "image's folders before its name, and its ending"
        )
    return Subset(source, np.array(sorted({found[entry][0] for entry in entries}), np.int64))


def with_classes_of(
    train: ImageSource, test: ImageSource, keys: tuple[str, str] = ("data.train", "data.test")
) -> ImageSource:
    """Test images with labels that mean the classes of the training images, by their names.

    The order of classes depends on the layout: 10 follows 1 in folders, and 9 in shards.

    Args:
        train: training images. If a list of classes selected them, test images of the other classes
            are left out.
        test: test images.
        keys: of both in the configuration, for messages.

    Raises:
        UserError: if there are fewer than two classes, which any classifier tells apart, or one is
            in one of both only.
    """
    if len(train.classes) < 2:
        found = f", '{train.classes[0]}'" if any(train.classes) else ""
        unread = f"; beside them, {train.beside} are not read" if train.beside else ""
        raise UserError(
            f"{keys[0]}: images of {len(train.classes)} class{found}, and labels need two or more: "
            f"{WITHOUT_CLASSES}{unread}"
        )
    ours, theirs = set(train.classes), set(test.classes)
    if isinstance(train, Subset) and train.keeps_classes:
        theirs &= ours
    if ours != theirs:
        only = sorted(ours ^ theirs)[0]
        raise UserError(
            f"{keys[0]} has {len(train.classes)} classes and {keys[1]} {len(test.classes)}, of "
            f"which '{only}' is in one of them only; expected the same. A list of classes in "
            "data.subset leaves the others out of both"
        )
    if list(train.classes) == list(test.classes):
        return test
    keep = np.isin(test.labels, [n for n, name in enumerate(test.classes) if name in ours])
    return Subset(test, np.flatnonzero(keep), train.classes)


def _images_of(source: ImageSource, entries: Sequence[str]) -> dict[str, list[int]]:
    """The images that each entry of a list may mean: by name, else by name without ending."""
    parts = {entry: PurePosixPath(entry).parts for entry in entries}
    wanted = {own[-1] for own in parts.values() if own}
    whole: dict[str, list[int]] = {}
    bare: dict[str, list[int]] = {}
    for index in range(len(source)):
        path = PurePosixPath(source.name(index))
        for known, name in ((whole, path.name), (bare, path.stem)):
            if name in wanted:
                known.setdefault(name, []).append(index)
    found: dict[str, list[int]] = {}
    for entry, own in parts.items():
        found[entry] = []
        for known in (whole, bare):
            alike = known.get(own[-1], []) if own else []
            found[entry] = found[entry] or [
                index
                for index in alike
                if len(own) == 1
                or PurePosixPath(source.name(index)).parts[-len(own) : -1] == own[:-1]
            ]
    return found


def open_source(
    root: str | Path,
    subset: str | Path | None = None,
    key: str = "data.root",
    upright: bool = True,
) -> ImageSource:
    """Opens a data set of any layout.

    Args:
        root: a folder of ``CLASS/IMAGE`` files, a folder of ``.tar`` shards or a pattern of such
            (``train-{0000..0146}.tar``, ``train-*.tar``), or a folder that holds CIFAR-10's,
            CIFAR-100's or (Fashion-)MNIST's files (their training part; ``root:test`` is the
            other).
        subset: a list for :func:`select`.
        key: the setting that names ``root``, for messages.
        upright: as for :func:`~intl_transfer.data.images.decode_image`; the arrays of CIFAR and
            MNIST have no tags.

    Raises:
        UserError: if there is no such data set, or several in one folder, or not the part.
    """
    place = located(root)
    whole, _, part = place.rpartition(":")
    if part in ("train", "test") and not Path(place).is_dir():
        place = whole
    else:
        part = ""
    kinds = [kind for kind in SOURCES if kind.fits(place)]
    if any(kind.has_parts for kind in kinds) and (len(kinds) > 1 or folders.has_classes(place)):
        raise UserError(
            f"{key}={root}: {place} holds CIFAR's or MNIST's files beside other images (both of "
            "them, class folders or tar shards); give the folder of one data set"
        )
    kind = next(iter(kinds), None)
    has_parts = not Path(place).is_dir() if kind is None else kind.has_parts
    if part and not has_parts:  # what does not exist is said below
        raise UserError(
            f"{key}={root}: ':{part}' means a part of CIFAR's or MNIST's files, and {place} holds "
            "others; it would be all of them. Give the folder or the shards of that part"
        )
    part = part or "train"
    source: ImageSource
    if kind is not None:
        source = kind.open(place, part, upright)
    else:
        source = folders.FolderSource(place, key, upright)
    return select(source, subset) if subset else source


def check_first(root: str | Path, key: str = "data.root") -> None:
    """Refuses class folders or shards without an image of a class, by a look at the first of them.

    Listing all of a large data set, as :func:`open_source` does, takes minutes.

    Args:
        root: class folders or shards, as for :func:`open_source`.
        key: the setting that names it, for messages.

    Raises:
        UserError: if there is no such data set, or no such image where the first ones should be.
    """
    place = located(root)
    if shards.are_shards(place) and not folders.has_classes(place):
        shards.check_first(place)
    else:
        folders.check_first(place, key)
