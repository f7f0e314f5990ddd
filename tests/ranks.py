"""Runs a function on W ranks, each a process, and returns what every rank returned."""

from __future__ import annotations

import os
import pickle
import socket
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

#: Ranks are forks of one process that has loaded these, which takes most of the time of a start.
_CONTEXT = mp.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch.distributed", "torchvision", "hypothesis", "pytest"])


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """Calls ``function(rank, world_size, *args)`` on every rank of a fresh gloo group."""
    return _returned(_in_group, world_size, function, args)


def run_stage(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """Calls ``function(*args)``, which joins a group itself, on ranks that torchrun describes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return _returned(_as_by_torchrun, world_size, port, function, args)


def _returned(target: Callable[..., None], world_size: int, *args: Any) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            _CONTEXT.Process(target=target, args=(rank, world_size, folder, *args))
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


def _as_by_torchrun(
    rank: int, world_size: int, folder: str, port: int, function: Callable[..., Any], args: Any
) -> None:
    torch.set_num_threads(1)
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in own.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"})
    _write_outcome(rank, folder, function, *args)


def _in_group(
    rank: int, world_size: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]
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
    if _write_outcome(rank, folder, function, rank, world_size, *args):
        dist.barrier()
        dist.destroy_process_group()
    else:
        os._exit(1)  # the other ranks may be waiting in a collective: do not join them


def _write_outcome(rank: int, folder: str, function: Callable[..., Any], *args: Any) -> bool:
    """Leaves what a rank returned or raised for the process that started it."""
    try:
        outcome = (True, function(*args))
    except Exception:
        outcome = (False, traceback.format_exc())
    (Path(folder) / f"{rank}.pkl").write_bytes(pickle.dumps(outcome))
    return outcome[0]
