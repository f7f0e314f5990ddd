"""The report of one task of a job, for ``intl-transfer doctor --cluster``.

    python -m intl_transfer.machine.task FOLDER [--slurm]

runs in each task of a job, with torch.distributed's variables set, and writes
``FOLDER/task-RANK.json``: once with the facts of the node, and again, with ``"done": true``, after
the rendezvous. If the rendezvous hangs, the first report remains.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from intl_transfer.command_line import parse
from intl_transfer.errors import first_line
from intl_transfer.runs.atomic import write_json
from intl_transfer.runs.late import LATE_SECONDS, wait_until

#: Time limit of the rendezvous, in seconds.
RENDEZVOUS_SECONDS = 45
_ROUNDS = 20  # writes that are timed
_FLAGS, _ADDRESS = 0x8913, 0x8915  # Linux: SIOCGIFFLAGS, SIOCGIFADDR
_UP, _LOOPBACK = 0x1, 0x8


def main() -> int:
    """Writes this task's report; always returns 0, since the reader evaluates it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder for the reports of the tasks")
    parser.add_argument("--slurm", action="store_true", help="the job runs on SLURM")
    arguments = parse(parser)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    file = arguments.folder / f"task-{rank}.json"
    found: dict[str, Any] = {"rank": rank, "ranks": ranks, "done": False, **node()}
    found["requeue"] = requeue() if arguments.slurm else None
    write_json(file, found)
    found["disk"] = disk(arguments.folder, rank)
    found["rendezvous"] = meet(lambda: neighbor(arguments.folder, rank, ranks))
    write_json(file, {**found, "done": True})
    return 0


def node() -> dict[str, Any]:
    """Cores, GPUs, shared memory and network of this task."""
    from intl_transfer.devices import gpus

    seen = gpus()
    usage = shutil.disk_usage("/dev/shm") if os.path.isdir("/dev/shm") else None
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "CUDA_VISIBLE_DEVICES")
    return {
        "host": socket.gethostname(),
        "cores": sorted(os.sched_getaffinity(0)),
        "gpus": list(seen.names),
        "gpu_problem": seen.problem,
        "shm_free": usage.free if usage else 0,
        "address": resolved(socket.gethostname()),
        "interfaces": interfaces(),
        "environment": {name: os.environ[name] for name in names if name in os.environ},
    }


def resolved(host: str) -> str | None:
    """The IPv4 address of a name, resolved as by gloo; None if there is none."""
    try:
        return socket.gethostbyname(host)
    except OSError:
        return None


def interfaces() -> dict[str, dict[str, Any]]:
    """Network interfaces by name: IPv4 ``address`` or None, ``up``, ``loopback``."""
    import fcntl

    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:

        def query(name: str, question: int) -> bytes | None:
            try:
                request = struct.pack("256s", name.encode()[:15])
                return fcntl.ioctl(probe.fileno(), question, request)
            except OSError:
                return None

        for _, name in socket.if_nameindex():
            address, answer = query(name, _ADDRESS), query(name, _FLAGS)
            flags = struct.unpack("H", answer[16:18])[0] if answer else 0
            found[name] = {
                "address": socket.inet_ntoa(address[20:24]) if address else None,
                "up": bool(flags & _UP),
                "loopback": bool(flags & _LOOPBACK),
            }
    return found


def requeue() -> dict[str, Any]:
    """Whether this job may requeue itself: ``{"allowed", "problem"}``."""
    job = os.environ.get("SLURM_JOB_ID", "")
    try:
        done = subprocess.run(
            ["scontrol", "show", "job", job], capture_output=True, text=True, timeout=30
        )
    except FileNotFoundError:
        return {"allowed": False, "problem": "`scontrol` is not installed on the node"}
    except subprocess.TimeoutExpired:
        return {"allowed": False, "problem": "`scontrol show job` does not answer within 30 s"}
    if done.returncode:
        answer = done.stderr.strip() or "no reason"
        return {"allowed": False, "problem": f"`scontrol show job {job}`: {answer}"}
    allowed = re.search(r"\bRequeue=(\d)", done.stdout)
    return {"allowed": allowed is not None and allowed[1] == "1", "problem": None}


def disk(folder: Path, rank: int) -> dict[str, float]:
    """Milliseconds to write, flush and rename a small file.

    Returns:
        ``median`` and ``most`` of :data:`_ROUNDS` files.
    """
    times = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        partial = folder / f"disk-{rank}.partial"
        with open(partial, "wb") as out:
            out.write(b"x" * 4096)
            out.flush()
            os.fsync(out.fileno())
        partial.rename(folder / f"disk-{rank}")
        times.append(1000 * (time.perf_counter() - began))
    return {"median": statistics.median(times), "most": max(times)}


def neighbor(folder: Path, rank: int, ranks: int) -> float | None:
    """Seconds until another process's file is visible; None if it is not.

    The other is the next task, which wrote its file before the rendezvous; for a single task, a
    child process.
    """
    began = time.perf_counter()
    other = folder / f"disk-{(rank + 1) % ranks}"
    if ranks == 1:
        code = "import os, sys; os.stat(sys.argv[1])"
        done = subprocess.run([sys.executable, "-c", code, str(other)], capture_output=True)
        return time.perf_counter() - began if done.returncode == 0 else None
    if not wait_until(other.exists, folder, LATE_SECONDS):
        return None
    return time.perf_counter() - began


def meet(then: Callable[[], float | None]) -> dict[str, Any]:
    """Runs a rendezvous of all tasks, by gloo and, with GPUs, by NCCL.

    Args:
        then: called after the rendezvous.

    Returns:
        ``seconds`` by backend, ``seen`` (the result of ``then``), and ``problem``: None if there is
        none.
    """
    import torch
    import torch.distributed as dist

    from intl_transfer.runs.distributed import gpu_index
    from intl_transfer.runs.rendezvous import meet as rendezvous
    from intl_transfer.runs.rendezvous import place_in_environment

    ranks = int(os.environ["WORLD_SIZE"])
    found: dict[str, Any] = {"seconds": {}, "seen": None, "problem": None}
    gpu = torch.cuda.device_count() and torch.cuda.is_available()
    for backend in ("gloo", "nccl") if gpu else ("gloo",):
        began = time.perf_counter()
        try:
            device = torch.device("cpu")
            if backend == "nccl":
                index = gpu_index(int(os.environ.get("LOCAL_RANK", "0")))
                device = torch.device("cuda", index)
                torch.cuda.set_device(device)
            limit, place = float(RENDEZVOUS_SECONDS), place_in_environment()
            options: dict[str, Any] = {}
            if place is not None:
                file, rank = place.with_name(f"{place.name}-{backend}"), int(os.environ["RANK"])
                store = rendezvous(file, rank, ranks, os.environ["MASTER_ADDR"], limit, limit / 3)
                options = {"store": store, "rank": rank, "world_size": ranks}
            dist.init_process_group(backend, timeout=timedelta(seconds=limit), **options)
            values = torch.ones(1, device=device)
            dist.all_reduce(values)
            if values.item() != ranks:
                raise RuntimeError(f"{values.item():.0f} of {ranks} tasks were counted")
            found["seconds"][backend] = time.perf_counter() - began
            if backend == "gloo":
                found["seen"] = then()
                dist.barrier()
            dist.destroy_process_group()
        except Exception as error:  # of whatever the network or a library does
            found["problem"] = f"{backend}: {type(error).__name__}: {first_line(error)}"
            break
    return found


if __name__ == "__main__":
    # Threads of a backend that failed may still wait: nothing is left to wait for.
    sys.stdout.flush()
    os._exit(main())
