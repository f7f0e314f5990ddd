"""Evaluates the reports of a job's tasks: the checks of ``intl-transfer doctor --cluster``."""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intl_transfer.machine.outcomes import Check, Checklist, FailedCheckError, SkippedCheckError
from intl_transfer.runs.directory import read_json_object
from intl_transfer.runs.late import LATE_SECONDS

#: Bytes that one data loading worker may have in /dev/shm: four batches (the loaders' prefetch) of
#: two views of 224 x 224 uint8 pixels of 32 images (a batch of 256 on 8 GPUs).
SHM_OF_WORKER = 4 * 2 * 32 * 3 * 224 * 224

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Requested:
    """The resources requested by the job.

    Attributes:
        tasks: of all nodes.
        cpus: of each task.
        gpus: of each node.
        scheduler: ``slurm`` or ``local``.
    """

    tasks: int
    cpus: int
    gpus: int
    scheduler: str


def read_tasks(folder: Path, tasks: int) -> list[dict[str, Any]]:
    """The available reports, by rank."""
    files = [folder / f"task-{rank}.json" for rank in range(tasks)]
    return [read_json_object(file) for file in files if file.exists()]


def check_tasks(found: Sequence[Facts], requested: Requested) -> list[Check]:
    """The checks of a job.

    Args:
        found: of each task that reported, by rank (see :mod:`.task`).
        requested: resources of the job.
    """
    checklist = Checklist()
    hosts = {task["host"] for task in found}
    place = f"{len(found)} task(s), {len(hosts)} node(s)"

    def check(name: str, function: Callable[[Sequence[Facts], Requested], Any]) -> None:
        def on_all() -> Any:
            if not found:
                raise SkippedCheckError("no task reported")
            return function(found, requested)

        checklist.attempt(name, place, on_all)

    check("tasks", _tasks)
    check("affinity", _affinity)
    if requested.gpus or any(task["gpus"] or task["gpu_problem"] for task in found):
        check("GPUs", _gpus)
    else:
        checklist.leave_out("GPUs", place, "not here", "none was asked for, none is visible")
    check("/dev/shm", _shared_memory)
    check("gloo interface", _gloo)
    if any(task["gpus"] for task in found):
        check("NCCL interface", _nccl)
    else:
        checklist.leave_out("NCCL interface", place, "not here", "no GPU is visible")
    if requested.scheduler == "slurm":
        check("scontrol requeue", _requeue)
    else:
        checklist.leave_out("scontrol requeue", place, "not here", "the job did not run on SLURM")
    check("disk", _disk)
    check("rendezvous", _rendezvous)
    return checklist.checks


def _tasks(found: Sequence[Facts], requested: Requested) -> str:
    if len(found) < requested.tasks:
        raise FailedCheckError(
            f"{len(found)} of {requested.tasks} tasks reported; the job's logs say why"
        )
    return f"{len(found)} of {requested.tasks} reported"


def _affinity(found: Sequence[Facts], requested: Requested) -> tuple[str, str]:
    """Checks the cores of each task, and whether tasks of a node share them."""
    counts = [len(task["cores"]) for task in found]
    figure = f"{_span(counts)} core(s) a task"
    if requested.scheduler != "slurm":
        return figure, "the tasks share this machine"
    few = [task for task in found if len(task["cores"]) < requested.cpus]
    if few:
        worst = min(few, key=lambda task: len(task["cores"]))
        raise FailedCheckError(
            f"{figure}; rank {worst['rank']} on {worst['host']} may use "
            f"{len(worst['cores'])} of the {requested.cpus} that were asked for: it and its "
            "loaders share them. In the profile, srun: [--cpu-bind=none], or fewer cpus_per_gpu"
        )
    for host, tasks in _by_host(found).items():
        cores = set().union(*(task["cores"] for task in tasks))
        if len(cores) < requested.cpus * len(tasks):
            return figure, (
                f"on {host}, {len(tasks)} tasks have {len(cores)} cores together, "
                f"{requested.cpus * len(tasks)} were asked for: the site binds no cores, or counts "
                "hardware threads"
            )
    return figure, ""


def _gpus(found: Sequence[Facts], requested: Requested) -> tuple[str, str]:
    for task in found:
        if task["gpu_problem"]:
            raise FailedCheckError(f"rank {task['rank']} on {task['host']}: {task['gpu_problem']}")
    counts = [len(task["gpus"]) for task in found]
    names = sorted({name for task in found for name in task["gpus"]})
    figure = f"{_span(counts)} a task"
    least = 1 if requested.gpus else 0
    blind = [task for task in found if len(task["gpus"]) < least]
    if blind:
        raise FailedCheckError(
            f"{figure}; rank {blind[0]['rank']} on {blind[0]['host']} sees none, "
            f"{requested.gpus} a node were asked for. Does the site want --gres (gres: gpu:N in "
            "the profile)?"
        )
    return figure, ", ".join(names)


def _shared_memory(found: Sequence[Facts], requested: Requested) -> str:
    """Checks that the workers' batches fit, by :data:`SHM_OF_WORKER`."""
    free = min(task["shm_free"] for task in found)
    figure = f"{free / 2**30:.1f} GiB free"
    for host, tasks in _by_host(found).items():
        needed = len(tasks) * requested.cpus * SHM_OF_WORKER
        least = min(task["shm_free"] for task in tasks)
        if least < needed:
            raise FailedCheckError(
                f"{host} has {least / 2**30:.2f} GiB of /dev/shm free, and {len(tasks)} tasks of "
                f"{requested.cpus} loaders may fill {needed / 2**30:.2f}: they would end by "
                "SIGBUS. Give a container more (--shm-size, --ipc=host), or set data.workers lower"
            )
    return figure


