"""What all launchers share: submits missing jobs, reports them, and waits with ``--wait``."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.runs import write_atomically
from intl_transfer.runs.changes import in_lines
from intl_transfer.runs.lock import directory_lock
from intl_transfer.runs.settings import contrast
from slurm import controller
from slurm.controller import Row
from slurm.executors import check_folder, say, snapshot_beside
from slurm.graph import adopt, missing, submit
from slurm.ledger import SECRET, Job, Ledger, close_to_others
from slurm.local import Local, visible_gpus
from slurm.made import RUNS
from slurm.outcomes import Status, refusal, row_of, settled_status, status
from slurm.plan import Plan

_POLL_SECONDS = 2.0
_SHOWN = 12  # jobs listed by name


def launch(
    folder: Path,
    cluster: str,
    jobs: Iterable[Job],
    wait: bool = False,
    parallel: int | None = None,
) -> int:
    """Submits the missing jobs of a graph, prints their ids and, with ``wait``, their outcomes.

    Args:
        folder: of the ledger and the logs.
        cluster: ``slurm``, ``local`` or ``debug``; the latter two always wait.
        jobs: parents before children.
        wait: wait for all jobs to end, including those that were queued before.
        parallel: maximum number of concurrent jobs on this machine.

    Returns:
        An exit status: 1 if a job ended without a result.

    Raises:
        UserError: if the folder cannot be written or is in use, or SLURM rejects a job.
    """
    with _locked(folder):
        merged = _submitted(folder, cluster, list(jobs), parallel)
    return _ended(merged, cluster, wait)


def launch_copy(
    folder: Path,
    cluster: str,
    made: Callable[[Path], list[Job]],
    root: Path,
    wait: bool = False,
    parallel: int | None = None,
    files: Mapping[str, str] | None = None,
) -> int:
    """Like :func:`launch`, with jobs that run a copy of the sources, made if there is one to run.

    A launch that is refused, since another one is at work or jobs run elsewhere, writes nothing.

    Args:
        folder: of the ledger, the logs and the copy.
        cluster: as for :func:`launch`.
        made: makes the jobs that run the sources in a folder.
        root: the sources.
        wait: as for :func:`launch`.
        parallel: as for :func:`launch`.
        files: texts to write into the folder, by name.
    """
    check_folder(folder / "slurm", cluster)
    with _locked(folder):
        jobs = made(root)
        ledger, rows = _opened(folder, cluster)
        if missing(ledger, ledger.merge(jobs), rows):
            jobs = made(snapshot_beside(folder, root))
        for name, text in (files or {}).items():
            _write_text(folder / name, text)
        merged = _submitted(folder, cluster, jobs, parallel)
    return _ended(merged, cluster, wait)


def launch_plan(
    plan: Plan[Any],
    cluster: str,
    wait: bool = False,
    parallel: int | None = None,
    files: Mapping[str, str] | None = None,
) -> int:
    """Like :func:`launch_copy`, with the jobs of a plan, from a copy of its sources.

    Args:
        plan: with the sources to copy as its ``code``.
        cluster: as for :func:`launch`.
        wait: as for :func:`launch`.
        parallel: as for :func:`launch`.
        files: texts to write into the folder, by name.
    """

    def made(code: Path) -> list[Job]:
        return dataclasses.replace(plan, code=code).jobs()

    return launch_copy(plan.folder, cluster, made, plan.code, wait, parallel, files)


def _write_text(file: Path, text: str) -> None:
    write_atomically(file, lambda out: out.write(text.encode()))


def _locked(folder: Path) -> AbstractContextManager[None]:
    """Excludes other launchers, by the logs' folder: a run in the same folder has its own lock."""
    return directory_lock(folder / "slurm")


def _submitted(
    folder: Path, cluster: str, jobs: list[Job], parallel: int | None
) -> tuple[Ledger, list[Job]] | None:
    """Submits the missing jobs, or runs them here; None if it was stopped."""
    if any(job.resources.get(name) for job in jobs for name in SECRET):
        close_to_others(folder / "slurm")  # batch scripts and pickled jobs contain them
    ledger, rows = _opened(folder, cluster)
    if ledger.jobs:  # those found in the queue among them
        ledger.write()
    merged = ledger.merge(jobs)
    requested = missing(ledger, merged, rows)
    _print_not_submitted(merged, requested, rows)
    for job in requested:
        if changes := job.changes():
            say(f"{job.key}: settings changed ({in_lines(changes)})")
    if not requested:
        say("nothing to submit")
    elif cluster == "slurm":
        for group in submit(ledger, requested, rows):
            _print_submitted(group)
    else:
        try:
            Local(ledger, parallel, visible_gpus()).run(requested)
        except KeyboardInterrupt:
            print("stopped; the same command continues", file=sys.stderr)
            return None
    return ledger, merged


