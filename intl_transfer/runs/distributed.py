"""The process group, from the environment of torchrun or SLURM, if any."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from intl_transfer.devices import cannot_start
from intl_transfer.errors import UserError
from intl_transfer.runs.rendezvous import meet, place_in_environment


@dataclass(frozen=True)
class Ranks:
    """This process's place among all processes of the run.

    Attributes:
        rank: global rank, 0 to ``world_size - 1``.
        world_size: number of processes on all nodes.
        local_rank: rank on this node.
        device: of this process. The index of a GPU is that among those this process sees, which
            is not the local rank where the site binds GPUs to tasks.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on global rank 0, the only rank that writes files."""
        return self.rank == 0

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's (small) value, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def gather_numbers(self, own: Sequence[int]) -> list[int]:
        """Non-negative integers of all ranks, on every rank; cheap if there are none.

        Args:
            own: this rank's; any number of them.
        """
        if self.world_size == 1:
            return list(own)
        most = torch.tensor(len(own), device=self.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        length = int(most)
        if not length:
            return []
        padded = torch.tensor([*own, *[-1] * (length - len(own))], device=self.device)
        everyones = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(everyones, padded)
        return [number for number in torch.cat(everyones).tolist() if number >= 0]

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.world_size > 1:
            barrier(self.device)


def barrier(device: torch.device) -> None:
    """Waits for all ranks of the process group.

    Args:
        device: of this rank. NCCL would otherwise take the GPU whose number is the rank's, which is
            another one where nodes have unequal numbers of ranks or tasks see one GPU each.
    """
    # of NCCL alone; gloo refuses it
    dist.barrier(device_ids=[device.index] if device.type == "cuda" else None)


@contextmanager
def process_group(device: str = "auto", timeout_minutes: float = 30) -> Iterator[Ranks]:
    """Joins the process group that torchrun's variables describe, and leaves it at the end.

    Args:
        device: ``"auto"`` (CUDA if available), ``"cpu"`` or ``"cuda"``.
        timeout_minutes: how long a rank waits for the others.

    Yields:
        This process's place. Without ``WORLD_SIZE`` in the environment there is one process.

    Raises:
        UserError: if CUDA is requested and not available, there are more ranks than GPUs on this
            node, several ranks have the same GPU, or torchrun's variables are incomplete.
    """
    world_size = _number("WORLD_SIZE", 1, least=1)
    missing = [
        name
        for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        if world_size > 1 and not os.environ.get(name)
    ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {world_size} but {', '.join(missing)} is not set; start the ranks with "
            "torchrun, or unset WORLD_SIZE for a single process"
        )
    # Of a single process they are what another program has left: rank 3 would write no file.
    several = world_size > 1
    rank = _number("RANK", 0) if several else 0
    local_rank = _number("LOCAL_RANK", 0) if several else 0
    if rank >= world_size:
        expected = f"expected 0 to {world_size - 1}"
        raise UserError(f"RANK is {rank}, and WORLD_SIZE is {world_size}; {expected}")
    ranks = Ranks(rank, world_size, local_rank, _device(device, local_rank))
    if several:
        timeout = timedelta(minutes=timeout_minutes)
        store = _store(ranks, timeout)
        if ranks.device.type == "cuda":
            _check_gpus(ranks, store)
        backend = "nccl" if ranks.device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, timeout=timeout, store=store, rank=rank, world_size=world_size
        )
    try:
        yield ranks
    finally:
        if world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def parallelize(
    module: nn.Module, ranks: Ranks, share_buffers: bool, static: bool = False
) -> DistributedDataParallel:
    """Wraps a module so that its gradients are averaged over ranks.

    Gradients are views of the communication buckets, so they are not copied.

    Args:
        module: the network, already on this rank's device.
        ranks: this process's place.
        share_buffers: send rank 0's buffers (batch-norm statistics) to all before each forward.
        static: whether each forward pass is followed by a backward pass with the same parameters
            every time; unused parameters are then not searched for.
    """
    devices = [ranks.device.index] if ranks.device.type == "cuda" else None
    # torch 2.14 renamed the argument and warns of the old name.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {name: share_buffers}
    return DistributedDataParallel(
        module,
        device_ids=devices,
        gradient_as_bucket_view=True,
        static_graph=static,
        **options,
    )


def _number(name: str, default: int, least: int = 0) -> int:
    """A number in the environment; none if the variable is empty."""
    text = os.environ.get(name, "").strip()
    if text and not (text.isdecimal() and int(text) >= least):
        raise UserError(
            f"{name} is '{text}'; expected a number of at least {least}, as torchrun sets it, or "
            f"no {name} for a single process"
        )
    return int(text) if text else default


def _device(requested: str, local_rank: int) -> torch.device:
    if requested not in ("auto", "cpu", "cuda"):
        raise UserError(f"no device '{requested}'; expected auto, cpu or cuda")
    available = torch.cuda.is_available()
    if requested == "cpu" or (requested == "auto" and not available):
        return torch.device("cpu")
    if not available:
        raise UserError("device is cuda, but torch sees no GPU here; use device=cpu or auto")
    index = gpu_index(local_rank)
    try:
        torch.cuda.set_device(index)  # what starts CUDA
    except Exception as error:
        raise UserError(cannot_start(error)) from None
    return torch.device("cuda", index)


def gpu_index(local_rank: int) -> int:
    """The index of a rank's GPU, among those that this process sees.

    Ranks of torchrun see the same GPUs. Tasks of SLURM may each see their own, one or several
    (``--gpus-per-task``, ``--gpu-bind``): they count through them.

    Args:
        local_rank: rank on this node.

    Raises:
        UserError: if there are more ranks of torchrun than GPUs.
    """
    count = torch.cuda.device_count()
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return local_rank % count
    if local_rank >= count:
        raise UserError(
            f"local rank {local_rank} has no GPU: {count} found on this node; start at most "
            "that many ranks per node"
        )
    return local_rank


def _store(ranks: Ranks, timeout: timedelta) -> Any:
    """The store by which ranks form their process group."""
    rank, world_size, place = ranks.rank, ranks.world_size, place_in_environment()
    if place is not None:
        return meet(place, rank, world_size, os.environ["MASTER_ADDR"])
    store = next(iter(rendezvous("env://", rank, world_size, timeout=timeout)))[0]
    store.set_timeout(timeout)
    return store


def _check_gpus(ranks: Ranks, store: Any) -> None:
    """Refuses ranks that share a GPU: NCCL would fail with a riddle."""
    own = str(torch.cuda.get_device_properties(ranks.device).uuid)
    everyone = range(ranks.world_size)
    store.set(f"gpu/{ranks.rank}", own)
    gpus = [gpu.decode() for gpu in store.multi_get([f"gpu/{rank}" for rank in everyone])]
    # Rank 0 holds the store: it leaves last.
    store.set(f"gpu/known/{ranks.rank}", "")
    if ranks.is_main:
        store.wait([f"gpu/known/{rank}" for rank in everyone])
    same = [str(rank) for rank in everyone if gpus[rank] == own]
    if len(same) > 1:
        raise UserError(
            f"ranks {', '.join(same)} have one GPU ({own}); start at most as many ranks per node "
            "as it has GPUs, and if the site binds GPUs to tasks, give each its own "
            "(--gpu-bind=single:1)"
        )
