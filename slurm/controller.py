"""What SLURM says about jobs: ``squeue``, ``scancel`` and ``scontrol``, and no ``sacct``.

Many sites keep no accounting data base. Nothing here waits without a limit.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from intl_transfer.errors import UserError

#: States in which a job will not run any more; all others are alive.
ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
)
_AT_ONCE = 5  # seconds, where run directories can answer in its place
_TIMEOUT = 30  # seconds that one question may take
_WAITS = (1, 3, 10)  # seconds before it is asked again
_DEFAULT_ARRAY = 1001  # SLURM's own


@dataclass(frozen=True)
class Row:
    """One line of ``squeue``.

    Attributes:
        job: its id, ``12`` or ``12_3``.
        state: ``PENDING``, ``RUNNING``, ``COMPLETED``, ...
        nodes: where it runs.
        reason: why it waits, or why it ended.
        name: the job's name.
    """

    job: str
    state: str
    nodes: str
    reason: str
    name: str

    @property
    def alive(self) -> bool:
        """Whether it runs, or still may."""
        return self.state not in ENDED


def available() -> bool:
    """Whether there is a SLURM to ask."""
    return shutil.which("squeue") is not None


def queue(patient: bool = True) -> dict[str, Row]:
    """This user's jobs, those that ended a short while ago among them, by id.

    Args:
        patient: ask a busy controller again and wait for it; False asks once, for an answer at
            once.

    Raises:
        UserError: if SLURM does not answer, with its own words.
    """
    form = "%i|%T|%N|%r|%j"
    words = ("squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-o", form)
    text = ask(*words) if patient else ask(*words, waits=(), timeout=_AT_ONCE)
    rows = (Row(*line.split("|", 4)) for line in text.splitlines() if line.count("|") >= 4)
    return {row.job: row for row in rows}


def cancel(jobs: Iterable[str]) -> None:
    """Cancels jobs; those that have ended are passed over.

    Raises:
        UserError: if SLURM does not answer.
    """
    wanted = list(jobs)
    for first in range(0, len(wanted), 200):  # a command line has an end
        ask("scancel", "--quiet", *wanted[first : first + 200])


def largest_array() -> int:
    """How many jobs an array may have (``MaxArraySize``)."""
    try:
        found = re.search(r"MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"))
    except UserError:
        found = None
    return max(1, int(found[1])) if found else _DEFAULT_ARRAY


def ask(*command: str, waits: Sequence[float] | None = None, timeout: float = _TIMEOUT) -> str:
    """Runs one of SLURM's commands, several times if the controller is busy; its output.

    Args:
        command: with its arguments.
        waits: seconds before each time that it is asked again; None takes the usual ones.
        timeout: seconds that it may take.

    Raises:
        UserError: with SLURM's own words, if it keeps failing.
    """
    words = ""
    for wait in (*(_WAITS if waits is None else waits), None):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        except FileNotFoundError:
            raise UserError(
                f"`{command[0]}` is not installed here; is this a login node?"
            ) from None
        except subprocess.TimeoutExpired:
            words = f"no answer within {timeout:g} s"
        else:
            if done.returncode == 0:
                return done.stdout
            words = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no reason"
            if "Invalid" in words or "denied" in words:
                break
        if wait is not None:
            time.sleep(wait)
    raise UserError(f"SLURM does not answer `{command[0]}`: {words}; try again later")
