"""Queries SLURM by ``squeue``, ``scancel`` and ``scontrol``; not ``sacct``.

Many sites have no accounting database. Every call has a time limit.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from intl_transfer.errors import UserError

#: States in which a job has ended; in all others it is alive.
ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
)
_SHORT_TIMEOUT = 5  # seconds, where run directories can answer instead
_TIMEOUT = 30  # seconds per call
_WAITS = (1, 3, 10)  # seconds before each retry
_DEFAULT_ARRAY = 1001  # SLURM's default
#: Variables that would filter what these commands list or cancel.
_FILTERS = ("SQUEUE_", "SCANCEL_")
#: Within an allocation, variables that describe its job and step; children would take them for
#: their own (the job id of an array, memory per core, binding).
_OF_ALLOCATION = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_", "PMI_", "PMIX_")
#: Of these, what says which controller to talk to, and how.
_OF_CLIENT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_TIME_FORMAT")
#: Variables of sbatch whose names are not their option's.
_OPTIONS = {
    "SBATCH_TIMELIMIT": "time",
    "SBATCH_MEM_PER_NODE": "mem",
    "SBATCH_MEM_PER_CPU": "mem",
    "SBATCH_MEM_PER_GPU": "mem",
    "SBATCH_NO_REQUEUE": "requeue",
}
#: Variables of sbatch that would change what a job is, and which no launcher wants: copies of it,
#: and other GPUs than its number of tasks is made from.
_NEVER = ("ARRAY_INX", "WAIT", "GPUS", "GPUS_PER_NODE", "GPUS_PER_TASK", "GPUS_PER_SOCKET")


@dataclass(frozen=True)
class Row:
    """One line of ``squeue``.

    Attributes:
        job_id: ``12``, or ``12_3`` of an array.
        state: ``PENDING``, ``RUNNING``, ``COMPLETED``, ...
        nodes: the nodes that run it.
        reason: why it waits, or why it ended.
        name: the job's name.
    """

    job_id: str
    state: str
    nodes: str
    reason: str
    name: str

    @property
    def alive(self) -> bool:
        """Whether it is running or may still run."""
        return self.state not in ENDED


def available() -> bool:
    """Whether SLURM is installed here."""
    return shutil.which("squeue") is not None


def queue(patient: bool = True) -> dict[str, Row]:
    """This user's jobs by id, including those that ended recently.

    Args:
        patient: retry if the controller is busy; False tries once, with a short time limit.

    Raises:
        UserError: if SLURM does not answer, with its message.
    """
    form = "%i|%T|%N|%r|%j"
    command = ("squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-o", form)
    text = run(*command) if patient else run(*command, waits=(), timeout=_SHORT_TIMEOUT)
    rows = (Row(*line.split("|", 4)) for line in text.splitlines() if line.count("|") >= 4)
    return {row.job_id: row for row in rows}


def cancel(jobs: Iterable[str]) -> None:
    """Cancels jobs; those that have ended are ignored.

    Raises:
        UserError: if SLURM does not answer.
    """
    job_ids = list(jobs)
    for first in range(0, len(job_ids), 200):  # command lines are limited in length
        run("scancel", "--quiet", *job_ids[first : first + 200])


def largest_array() -> int:
    """The maximum number of jobs in an array (``MaxArraySize``)."""
    try:
        found = re.search(r"MaxArraySize\s*=\s*(\d+)", run("scontrol", "show", "config"))
    except UserError:
        found = None
    return max(1, int(found[1])) if found else _DEFAULT_ARRAY


def hidden(environment: Mapping[str, str], stated: Collection[str]) -> list[str]:
    """Variables that ``sbatch`` must not see.

    It prefers its own variables (``SBATCH_PARTITION``) to what a job's script states, and hands on
    all variables of the job that it is called in.

    Args:
        environment: of this process.
        stated: options in the job's script.
    """
    found = []
    for name, value in environment.items():
        if name.startswith(_OF_ALLOCATION):
            if "SLURM_JOB_ID" in environment and name not in _OF_CLIENT:
                found.append(name)
        elif name.startswith("SBATCH_") and name != "SBATCH_WCKEY":  # submitit states one anyway
            plain = name.removeprefix("SBATCH_")
            option = _OPTIONS.get(name, plain.lower().replace("_", "-"))
            if option in stated or plain in _NEVER or (plain == "GRES" and "gpu" in value):
                found.append(name)
    return found


def run(*command: str, waits: Sequence[float] | None = None, timeout: float = _TIMEOUT) -> str:
    """Runs a SLURM command, with retries if the controller is busy; returns its output.

    Args:
        command: with its arguments.
        waits: seconds before each retry; None for the default.
        timeout: seconds per try.

    Raises:
        UserError: with SLURM's message, if it keeps failing.
    """
    message = ""
    plain = {name: text for name, text in os.environ.items() if not name.startswith(_FILTERS)}
    for wait in (*(_WAITS if waits is None else waits), None):
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout, env=plain
            )
        except FileNotFoundError:
            raise UserError(
                f"`{command[0]}` is not installed here; is this a login node?"
            ) from None
        except subprocess.TimeoutExpired:
            message = f"no answer within {timeout:g} s"
        else:
            if done.returncode == 0:
                return done.stdout
            message = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no reason"
            if "Invalid" in message or "denied" in message:
                break
        if wait is not None:
            time.sleep(wait)
    raise UserError(f"SLURM does not answer `{command[0]}`: {message}; try again later")
