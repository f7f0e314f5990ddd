"""Checks a cluster with a two-minute job, as `intl-transfer doctor --cluster`.

    python slurm/check_cluster.py --profile mysite
    python slurm/check_cluster.py --cluster local

Each task of the job reports its cores, GPUs, memory, network and disk, and whether it can reach the
others. Nodes, tasks and cores are those of the profile, as for training, with at least two tasks.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

import submitit

from intl_transfer.boundary import Boundary
from intl_transfer.errors import UserError
from intl_transfer.machine.cluster import Requested, check_tasks, read_tasks
from intl_transfer.machine.outcomes import as_json, show
from intl_transfer.runs.late import wait_until
from slurm import controller
from slurm.executors import make_executor, say, submit, with_sources
from slurm.jobs import StageJob
from slurm.local import fit, visible_gpus
from slurm.module import command as of_module
from slurm.options import make_parser, parsed
from slurm.outcomes import LATE
from slurm.resources import Resources, add_arguments, resources, tasks_per_node

ROOT = Path(__file__).resolve().parents[1]
_MINUTES = 2  # of the job
_SIGNAL = 10  # seconds before the time limit at which it is signaled
_LONGEST = 180  # seconds for a running job to report
_ENDING = 10  # seconds for a job to end once all tasks have reported
_POLL_SECONDS = 0.2


def main() -> int:
    """Reads the command line, runs the job, prints the checks; returns 1 if one failed."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("runs/doctor"),
        help="a folder on the file system of the runs, for temporary files (default: runs/doctor)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--queue-minutes", type=float, default=15, help="maximum time in the queue (default: 15)"
    )
    add_arguments(parser)
    arguments = parsed(parser)
    with Boundary() as boundary:
        boundary.status = check(arguments)
    return boundary.status


def check(arguments: argparse.Namespace) -> int:
    """Runs the job and evaluates its tasks' reports."""
    # Whatever the profile says.
    if arguments.time is None:
        arguments.time = _MINUTES
    if arguments.signal_seconds is None:
        arguments.signal_seconds = _SIGNAL
    requested = small_job(resources(arguments))
    folder = (arguments.output_dir / time.strftime("%Y%m%d-%H%M%S")).resolve()
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be created ({error.strerror or error})") from None
    tasks = requested.nodes * tasks_per_node(requested)
    if not arguments.json:
        say(f"{requested.cluster}: {tasks} task(s) on {requested.nodes} node(s); {folder}")
    job = submit_tasks(requested, folder)
    try:
        wait(job, requested, folder, tasks, arguments.queue_minutes)
        deadline = time.monotonic() + _ENDING
        while not state(job, requested).ended and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
    finally:
        end(job, requested)
    expected = Requested(tasks, requested.cpus_per_gpu, requested.gpus_per_node, requested.cluster)
    checks = check_tasks(read_tasks(folder, tasks), expected)
    if arguments.json:
        print(json.dumps(as_json(checks)))
    else:
        show(checks)
    if any(check.outcome == "failed" for check in checks):
        print(f"logs: {folder / 'slurm'}", file=sys.stderr)
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def small_job(requested: Resources) -> Resources:
    """The job with at least two tasks, and no more GPUs than there are."""
    if requested.cluster != "slurm":
        requested = fit(requested, len(visible_gpus()))
    if requested.nodes * tasks_per_node(requested) < 2 and requested.ranks_per_node is None:
        requested.ranks_per_node = 2 if requested.gpus_per_node < 2 else None
    return requested


def submit_tasks(requested: Resources, folder: Path) -> submitit.Job[str]:
    """Submits the job; returns submitit's."""
    command = [*of_module(ROOT, "intl_transfer.machine.task"), str(folder)]
    command += ["--slurm"] if requested.cluster == "slurm" else []
    environment = with_sources(requested.environment, ROOT)
    work = StageJob(command, str(Path.cwd()), max_requeues=0, environment=environment)
    executor = make_executor(requested, folder / "slurm", "intl-doctor")
    return submit(executor, [work])[0]


class State(NamedTuple):
    """The state of the job: ended, or pending and why."""

    ended: bool
    pending: bool = False
    reason: str = ""


def state(job: submitit.Job[str], requested: Resources) -> State:
    """Queries the queue, or the process on this machine; not ``sacct``, which many sites lack."""
    if requested.cluster != "slurm":
        return State(job.done())
    row = controller.queue().get(str(job.job_id))
    if row is None or not row.alive:
        return State(True)
    return State(False, row.state == "PENDING", row.reason)


def end(job: submitit.Job[str], requested: Resources) -> None:
    """Ends the job, if it has not ended."""
    if requested.cluster == "slurm":
        controller.cancel([str(job.job_id)])
    elif not job.done():
        job.cancel(check=False)


def wait(
    job: submitit.Job[str], requested: Resources, folder: Path, tasks: int, queue_minutes: float
) -> None:
    """Waits until all tasks have reported, or the job has ended.

    Raises:
        UserError: if the job does not leave the queue in time.
    """
    deadline = time.monotonic() + 60 * queue_minutes
    started = None

    def reported() -> bool:
        found = read_tasks(folder, tasks)
        return len(found) == tasks and all(task["done"] for task in found)

    while not reported():
        ended, pending, reason = state(job, requested)
        if ended:
            wait_until(reported, folder, LATE)
            return
        if not pending:
            started = started or time.monotonic()
            if time.monotonic() - started > _LONGEST:
                return
        elif time.monotonic() > deadline:
            raise UserError(
                f"job {job.job_id} was in the queue for {queue_minutes:g} minutes ({reason}) and "
                "was cancelled; request less (--nodes 1), or wait longer (--queue-minutes)"
            )
        time.sleep(_POLL_SECONDS if requested.cluster != "slurm" else 5 * _POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
