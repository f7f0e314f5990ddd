"""Labelled images from wherever they lie: class folders, tar shards, CIFAR's files.

Every source has the same few methods, so that the loader, k-NN and evaluation need not know which
one they read.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from intl_transfer.data.augment import Pixels
from intl_transfer.errors import UserError, did_you_mean


class ImageSource(ABC):
    """A set of labelled images.

    Attributes:
        classes: class names; a label is an index into it.
        labels: of every image, int64.
    """

    classes: Sequence[str]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call an image in a message: its path, or its shard and key."""

    @abstractmethod
    def image(self, index: int) -> Pixels:
        """Decodes an image as uint8 RGB, (H, W, 3).

        Raises:
            UnreadableImageError: if it cannot be read.
        """

    def epoch_order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """A permutation of all indices that depends on seed and epoch alone."""
        return np.random.default_rng((seed, epoch)).permutation(len(self)).astype(np.int64)


class NameTable(Sequence[str]):
    """Many names in two arrays.

    A Python list of a million strings is copied page by page into every loading process, as their
    reference counts change; two arrays are shared.
    """

    def __init__(self, text: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.text, self.ends = text, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> NameTable:
        """The table of these names."""
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends.reshape(-1))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        start = int(self.ends[index - 1]) if index else 0
        return self.text[start : int(self.ends[index])].tobytes().decode("utf-8", "surrogateescape")


def cache_file(kind: str, key: str) -> Path:
    """Where a list is kept in the user's cache, under what it is a list of."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    return Path(base) / "intl-transfer" / f"{kind}-{name}.npz"


class Subset(ImageSource):
    """Some images of a source.

    Args:
        source: the whole.
        indices: of the images to keep.
        classes: names of the classes to keep, which are numbered anew; None keeps all.
    """

    def __init__(
        self, source: ImageSource, indices: NDArray[np.int64], classes: Sequence[str] | None = None
    ) -> None:
        self._source, self._indices = source, indices
        self.classes = source.classes if classes is None else classes
        labels = source.labels[indices]
        if classes is not None:
            number = {name: new for new, name in enumerate(classes)}
            renumber = np.array([number.get(name, -1) for name in source.classes], np.int64)
            labels = renumber[labels]
        self.labels = labels

    def name(self, index: int) -> str:
        """As the source's."""
        return self._source.name(int(self._indices[index]))

    def image(self, index: int) -> Pixels:
        """As the source's."""
        return self._source.image(int(self._indices[index]))

    def epoch_order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """In the order in which the source would have them, for tar shards' sake."""
        position = np.full(len(self._source), -1, np.int64)
        position[self._indices] = np.arange(len(self._indices))
        order = position[self._source.epoch_order(seed, epoch)]
        return order[order >= 0]


def select(source: ImageSource, listing: str | Path) -> Subset:
    """The images that a text file lists.

    Args:
        source: the whole.
        listing: a file with one entry a line: class names (ImageNet-100), or image names with or
            without their folders, ``n01440764_10026.JPEG`` (the 1 % and 10 % lists). Empty lines
            and lines that begin with ``#`` do not count.

    Returns:
        The subset; with class names its classes are those listed, in sorted order.

    Raises:
        UserError: if the file is absent or empty, or an entry is not in the source.
    """
    listing = Path(listing)
    try:
        lines = [line.strip() for line in listing.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the subset list {listing} cannot be read ({error})") from None
    wanted = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not wanted:
        raise UserError(f"the subset list {listing} names nothing")
    if all(entry in set(source.classes) for entry in wanted):
        keep = np.isin(source.labels, [source.classes.index(entry) for entry in wanted])
        return Subset(source, np.flatnonzero(keep), sorted(wanted))
    by_name: dict[str, int] = {}
    for index in range(len(source)):
        path = Path(source.name(index))
        for known in (path.name, path.stem, f"{path.parent.name}/{path.name}"):
            by_name[known] = index
    missing = [entry for entry in wanted if entry not in by_name]
    if missing:
        some = (Path(source.name(index)).name for index in range(min(len(source), 999)))
        near = did_you_mean(missing[0], [*source.classes, *some])
        raise UserError(
            f"{listing}: {len(missing)} of {len(wanted)} entries are neither a class nor an image "
            f"of the data set, the first: '{missing[0]}'.{near}"
        )
    return Subset(source, np.array(sorted({by_name[entry] for entry in wanted}), np.int64))


def open_source(
    root: str | Path, subset: str | Path | None = None, key: str = "data.root"
) -> ImageSource:
    """Opens a data set, of whichever kind lies at ``root``.

    Args:
        root: a folder of ``CLASS/IMAGE`` files, a folder of ``.tar`` shards or a pattern of such
            (``train-{0000..0146}.tar``, ``train-*.tar``), or a folder that holds CIFAR-10's or
            CIFAR-100's files (their training part; ``root:test`` is the other).
        subset: a list for :func:`select`.
        key: the setting that names ``root``, for messages.

    Raises:
        UserError: if nothing of the kind is there.
    """
    from intl_transfer.data import cifar, folders, shards

    part = "train"
    text = str(root)
    for name in ("train", "test"):
        if text.endswith(f":{name}"):
            text, part = text.removesuffix(f":{name}"), name
    source: ImageSource
    if shards.are_shards(text):
        source = shards.TarSource(text)
    elif cifar.find(text) is not None:
        source = cifar.CifarSource(text, part)
    else:
        source = folders.FolderSource(text, key)
    return select(source, subset) if subset else source
