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
from intl_transfer.data.source import ImageSource
from intl_transfer.data.views import View

#: After this many unreadable images in a row a data set is taken to have gone.
TRIES = 16


class Batch(NamedTuple):
    """One rank's rows of a global batch.

    Attributes:
        views: V uint8 tensors (n, size, size, 3).
        shown: index of the image that each row shows, int64 (n,).
        unreadable: (index, reason) of every image that could not be decoded.
        gone: whether so many in a row could not that the row is left black.
    """

    views: list[Tensor]
    shown: Tensor
    unreadable: list[tuple[int, str]]
    gone: bool


class ViewsDataset(Dataset[Batch]):
    """Views of images, each drawn from a random stream of its own.

    Items are asked for by ``(epoch, index)``. The views depend on the seed, the epoch and the
    index alone, not on which worker or rank draws them nor on what was drawn before, so that a
    resumed run and a run on another number of ranks see the same images. That holds for damaged
    files too: another image takes the place of one that cannot be read, chosen by the same three
    numbers, so that all ranks agree on the global batch.

    Args:
        source: the images.
        views: one transformation per view.
        seed: of the run.
        cache: keep all decoded images in memory (for small sets).
    """

    def __init__(
        self, source: ImageSource, views: Sequence[View], seed: int, cache: bool = False
    ) -> None:
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
        """The views of the images that ``(epoch, index)`` pairs name."""
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
        """What to call an image in a message."""
        return self._source.name(index)

    def _image(
        self, epoch: int, index: int, unreadable: list[tuple[int, str]]
    ) -> tuple[Pixels | None, int]:
        """An image, or one in its place; None where too many in a row cannot be read.

        With it the index of the image that it is.
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
            return self._source.image(index)
        cached = self._cached[index]
        if isinstance(cached, UnreadableImageError):
            raise cached
        return cached

    def _decode_or_error(self, index: int) -> Pixels | UnreadableImageError:
        try:
            return self._source.image(index)
        except UnreadableImageError as error:
            return error


def _empty(rows: int, size: int) -> Tensor:
    """A batch to fill; in a loading process, in memory that the training process sees as well."""
    shape = (rows, size, size, 3)
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    count = rows * size * size * 3
    # As torch's own collation does it: no copy on the way to the training process.
    storage: Any = torch.empty(0, dtype=torch.uint8).untyped_storage()
    return torch.empty(0, dtype=torch.uint8).set_(storage._new_shared(count)).view(shape)
