"""Batches for every rank; the global batch does not depend on the number of ranks."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from intl_transfer.data.datasets import Batch, ViewsDataset
from intl_transfer.errors import UserError


def rank_batch_size(batch_size: int, world_size: int) -> int:
    """The batch size per rank.

    Raises:
        UserError: if the batch size is not divisible by the number of ranks; suggests the nearest
            numbers.
    """
    if batch_size % world_size:
        divisors = [w for w in range(1, batch_size + 1) if batch_size % w == 0]
        below = max(w for w in divisors if w < world_size) if world_size > 1 else 1
        above = [w for w in divisors if w > world_size]
        near = f"{below} or {above[0]}" if above else str(below)
        raise UserError(
            f"{world_size} ranks do not divide the global batch of {batch_size}; the nearest "
            f"numbers of ranks that do: {near}"
        )
    return batch_size // world_size


class GlobalBatchSampler(Sampler[list[tuple[int, int]]]):
    """One rank's share of each global batch of one epoch.

    The order depends only on seed and epoch (a permutation, or the source's ``epoch_order``); rank
    r takes rows r*b to (r+1)*b of each global batch of W*b, so that the global batch is the same
    for any W. The last, incomplete batch is dropped.

    Attributes:
        epoch: set before each epoch.
        start: number of global batches of this epoch to skip, for resuming.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        epoch_order: Callable[[int, int], NDArray[np.int64]] | None = None,
    ) -> None:
        if length < batch_size:
            raise UserError(
                f"{length} images do not fill one global batch of {batch_size}; use a smaller "
                "optim.batch_size or more images"
            )
        self._epoch_order = epoch_order or self._permutation
        self._length, self._batch_size, self._seed = length, batch_size, seed
        self._rows = rank_batch_size(batch_size, world_size)
        self._rank = rank
        self.epoch = 0
        self.start = 0

    @property
    def steps_per_epoch(self) -> int:
        """Number of global batches in an epoch."""
        return self._length // self._batch_size

    def __len__(self) -> int:
        return self.steps_per_epoch - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self._epoch_order(self._seed, self.epoch)
        for step in range(self.start, self.steps_per_epoch):
            first = step * self._batch_size + self._rank * self._rows
            yield [(self.epoch, int(index)) for index in order[first : first + self._rows]]

    def _permutation(self, seed: int, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng((seed, epoch)).permutation(self._length).astype(np.int64)


def build_loader(
    dataset: ViewsDataset, sampler: GlobalBatchSampler, workers: int, pin_memory: bool
) -> DataLoader[Batch]:
    """Builds the loader of one rank's :class:`intl_transfer.data.datasets.Batch`."""
    return DataLoader(
        dataset,
        collate_fn=_as_it_is,  # the dataset makes whole batches
        batch_sampler=sampler,
        pin_memory=pin_memory,
        # Workers must not be recreated between epochs, but they hold a copy of the dataset only:
        # the epoch reaches them with every index.
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers > 0 else None,
        **worker_options(workers),
    )


def on_device(loader: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Prefetches a loader's batches to the GPU.

    Args:
        loader: of batches, in pinned memory if the device is a GPU.
        device: batches are passed through unchanged unless it is a GPU.
    """
    if device.type != "cuda":
        yield from loader
        return
    stream = torch.cuda.Stream(device)
    before: tuple[Batch, torch.cuda.Event] | None = None
    for batch in loader:
        with torch.cuda.stream(stream):
            moved = batch._replace(views=[v.to(device, non_blocking=True) for v in batch.views])
            arrived = stream.record_event()
        if before is not None:
            yield _arrived(*before)
        before = moved, arrived
    if before is not None:
        yield _arrived(*before)


def _arrived(batch: Batch, event: torch.cuda.Event) -> Batch:
    """Makes the current stream, not the host, wait for a batch copied by another stream."""
    present = torch.cuda.current_stream()
    present.wait_event(event)
    for view in batch.views:
        view.record_stream(present)
    return batch


def worker_options(workers: int) -> dict[str, Any]:
    """Arguments for a ``DataLoader`` whose workers leave signals to the training process.

    Args:
        workers: number of worker processes; 0 loads in the training process.

    Returns:
        ``num_workers`` and ``worker_init_fn``.
    """
    if workers == 0:
        return {"num_workers": 0}
    atexit.unregister(_end_workers)  # once is enough
    atexit.register(_end_workers)
    return {"num_workers": workers, "worker_init_fn": _prepare_worker}


def _as_it_is(batch: Any) -> Any:
    return batch


def _prepare_worker(_: int) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    # A scheduler's signal and Ctrl-C reach every process of a job; the training process handles
    # them, and needs its workers until then.
    for number in (signal.SIGINT, signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _end_workers() -> None:
    """Ends worker processes with the training process, before Python waits for them.

    Python ends daemon processes by SIGTERM, which workers ignore, and would wait forever.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would report an error
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