def _gloo(found: Sequence[Facts], requested: Requested) -> tuple[str, str]:
    """Checks the address that gloo announces: that of the node's own name."""
    several = len({task["host"] for task in found}) > 1
    findings = set()
    for task in found:
        chosen = task["environment"].get("GLOO_SOCKET_IFNAME")
        if chosen:
            _exists(task, "GLOO_SOCKET_IFNAME", chosen.split(","), several)
            findings.add(f"GLOO_SOCKET_IFNAME={chosen}")
            continue
        address = task["address"]
        if address is None or ipaddress.ip_address(address).is_loopback:
            words = (
                f"the name {task['host']} resolves to {address or 'nothing'}, where no other node "
                f"can reach it; set GLOO_SOCKET_IFNAME in the profile's environment "
                f"({_candidates(task)})"
            )
            if several:
                raise FailedCheckError(words)
            return f"{task['host']} is {address}", f"enough on one node; on several, {words}"
        findings.add(f"{task['host']} is {address}")
    return ", ".join(sorted(findings)), ""


def _nccl(found: Sequence[Facts], requested: Requested) -> str:
    """Checks the interface of NCCL: ``NCCL_SOCKET_IFNAME``, or any that is up."""
    several = len({task["host"] for task in found}) > 1
    findings = set()
    for task in found:
        chosen = task["environment"].get("NCCL_SOCKET_IFNAME")
        if chosen and not chosen.startswith("^"):  # prefixes, or whole names after "="
            whole, names = chosen.startswith("="), chosen.lstrip("=").split(",")
            fitting = [
                name
                for name in task["interfaces"]
                if (name in names if whole else name.startswith(tuple(names)))
            ]
            _exists(task, "NCCL_SOCKET_IFNAME", fitting or names, several)
            findings.add(f"NCCL_SOCKET_IFNAME={chosen}")
        elif several and not _outward(task):
            raise FailedCheckError(f"{task['host']} has no interface to other nodes that is up")
        else:
            findings.add(", ".join(_outward(task)) or "loopback")
    return "; ".join(sorted(findings))


def _exists(task: Facts, variable: str, names: Sequence[str], several: bool) -> None:
    interfaces = task["interfaces"]
    for name in names:
        if name not in interfaces or not interfaces[name]["up"]:
            state = "down" if name in interfaces else "not there"
            raise FailedCheckError(
                f"{variable} names {name}, which is {state} on {task['host']}; {_candidates(task)}"
            )
        if several and interfaces[name]["loopback"]:
            raise FailedCheckError(
                f"{variable} names {name}, by which no other node can be reached from "
                f"{task['host']}; {_candidates(task)}"
            )


def _candidates(task: Facts) -> str:
    outward = _outward(task)
    if not outward:
        return f"no interface of {task['host']} leads to other nodes"
    listed = ", ".join(f"{name} ({task['interfaces'][name]['address']})" for name in outward)
    return f"interfaces of {task['host']}: {listed}"


def _outward(task: Facts) -> list[str]:
    return [
        name
        for name, interface in task["interfaces"].items()
        if interface["up"] and not interface["loopback"] and interface["address"]
    ]


def _requeue(found: Sequence[Facts], requested: Requested) -> str:
    """Checks that rank 0 can requeue the job from its node."""
    findings = found[0]["requeue"] or {"allowed": False, "problem": "rank 0 did not look"}
    if findings["problem"]:
        raise FailedCheckError(
            f"{findings['problem']}: jobs cannot requeue themselves at a time-out; relaunch them, "
            "or ask the site's administrators"
        )
    if not findings["allowed"]:
        raise FailedCheckError(
            "the site does not let this job be requeued (Requeue=0); give --requeue a chance with "
            "sbatch: {requeue: true} in the profile, or ask the site"
        )
    return "allowed"


def _disk(found: Sequence[Facts], requested: Requested) -> tuple[str, str]:
    """Checks the latency of a small file, and whether another task sees it."""
    ended = [task for task in found if task.get("disk")]
    if not ended:
        raise SkippedCheckError("no task came so far")
    median = max(task["disk"]["median"] for task in ended)
    most = max(task["disk"]["most"] for task in ended)
    figure = f"write, fsync, rename: {median:.1f} ms (median), {most:.1f} ms at most"
    met = [task for task in ended if task["done"] and not task["rendezvous"]["problem"]]
    if not met:
        return figure, "whether others see it is not known: the tasks did not meet"
    seen = [task["rendezvous"]["seen"] for task in met]
    if None in seen:
        raise FailedCheckError(
            f"{figure}; rank {met[seen.index(None)]['rank']} did not see another task's file "
            f"within {LATE_SECONDS:.0f} s: is the output folder on a disk that all nodes share?"
        )
    return f"{figure}; seen by another task after {1000 * max(seen):.0f} ms", ""


def _rendezvous(found: Sequence[Facts], requested: Requested) -> str:
    for task in found:
        if not task["done"]:
            raise FailedCheckError(
                f"rank {task['rank']} on {task['host']} did not end; see gloo interface, NCCL "
                "interface, and the job's logs"
            )
    for task in found:
        if task["rendezvous"]["problem"]:
            raise FailedCheckError(
                f"rank {task['rank']} on {task['host']}: {task['rendezvous']['problem']}; see gloo "
                "interface and NCCL interface"
            )
    backends = found[0]["rendezvous"]["seconds"]
    return ", ".join(
        f"{name} {max(task['rendezvous']['seconds'][name] for task in found):.1f} s"
        for name in backends
    )


def _by_host(found: Iterable[Facts]) -> dict[str, list[Facts]]:
    hosts: dict[str, list[Facts]] = defaultdict(list)
    for task in found:
        hosts[task["host"]].append(task)
    return hosts


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"
