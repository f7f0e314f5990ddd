"""Runs functions in new processes, as ranks of a process group, or a single one that may crash."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from intl_transfer.errors import first_line
from intl_transfer.machine.outcomes import FailedCheckError
from intl_transfer.runs.distributed import barrier


def in_processes(
    function: Callable[..., Any],
    count: int,
    device_type: str,
    arguments: tuple[Any, ...] = (),
    seconds: float = 120,
) -> list[Any]:
    """Calls ``function(rank, device, *arguments)`` in each of some processes.

    They form a process group: NCCL on GPUs, one each, gloo on the CPU.

    Args:
        function: importable; returns a JSON-compatible value.
        count: number of processes.
        device_type: ``cuda`` or ``cpu``.
        arguments: further ones.
        seconds: time limit.

    Returns:
        The results of the ranks, in order.

    Raises:
        FailedCheckError: if one raises, dies, or does not end in time.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="intl-doctor-") as folder:
        processes = [
            context.Process(
                target=_main,
                args=(function, rank, count, device_type, folder, arguments, seconds),
                daemon=True,
            )
            for rank in range(count)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + seconds
        files = [Path(folder) / str(rank) for rank in range(count)]
        try:
            for process in processes:
                process.join(max(0.0, deadline - time.monotonic()))
            late = [rank for rank, process in enumerate(processes) if process.is_alive()]
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                    process.join()
        outcomes = [json.loads(f.read_text()) if f.exists() else None for f in files]
        last_words = [_last_line(Path(folder) / f"{rank}.err") for rank in range(count)]
    results = []
    for rank, outcome in enumerate(outcomes):
        if outcome is not None and not outcome[0]:
            raise FailedCheckError(f"rank {rank} of {count}: {outcome[1]}")
    late = [rank for rank in late if outcomes[rank] is None]
    if late:
        raise FailedCheckError(f"rank {late[0]} of {count} had not ended after {seconds:.0f} s")
    for rank, outcome in enumerate(outcomes):
        if outcome is not None:
            results.append(outcome[1])
        else:
            code = processes[rank].exitcode
            raise FailedCheckError(
                f"rank {rank} of {count} died with exit status {code} ({last_words[rank]})"
            )
    return results


def _last_line(file: Path) -> str:
    lines = file.read_text(errors="replace").splitlines() if file.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "without output")


def _main(
    function: Callable[..., Any],
    rank: int,
    count: int,
    device_type: str,
    folder: str,
    arguments: tuple[Any, ...],
    seconds: float,
) -> None:
    outcome: tuple[bool, Any]
    with open(Path(folder) / f"{rank}.err", "wb") as errors:
        os.dup2(errors.fileno(), 2)  # library warnings would disturb the table
    try:
        device = torch.device(device_type, rank) if device_type == "cuda" else torch.device("cpu")
        if device_type == "cuda":
            torch.cuda.set_device(device)
        else:
            torch.set_num_threads(1)
            # All ranks are on this machine, whatever its name resolves to.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no processes that outlive this one
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "compiled")
        dist.init_process_group(
            "nccl" if device_type == "cuda" else "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=count,
            timeout=timedelta(seconds=seconds),
        )
        outcome = (True, function(rank, device, *arguments))
    except Exception as error:  # reported by the parent
        outcome = (False, f"{type(error).__name__}: {first_line(error)}")
    partial = Path(folder) / f"{rank}.partial"
    partial.write_text(json.dumps(outcome))
    partial.rename(Path(folder) / str(rank))
    if not outcome[0]:
        os._exit(1)  # the others may wait in a collective: exit without cleanup, which could hang
    barrier(device)
    dist.destroy_process_group()
