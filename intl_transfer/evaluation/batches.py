"""Labeled batches: random crops of images, or features computed once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from intl_transfer.data.augment import Pixels
from intl_transfer.data.datasets import ViewsDataset
from intl_transfer.data.loaders import GlobalBatchSampler, build_loader
from intl_transfer.data.roots import located
from intl_transfer.data.source import ImageSource, Subset
from intl_transfer.data.sources import open_source, with_classes_of
from intl_transfer.data.unreadable import Unreadable
from intl_transfer.data.views import View, ViewConfig
from intl_transfer.errors import UserError
from intl_transfer.evaluation.config import DataConfig, interpolation_of
from intl_transfer.runs.controls import ControlConfig, noisy, shuffled
from intl_transfer.runs.distributed import Ranks
from intl_transfer.runs.records import ImageSet

_DRAWN_SEED = 0  # for drawing the labels: the same images for every seed of a run


def open_sets(data: DataConfig, ranks: Ranks) -> tuple[ImageSource, ImageSource, dict[str, str]]:
    """Opens the training and test images.

    Rank 0 lists them first, so that the others find its list.

    Returns:
        Training images, test images, and what the protocol says of the labels: for ``semi`` whether
        they were ``listed`` or ``drawn``.

    Raises:
        UserError: if one does not exist, their classes differ, or a list of images has not the
            share of the labels that ``data.labels_percent`` states.
    """
    if not ranks.is_main:
        ranks.barrier()
    try:
        train = open_source(data.train, data.subset, "data.train", data.exif_orientation)
        test = open_source(data.test, key="data.test", upright=data.exif_orientation)
    finally:
        if ranks.is_main:
            ranks.barrier()
    test = with_classes_of(train, test)
    percent = data.labels_percent
    if percent is None:
        return train, test, {}
    if isinstance(train, Subset) and not train.keeps_classes:
        _check_share(train, percent, data.subset)
        return train, test, {"labels": "listed"}
    if percent < 100:
        train = Subset(train, drawn_labels(train.labels, percent))
    return train, test, {"labels": "drawn"}


def _check_share(listed: Subset, percent: float, listing: str | None) -> None:
    """Refuses a list of another share of the images than stated.

    Shares of single classes are rounded to whole images, in published lists as in
    :func:`drawn_labels`: by less than one image a class.
    """
    share, whole = len(listed), len(listed.source)
    if abs(share - whole * percent / 100) >= len(listed.classes):
        real = 100 * share / whole
        raise UserError(
            f"data.subset={listing} lists {share} of {whole} images, {real:.6g} % of the labels, "
            f"and data.labels_percent is {percent:g}; set data.labels_percent={real:.6g}, or give "
            "another list"
        )


def seen_in_training(places: Mapping[str, str], images: Sequence[ImageSet]) -> str | None:
    """Says that the test images are the training images; None if they are others.

    Args:
        places: of the training and of the test images, by the settings that name them.
        images: the content of both.

    Raises:
        ValueError: if there are not two of each.
    """
    (train, test), (known, tested) = places, images
    where = {os.path.realpath(located(place)) for place in places.values()}
    if len(where) > 1 and (known.digest is None or known.digest != tested.digest):
        return None
    return (
        f"{test}={places[test]} holds the training images ({train}={places[train]}): the accuracy "
        "is not that of unseen images"
    )


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
        percent: percentage of each class's images; halves are rounded to the even number, as since
            the first runs (lists of detection round them up).

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
