"""Views of the images of a source, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from intl_transfer.data.augment import Pixels
from intl_transfer.data.images import UnreadableImageError
from intl_transfer.data.source import ImageSource, check_labels, image_of
from intl_transfer.data.views import View

#: After this many consecutive unreadable images a data set is assumed to be unavailable.
TRIES = 16


class Batch(NamedTuple):
    """One rank's rows of a global batch.

    Attributes:
        views: V uint8 tensors (n, size, size, 3).
        shown: index of each row's image, int64 (n,).
        unreadable: (index, reason) of every image that could not be decoded.
        gone: whether too many consecutive images were unreadable, so that rows are black.
    """

    views: list[Tensor]
    shown: Tensor
    unreadable: list[tuple[int, str]]
    gone: bool


class ViewsDataset(Dataset[Batch]):
    """Views of images, each from a separate random stream.

    Items are indexed by ``(epoch, index)``. The views depend on the seed, the epoch and the index
    alone, not on the worker, the rank or earlier items, so that a resumed run or one with another
    number of ranks sees the same images. An unreadable image is replaced by another one chosen by
    the same three numbers, so that all ranks agree on the global batch.

    Args:
        source: the images.
        views: one transformation per view.
        seed: of the run.
        cache: keep all decoded images in memory (for small sets).

    Raises:
        UserError: if a label of the source is none of its classes.
    """

    def __init__(
        self, source: ImageSource, views: Sequence[View], seed: int, cache: bool = False
    ) -> None:
        check_labels(source)
        self._source = source
        self._views = list(views)
        self._seed = seed
        self._cached: list[Pixels | UnreadableImageError] | None = None
        if cache:
            self._cached = [self._decode_or_error(index) for index in range(len(source))]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        """A batch of one: the views of image ``index`` in ``epoch``."""
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch:
        """The views for a list of ``(epoch, index)`` pairs."""
        sizes = [view.config.size for view in self._views]
        tensors = [_empty(len(keys), size) for size in sizes]
        arrays = [tensor.numpy() for tensor in tensors]
        unreadable: list[tuple[int, str]] = []
        gone = False
        shown = np.empty(len(keys), np.int64)
        for row, (epoch, index) in enumerate(keys):
            generator = np.random.default_rng((self._seed, epoch, index))
            image, shown[row] = self._image(epoch, index, unreadable)
            gone |= image is None
            for array, view in zip(arrays, self._views, strict=True):
                if image is None:
                    array[row] = 0
                else:
                    view(image, generator, array[row])
        return Batch(tensors, torch.from_numpy(shown), unreadable, gone)

    def name(self, index: int) -> str:
        """The name of an image, for messages."""
        return self._source.name(index)

    def _image(
        self, epoch: int, index: int, unreadable: list[tuple[int, str]]
    ) -> tuple[Pixels | None, int]:
        """An image or its replacement; None if too many consecutive ones are unreadable.

        Also its index.
        """
        for attempt in range(TRIES):
            try:
                return self._read(index), index
            except UnreadableImageError as error:
                unreadable.append((index, str(error)))
            choice = np.random.default_rng((self._seed, epoch, index, attempt))
            index = int(choice.integers(len(self)))
        return None, index

    def _read(self, index: int) -> Pixels:
        if self._cached is None:
            return image_of(self._source, index)
        cached = self._cached[index]
        if isinstance(cached, UnreadableImageError):
            raise cached
        return cached

    def _decode_or_error(self, index: int) -> Pixels | UnreadableImageError:
        try:
            return image_of(self._source, index)
        except UnreadableImageError as error:
            return error


def _empty(rows: int, size: int) -> Tensor:
    """An empty batch; in a worker process, in shared memory."""
    shape = (rows, size, size, 3)
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    count = rows * size * size * 3
    # As in torch's own collation: no copy to the training process.
    storage: Any = torch.empty(0, dtype=torch.uint8).untyped_storage()
    return torch.empty(0, dtype=torch.uint8).set_(storage._new_shared(count)).view(shape)
