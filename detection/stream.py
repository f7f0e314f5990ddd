"""The training images of one rank as an infinite stream that can start at any iteration."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from detection.images import ImageError, Mapper, Named, OneRankError
from detection.labels import training_records
from intl_transfer.data.loaders import rank_batch_size, worker_options
from intl_transfer.errors import UserError

# Both errors are raised here, and imported from this module.
__all__ = [
    "Examples",
    "ImageError",
    "OneRankError",
    "TrainingStream",
    "build_stream",
    "seed_iteration",
]

# Purposes of random numbers, each with a separate sequence.
_IMAGES, _ITERATIONS, _STATISTICS = 0, 1, 2


class TrainingStream:
    """Batches of one rank in Detectron2's order, depending only on seed and iteration.

    Like Detectron2's loader, it iterates over shuffled copies of the data set (`TrainingSampler`),
    gives every W-th image to each of W ranks, and batches images of one orientation. Unlike it,
    batches are planned from the image sizes before decoding, and the random numbers of augmentation
    depend on the seed and the image's position in the stream. So a resumed run sees bit-identical
    images to an uninterrupted one, with any number of worker processes.

    Args:
        examples: the images; may be shared between streams.
        rows: images per batch of this rank.
        seed: for the order.
        workers: number of worker processes; 0 loads in this process.

    Attributes:
        start: iterations to skip; set before the first batch.
        lists: ids of the images whose labels are used, by training set; empty for a full run.
    """

    lists: Mapping[str, Sequence[str]] = MappingProxyType({})

    def __init__(self, examples: Examples, rows: int, seed: int, workers: int = 0) -> None:
        self._examples, self._rows, self._seed, self._workers = examples, rows, seed, workers
        self.start = 0

    def for_statistics(self) -> TrainingStream:
        """A second stream over the same images, for precise batch-norm statistics."""
        seed = int(np.random.SeedSequence((self._seed, _STATISTICS)).generate_state(1)[0])
        return TrainingStream(self._examples, self._rows, seed, self._workers)

    def plan(self) -> Iterator[tuple[int, int, int]]:
        """This rank's images from ``start`` on, in training order.

        Yields:
            Seed and position, for the augmentation, and index of an image; every ``rows`` of them
            are a batch.
        """
        return itertools.islice(self._batched(), self.start * self._rows, None)

    def _batched(self) -> Iterator[tuple[int, int, int]]:
        rank, ranks = comm.get_rank(), comm.get_world_size()
        waiting: tuple[list[tuple[int, int, int]], ...] = ([], [])
        sampler = TrainingSampler(len(self._examples), seed=self._seed)
        for count, index in enumerate(sampler):
            batch = waiting[self._examples.groups[index]]
            batch.append((self._seed, rank + count * ranks, index))
            if len(batch) == self._rows:
                yield from batch
                batch.clear()

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        # Images are transferred one by one, not as batches: workers share the work on a batch, and
        # little shared memory is needed. One batch is loaded while another is trained on.
        workers = self._workers
        ahead = max(2, -(-self._rows // workers)) if workers else None
        images = iter(
            DataLoader(
                self._examples,
                sampler=self.plan(),
                batch_size=None,
                collate_fn=_as_it_is,
                prefetch_factor=ahead,
                generator=torch.Generator(),  # instead of drawing from training's
                **worker_options(workers),
            )
        )
        while True:
            batch = list(itertools.islice(images, self._rows))
            for image in batch:
                if isinstance(image, ImageError):
                    raise image
            yield batch


class Examples(Dataset[Any]):
    """Training images, prepared for the model.

    Args:
        records: Detectron2's dictionaries, one per image.
        mapper: makes a model's input from a record; may draw from the global generators.
        by_orientation: whether batches contain images of only one orientation.

    Attributes:
        groups: 1 for images wider than high, else 0, if batches are formed by orientation.
    """

    def __init__(self, records: list[dict[str, Any]], mapper: Any, by_orientation: bool) -> None:
        if by_orientation:
            self.groups = [int(record["width"] > record["height"]) for record in records]
        else:
            self.groups = [0] * len(records)
        # Stored as bytes: worker processes share them instead of copying every object.
        self._records = DatasetFromList(records, copy=False)
        self._mapper = Named(mapper)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, place: tuple[int, int, int]) -> dict[str, Any] | ImageError:
        seed, position, index = place
        record = self._records[index]
        with _random_numbers(seed, position):
            return self._mapper(record)


def build_stream(cfg: Any) -> TrainingStream:
    """The stream of this rank for a configuration.

    Raises:
        UserError: if the batch size is not divisible by the number of ranks, or for a sampler other
            than ``TrainingSampler``.
    """
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise UserError(
            f"DATALOADER.SAMPLER_TRAIN is '{cfg.DATALOADER.SAMPLER_TRAIN}'; the published "
            "protocols, and this trainer, use only 'TrainingSampler'"
        )
    records, lists = training_records(cfg)
    examples = Examples(records, Mapper(cfg, True), cfg.DATALOADER.ASPECT_RATIO_GROUPING)
    rows = rank_batch_size(cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size())
    stream = TrainingStream(examples, rows, cfg.SEED, cfg.DATALOADER.NUM_WORKERS)
    stream.lists = lists
    return stream


def seed_iteration(seed: int, iteration: int) -> None:
    """Seeds all generators of this rank for one iteration.

    So its random numbers (proposals, samples of boxes) do not depend on earlier evaluations or
    interruptions.
    """
    words = _words(seed, _ITERATIONS, comm.get_rank(), iteration)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(words)
    random.seed(words.tobytes())


@contextmanager
def _random_numbers(seed: int, position: int) -> Iterator[None]:
    """Seeds the generators for one image; restores the process's afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = _words(seed, _IMAGES, position)
    # Not `torch.manual_seed`, which would set the GPU's generator too.
    torch.default_generator.manual_seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(words)
    random.seed(words.tobytes())
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _words(*numbers: int) -> Any:
    return np.random.SeedSequence(numbers).generate_state(4)


def _as_it_is(example: Any) -> Any:
    return example
