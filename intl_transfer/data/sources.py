"""Opens labeled images: class folders, tar shards, CIFAR's and MNIST's files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intl_transfer.data import cifar, folders, idx, shards
from intl_transfer.data.roots import located
from intl_transfer.data.source import ImageSource, Subset
from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.files.texts import lines_of


@dataclass(frozen=True)
class SourceKind:
    """A layout of labeled images on disk.

    Attributes:
        fits: whether a path (folder, file or pattern) has this layout.
        open: opens it, given the path, ``train`` or ``test`` of a data set that has both, and
            whether images are turned upright.
    """

    fits: Callable[[str], bool]
    open: Callable[[str, str, bool], ImageSource]


#: All layouts, most specific first; class folders are the default.
SOURCES: tuple[SourceKind, ...] = (
    SourceKind(
        lambda place: shards.are_shards(place) and not folders.has_classes(place),
        lambda place, part, upright: shards.TarSource(place, upright),
    ),
    SourceKind(
        lambda place: cifar.find(place) is not None,
        lambda place, part, upright: cifar.CifarSource(place, part),
    ),
    SourceKind(
        lambda place: idx.find(place) is not None,
        lambda place, part, upright: idx.IdxSource(place, part),
    ),
)


def select(source: ImageSource, listing: str | Path) -> Subset:
    """The images that a text file lists.

    Args:
        source: the whole.
        listing: a file with one entry per line: class names (ImageNet-100), or image names with or
            without their folders, ``n01440764_10026.JPEG`` (the 1 % and 10 % lists). Empty lines
            and lines that begin with ``#`` are ignored.

    Returns:
        The subset; with class names its classes are those listed, in sorted order.

    Raises:
        UserError: if the file is missing or empty, or an entry is not in the source.
    """
    listing = Path(listing)
    try:
        lines = lines_of(listing, "a list of names")
    except UserError as error:
        raise UserError(f"the subset list {listing} cannot be read: {error}") from None
    entries = list(dict.fromkeys(line for line in lines if not line.startswith("#")))
    if not entries:
        raise UserError(f"the subset list {listing} is empty")
    numbers = {name: index for index, name in enumerate(source.classes)}
    if all(entry in numbers for entry in entries):
        keep = np.isin(source.labels, [numbers[entry] for entry in entries])
        return Subset(source, np.flatnonzero(keep), sorted(entries))
    by_name: dict[str, int] = {}
    for index in range(len(source)):
        path = Path(source.name(index))
        for known in (path.name, path.stem, f"{path.parent.name}/{path.name}"):
            by_name[known] = index
    missing = [entry for entry in entries if entry not in by_name]
    if missing:
        some = (Path(source.name(index)).name for index in range(min(len(source), 999)))
        near = did_you_mean(missing[0], [*source.classes, *some])
        raise UserError(
            f"{listing}: {len(missing)} of {len(entries)} entries are neither a class nor an image "
            f"of the data set, the first: '{missing[0]}'.{near}"
        )
    return Subset(source, np.array(sorted({by_name[entry] for entry in entries}), np.int64))


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
        UserError: if there is no such data set.
    """
    part = "train"
    place = located(root)
    for name in ("train", "test"):
        if place.endswith(f":{name}"):
            place, part = place.removesuffix(f":{name}"), name
    kind = next((kind for kind in SOURCES if kind.fits(place)), None)
    source: ImageSource
    if kind is not None:
        source = kind.open(place, part, upright)
    else:
        source = folders.FolderSource(place, key, upright)
    return select(source, subset) if subset else source
