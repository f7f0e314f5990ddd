"""The interface of sources of labeled images, and subsets.

All sources have the same methods, so that the loader, k-NN and evaluation work with any of them.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from intl_transfer.data.augment import Pixels
from intl_transfer.errors import UserError
from intl_transfer.places import cache_folder
from intl_transfer.runs.records import ImageSet

#: Number of evenly spaced images in a source's digest: a data set drawn or encoded differently is
#: detected without reading all of it.
SAMPLE = 64
#: What gives images classes, for messages.
WITHOUT_CLASSES = "expected a folder for each class, in tar shards also a .cls beside each image"


class ImageSource(ABC):
    """A set of labeled images.

    Attributes:
        classes: class names; a label is an index into it.
        labels: of every image, int64.
        beside: files beside the images that are not read and may be their labels, in words.
    """

    classes: Sequence[str]
    labels: NDArray[np.int64]
    beside: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """The name of an image, for messages: its path, or its shard and key."""

    @abstractmethod
    def image(self, index: int) -> Pixels:
        """Decodes an image as uint8 RGB, (H, W, 3).

        Raises:
            UnreadableImageError: if it cannot be read.
        """

    @abstractmethod
    def content(self, index: int) -> bytes:
        """An image as it is stored.

        Raises:
            OSError: if it cannot be read.
        """

    def epoch_order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """A permutation of all indices that depends only on seed and epoch."""
        return np.random.default_rng((seed, epoch)).permutation(len(self)).astype(np.int64)

    def described(self) -> ImageSet:
        """A summary: counts, and a digest of labels and the bytes of 64 images."""
        digest = hashlib.sha256(np.ascontiguousarray(self.labels, np.int64).tobytes())
        for index in np.unique(np.linspace(0, len(self) - 1, SAMPLE).round().astype(int)):
            try:
                digest.update(hashlib.sha256(self.content(int(index))).digest())
            except OSError:
                digest.update(b"cannot be read")
        return ImageSet(images=len(self), classes=len(self.classes), digest=digest.hexdigest())


def check_labels(source: ImageSource) -> None:
    """Refuses labels that are no indices into the source's classes.

    Raises:
        UserError: with the first of them.
    """
    labels, count = np.asarray(source.labels), len(source.classes)
    kind = type(source).__name__
    if labels.ndim != 1 or (labels.size and labels.dtype.kind not in "iu"):
        raise UserError(
            f"{kind}: labels are {labels.dtype} of shape {labels.shape}; expected one integer for "
            "each image"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= count))
    if len(wrong):
        raise UserError(
            f"{kind}: {len(wrong)} of {len(labels)} images have a label that is none of its "
            f"{count} classes, the first: {source.name(int(wrong[0]))} has {labels[wrong[0]]}; "
            f"expected 0 to {count - 1}. Leave out images without one"
        )


def image_of(source: ImageSource, index: int) -> Pixels:
    """A source's image.

    Raises:
        UnreadableImageError: if it cannot be read.
        UserError: if the source returns anything but uint8 RGB.
    """
    image = source.image(index)
    is_array = isinstance(image, np.ndarray)
    if is_array and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return image
    found = f"{image.dtype} {image.shape}" if is_array else type(image).__name__
    raise UserError(
        f"{source.name(index)}: {type(source).__name__}.image returns {found}; expected uint8 RGB, "
        "(H, W, 3)"
    )


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

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices
        start = int(self.ends[index - 1]) if index else 0
        return self.text[start : int(self.ends[index])].tobytes().decode("utf-8", "surrogateescape")


def cache_file(kind: str, key: str) -> Path:
    """The path of a list in the user's cache."""
    name = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:24]
    return cache_folder() / f"{kind}-{name}.npz"


class Subset(ImageSource):
    """Some images of a source.

    Args:
        source: the whole.
        indices: of the images to keep.
        classes: names of the classes to keep, which are renumbered; None keeps all.

    Attributes:
        source: the whole.
        keeps_classes: whether classes were selected, with all their images, and not images.
    """

    def __init__(
        self, source: ImageSource, indices: NDArray[np.int64], classes: Sequence[str] | None = None
    ) -> None:
        self.source, self._indices, self.beside = source, indices, source.beside
        self.keeps_classes = classes is not None
        self.classes = source.classes if classes is None else classes
        labels = source.labels[indices]
        if classes is not None:
            number = {name: new for new, name in enumerate(classes)}
            renumber = np.array([number.get(name, -1) for name in source.classes], np.int64)
            labels = renumber[labels]
        self.labels = labels

    def name(self, index: int) -> str:
        """As the source's."""
        return self.source.name(int(self._indices[index]))

    def image(self, index: int) -> Pixels:
        """As the source's."""
        return self.source.image(int(self._indices[index]))

    def content(self, index: int) -> bytes:
        """As the source's."""
        return self.source.content(int(self._indices[index]))

    def epoch_order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """In the source's order, which matters for tar shards."""
        position = np.full(len(self.source), -1, np.int64)
        position[self._indices] = np.arange(len(self._indices))
        order = position[self.source.epoch_order(seed, epoch)]
        return order[order >= 0]
