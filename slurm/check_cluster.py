"""Checks a cluster by a two-minute job, as `intl-transfer doctor --cluster`.

    python slurm/check_cluster.py --profile mysite
    python slurm/check_cluster.py --cluster local

Each task of the job says which cores, GPUs, memory, network and disk it has, and whether it meets
the others. Nodes, tasks and cores are the profile's, as training would have them; at least two
tasks.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

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
from slurm.outcomes import LATE
from slurm.resources import Resources, add_arguments, given_options, resources, tasks_per_node

ROOT = Path(__file__).resolve().parents[1]
_MINUTES = 2  # of the job
_LONGEST = 180  # seconds until a job that runs must have reported
_FAREWELL = 10  # seconds that a job has to end once all tasks have reported
_POLL_SECONDS = 0.2


def main() -> int:
    """Reads the command line, runs the job, prints the checks; returns 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("runs/doctor"),
        help="on the runs' disk; a folder is made in it, and removed if all is well",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument(
        "--queue-minutes", type=float, default=15, help="how long the job may wait in the queue"
    )
    add_arguments(parser)
    arguments = parser.parse_args()
    with Boundary() as boundary:
        boundary.status = check(arguments)
    return boundary.status


def check(arguments: argparse.Namespace) -> int:
    """Runs the job and judges what its tasks found."""
    wanted = small_job(resources(arguments), given_options(arguments))
    folder = (arguments.output_dir / time.strftime("%Y%m%d-%H%M%S")).resolve()
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror or error})") from None
    tasks = wanted.nodes * tasks_per_node(wanted)
    if not arguments.json:
        say(f"{wanted.cluster}: {tasks} task(s) on {wanted.nodes} node(s); {folder}")
    job = submit_tasks(wanted, folder)
    try:
        wait(job, wanted, folder, tasks, arguments.queue_minutes)
        leave = time.monotonic() + _FAREWELL
        while not state(job, wanted).ended and time.monotonic() < leave:
            time.sleep(_POLL_SECONDS)
    finally:
        end(job, wanted)
    asked = Requested(tasks, wanted.cpus_per_gpu, wanted.gpus_per_node, wanted.cluster)
    checks = check_tasks(read_tasks(folder, tasks), asked)
    if arguments.json:
        print(json.dumps(as_json(checks)))
    else:
        show(checks)
    if any(check.outcome == "failed" for check in checks):
        print(f"logs: {folder / 'slurm'}", file=sys.stderr)
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def small_job(wanted: Resources, asked: dict[str, Any]) -> Resources:
    """The profile's job, but short, with at least two tasks, and no more GPUs than are here."""
    wanted.time = asked.get("time", _MINUTES)
    wanted.signal_seconds = asked.get("signal_seconds", 10)
    if wanted.cluster != "slurm":
        wanted = fit(wanted, len(visible_gpus()))
    if wanted.nodes * tasks_per_node(wanted) < 2 and wanted.ranks_per_node is None:
        wanted.ranks_per_node = 2 if wanted.gpus_per_node < 2 else None
    return wanted


def submit_tasks(wanted: Resources, folder: Path) -> submitit.Job[str]:
    """Submits the job; gives back submitit's."""
    command = [sys.executable, "-m", "intl_transfer.machine.task", str(folder)]
    command += ["--slurm"] if wanted.cluster == "slurm" else []
    environment = with_sources(wanted.environment, ROOT)
    work = StageJob(command, str(Path.cwd()), max_requeues=0, environment=environment)
    executor = make_executor(wanted, folder / "slurm", "intl-doctor")
    return submit(executor, [work])[0]


class State(NamedTuple):
    """How the job stands: over, in the queue, and why."""

    ended: bool
    pending: bool = False
    reason: str = ""


def state(job: submitit.Job[str], wanted: Resources) -> State:
    """Asks the queue, and on this machine the process; never ``sacct``, which many sites lack."""
    if wanted.cluster != "slurm":
        return State(job.done())
    row = controller.queue().get(str(job.job_id))
    if row is None or not row.alive:
        return State(True)
    return State(False, row.state == "PENDING", row.reason)


def end(job: submitit.Job[str], wanted: Resources) -> None:
    """Ends the job, if it has not ended."""
    if wanted.cluster == "slurm":
        controller.cancel([str(job.job_id)])
    elif not job.done():
        job.cancel(check=False)


def wait(
    job: submitit.Job[str], wanted: Resources, folder: Path, tasks: int, queue_minutes: float
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
        ended, pending, reason = state(job, wanted)
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
                "is cancelled; ask for less (--nodes 1), or wait longer with --queue-minutes"
            )
        time.sleep(_POLL_SECONDS if wanted.cluster != "slurm" else 5 * _POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
