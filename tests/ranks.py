"""Runs a function on W gloo ranks, each a process, and returns what every rank returned."""

from __future__ import annotations

import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """Calls ``function(rank, world_size, *args)`` on every rank of a fresh gloo group."""
    with tempfile.TemporaryDirectory() as folder:
        context = mp.get_context("spawn")
        processes = [
            context.Process(target=_main, args=(function, rank, world_size, folder, args))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        results = []
        for rank, process in enumerate(processes):
            file = Path(folder) / f"{rank}.pkl"
            assert file.exists(), f"rank {rank} died with exit code {process.exitcode}"
            ok, value = pickle.loads(file.read_bytes())
            assert ok, f"rank {rank} raised:\n{value}"
            results.append(value)
        return results


def _main(
    function: Callable[..., Any], rank: int, world_size: int, folder: str, args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=120),
    )
    try:
        outcome = (True, function(rank, world_size, *args))
    except Exception:
        outcome = (False, traceback.format_exc())
    (Path(folder) / f"{rank}.pkl").write_bytes(pickle.dumps(outcome))
    if outcome[0]:
        dist.barrier()
        dist.destroy_process_group()
    else:
        os._exit(1)  # the other ranks may be waiting in a collective: do not join them
