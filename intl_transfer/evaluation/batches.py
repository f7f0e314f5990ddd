"""Labeled batches: random crops of images, or features computed once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from intl_transfer.data.augment import Pixels
from intl_transfer.data.datasets import ViewsDataset
from intl_transfer.data.loaders import GlobalBatchSampler, build_loader
from intl_transfer.data.source import ImageSource, Subset
from intl_transfer.data.sources import open_source
from intl_transfer.data.unreadable import Unreadable
from intl_transfer.data.views import View, ViewConfig
from intl_transfer.errors import UserError
from intl_transfer.evaluation.config import DataConfig, interpolation_of
from intl_transfer.runs.controls import ControlConfig, noisy, shuffled
from intl_transfer.runs.distributed import Ranks
from intl_transfer.runs.records import ImageSet

_DRAWN_SEED = 0  # for drawing the labels: the same images for every seed of a run


def open_sets(data: DataConfig, ranks: Ranks) -> tuple[ImageSource, ImageSource]:
    """Opens the training and test images.

    Rank 0 lists them first, so that the others find its list.

    Raises:
        UserError: if one does not exist, or their classes differ.
    """
    if not ranks.is_main:
        ranks.barrier()
    try:
        train = open_source(data.train, data.subset, "data.train", data.exif_orientation)
        test = open_source(data.test, key="data.test", upright=data.exif_orientation)
    finally:
        if ranks.is_main:
            ranks.barrier()
    if data.subset is not None and set(train.classes) < set(test.classes):
        numbers = [test.classes.index(name) for name in train.classes]  # a list of classes
        test = Subset(test, np.flatnonzero(np.isin(test.labels, numbers)), train.classes)
    if list(train.classes) != list(test.classes):
        ours, theirs = set(train.classes), set(test.classes)
        only = sorted(ours ^ theirs)
        which = f", of which '{only[0]}' is in one of them only" if only else ", in another order"
        raise UserError(
            f"data.train has {len(train.classes)} classes and data.test {len(test.classes)}"
            f"{which}; expected the same"
        )
    if data.labels_percent is not None and data.subset is None and data.labels_percent < 100:
        train = Subset(train, drawn_labels(train.labels, data.labels_percent))
    return train, test


def described(train: ImageSource, test: ImageSource, ranks: Ranks) -> dict[str, ImageSet]:
    """The content of the data sets, determined by rank 0 for all ranks."""
    found = {}
    if ranks.is_main:
        found = {"train": train.described(), "test": test.described()}
    everyones: list[dict[str, ImageSet]] = ranks.gather_objects(found)
    return everyones[0]


def drawn_labels(labels: NDArray[np.int64], percent: float) -> NDArray[np.int64]:
    """A fixed subset of images of each class, at least one of each.

    Args:
        labels: of all images.
        percent: percentage of each class's images.

    Returns:
        Their indices, in ascending order.
    """
    generator = np.random.default_rng(_DRAWN_SEED)
    chosen = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        count = max(1, round(len(own) * percent / 100))
        chosen.append(generator.permutation(own)[:count])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


class Controlled(ImageSource):
    """A source with a control applied; content and digest remain the source's.

    Args:
        source: the images.
        control: the control.
        seed: of the run.
        trained: whether it is used for training; labels of test images are never shuffled.
    """

    def __init__(
        self, source: ImageSource, control: ControlConfig, seed: int, trained: bool
    ) -> None:
        self._source, self._noise = source, control.noise
        self.classes, self.labels = source.classes, source.labels
        if control.shuffle_labels and trained:
            self.labels = np.array(shuffled(source.labels.tolist(), seed), dtype=np.int64)

    def name(self, index: int) -> str:
        """As the source's."""
        return self._source.name(index)

    def image(self, index: int) -> Pixels:
        """The source's, blended with noise."""
        return noisy(self._source.image(index), self._noise)

    def content(self, index: int) -> bytes:
        """As the source's."""
        return self._source.content(index)

    def epoch_order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """As the source's."""
        return self._source.epoch_order(seed, epoch)


class CroppedImages:
    """Random crops of images, uint8 (B, size, size, 3), with labels; this rank's rows.

    A batch depends only on seed, epoch and index, as in pretraining.

    Args:
        source: the images.
        data: sizes and workers.
        seed: of the run.
        batch_size: total over ranks.
        ranks: this process's place.
    """

    def __init__(
        self, source: ImageSource, data: DataConfig, seed: int, batch_size: int, ranks: Ranks
    ) -> None:
        config = ViewConfig(
            data.size, data.scale_min, blur=0.0, solarize=0.0, jitter=0.0, grayscale=0.0
        )
        view = View(config, interpolation_of(data))
        dataset = ViewsDataset(source, [view], seed, data.cache)
        self.sampler = GlobalBatchSampler(
            *(len(dataset), batch_size, seed, ranks.rank, ranks.world_size, source.epoch_order)
        )
        self._loader = build_loader(
            dataset, self.sampler, data.workers, ranks.device.type == "cuda"
        )
        self._labels = torch.from_numpy(np.ascontiguousarray(source.labels))
        self._unreadable = Unreadable(dataset, data.max_unreadable, ranks)
        self.counts: dict[str, float] = {}

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self._loader:
            self._unreadable.note(batch)
            yield batch.views[0], self._labels[batch.shown]

    def check(self) -> None:
        """Counts unreadable images over all ranks; must be called by all at the same step.

        Raises:
            UserError: if there are too many.
        """
        self._unreadable.check(self.counts)


class Features:
    """Features of all images, on every rank, as batches of this rank's rows.

    Args:
        features: (n, width).
        labels: (n,).
        seed: of the order.
        batch_size: total over ranks.
        ranks: this process's place.
        unreadable: number of images without features.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        seed: int,
        batch_size: int,
        ranks: Ranks,
        unreadable: int = 0,
    ) -> None:
        self._features, self._labels = features, labels
        self.sampler = GlobalBatchSampler(
            *(len(labels), batch_size, seed, ranks.rank, ranks.world_size)
        )
        self.counts: dict[str, float] = {"unreadable_images": unreadable}

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for keys in self.sampler:
            rows = torch.tensor([index for _, index in keys], device=self._features.device)
            yield self._features[rows], self._labels[rows]

    def check(self) -> None:
        """Does nothing: no images are read."""
