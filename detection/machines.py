"""Starts the processes of a run, also on several machines without GPUs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from detectron2 import engine
from detectron2.engine import defaults
from detectron2.utils import comm
from torch.multiprocessing.spawn import start_processes

from intl_transfer.runs import rendezvous

# Detectron2 gives torch the address; its processes import this module before they do.
rendezvous.register()
_TIMEOUT = timedelta(minutes=30)  # Detectron2's


def launch(
    worker: Callable[..., object],
    gpus: int,
    *,
    num_machines: int,
    machine_rank: int,
    dist_url: str,
    args: tuple[Any, ...],
) -> None:
    """Runs a function in all processes of this machine.

    Detectron2's launcher refuses several machines without GPUs; then, one process per machine is
    started, and they communicate by gloo.

    Args:
        worker: the function.
        gpus: processes on each machine.
        num_machines: number of machines.
        machine_rank: of this one.
        dist_url: rendezvous, an address that torch knows or one of
            :func:`intl_transfer.runs.rendezvous.address_of`; ``auto`` for one machine.
        args: the function's arguments.
    """
    if torch.cuda.is_available() or num_machines == 1:
        engine.launch(worker, gpus, num_machines, machine_rank, dist_url, args)
        return
    start_processes(_worker, (worker, num_machines, machine_rank, dist_url, args), nprocs=1)


def _worker(
    _: int,
    worker: Callable[..., object],
    num_machines: int,
    machine_rank: int,
    dist_url: str,
    args: tuple[Any, ...],
) -> None:
    dist.init_process_group("gloo", dist_url, _TIMEOUT, num_machines, machine_rank)
    groups = [dist.new_group([rank]) for rank in range(num_machines)]
    # As in Detectron2's launcher.
    comm._LOCAL_PROCESS_GROUP = groups[machine_rank]  # type: ignore[assignment]  # it begins as None
    # It would select a GPU.
    defaults.create_ddp_model = functools.partial(defaults.create_ddp_model, device_ids=None)
    comm.synchronize()
    worker(*args)