def _ended(merged: tuple[Ledger, list[Job]] | None, cluster: str, wait: bool) -> int:
    """The exit status of a launch, after its jobs' end if that is waited for."""
    if merged is None:
        return 130
    if cluster == "slurm":
        return _wait(*merged) if wait else 0
    return _verdict(*merged, {})


def _opened(folder: Path, cluster: str) -> tuple[Ledger, dict[str, Row]]:
    """A folder's ledger with all of its jobs that are in SLURM's queue, and the queue.

    The queue is read if the ledger's jobs may be there, also to launch elsewhere now.

    Raises:
        UserError: if they are, and it is to launch elsewhere.
    """
    ledger = Ledger.read(folder) or Ledger(folder, cluster)
    rows = None
    if cluster == "slurm" or (ledger.cluster == "slurm" and controller.available()):
        rows = controller.queue()
    adopt(ledger, rows)
    _check_cluster(ledger, cluster, rows or {})
    ledger.cluster = cluster
    return ledger, rows or {}


def _check_cluster(ledger: Ledger, cluster: str, rows: dict[str, Row]) -> None:
    """Refuses to run the same jobs in two places at once."""
    if ledger.cluster == cluster:
        return
    alive = [n.key for n in ledger.jobs.values() if (row := row_of(n, rows)) and row.alive]
    if ledger.cluster == "slurm" and alive:
        raise UserError(
            f"{ledger.folder}: {len(alive)} job(s) are in SLURM's queue, the first: {alive[0]}. "
            "Wait for them, or cancel them with `python slurm/status.py --cancel`"
        )
    for job in ledger.jobs.values():
        job.job_id = job.outcome = job.reason = None


def _print_not_submitted(jobs: list[Job], requested: list[Job], rows: dict[str, Row]) -> None:
    keys = {job.key for job in requested}
    for state, title in (("finished", "already finished"), ("alive", "already in the queue")):
        found = []
        for job in jobs:
            if job.key in keys:
                continue
            row = row_of(job, rows)
            alive = row is not None and row.alive
            if (state == "alive") == alive:
                found.append(f"{job.key} as job {job.job_id}" if alive else job.key)
        if found:
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            say(f"{title}: {', '.join(found[:_SHOWN])}{more}")
    for job in jobs:
        row = row_of(job, rows)
        if job.key in keys or row is None or not row.alive or job.made_with is None:
            continue
        if changes := contrast(job.made_with, job.settings):
            say(
                f"{job.key}: job {job.job_id} stays in the queue as it was submitted, with other "
                f"settings ({in_lines(changes)}). For the new ones, cancel it (python "
                "slurm/status.py --cancel) and launch again"
            )


def _print_submitted(group: list[Job]) -> None:
    for job in group[:_SHOWN]:
        say(f"job {job.job_id}: {job.target}; log: {job.log}")
    if len(group) > _SHOWN:
        last = group[-1]
        say(f"... {len(group) - _SHOWN} more, to job {last.job_id}: {last.target}")


def _wait(ledger: Ledger, jobs: list[Job]) -> int:
    """Waits until no job is left in the queue; prints each outcome."""
    reported: set[str] = set()
    while True:
        rows = controller.queue()
        open_jobs = [n for n in jobs if (row := row_of(n, rows)) is not None and row.alive]
        open_keys = {job.key for job in open_jobs}
        for job in jobs:
            if job.key not in open_keys and job.key not in reported and job.job_id is not None:
                reported.add(job.key)
                if len(jobs) > 1 and open_keys:
                    found = _final(job, ledger, rows)
                    say(f"({len(reported)}/{len(jobs)}) {job.key}: {_text(found)}")
        if not open_jobs:
            return _verdict(ledger, jobs, rows)
        time.sleep(_POLL_SECONDS)


def _final(job: Job, ledger: Ledger, rows: dict[str, Row]) -> Status:
    """The outcome of a job that has ended, once the file system shows it."""
    if job.stage in RUNS and Path(job.target).exists():
        settled_status(Path(job.target))
    found = status(job, ledger, rows)
    if found.state == "finished" and (reason := refusal(job)):
        return Status("failed", reason)
    return found


def _verdict(ledger: Ledger, jobs: list[Job], rows: dict[str, Row]) -> int:
    found = {job.key: _final(job, ledger, rows) for job in jobs}
    for job in jobs:
        state = found[job.key]
        if job.job_id is not None or state.bad:
            say(f"job {job.job_id}: {_text(state)}" + (f" ({job.key})" if len(jobs) > 1 else ""))
    if len(jobs) > 1:
        counts = Counter(state.state for state in found.values())
        say(", ".join(f"{number} {state}" for state, number in counts.items()))
    good = {"finished"} if any(job.must_finish for job in jobs) else {"finished", "interrupted"}
    return 0 if all(state.state in good for state in found.values()) else 1


def _text(state: Status) -> str:
    return f"{state.state}, {state.detail}" if state.detail else state.state
