"""A graph of jobs: missing jobs are submitted; finished and queued ones are not."""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from intl_transfer.errors import UserError
from slurm import controller, executors
from slurm.controller import Row
from slurm.jobs import StageJob
from slurm.ledger import Job, Ledger
from slurm.made import RUNS
from slurm.outcomes import LATE, finished, row_of, settled_status
from slurm.resources import Resources

#: Of sbatch's errors, those after which the controller may have taken the job.
_UNANSWERED = re.compile(r"timed out|unable to contact|zero bytes|connection|communication", re.I)


def missing(ledger: Ledger, jobs: Iterable[Job], rows: dict[str, Row]) -> list[Job]:
    """The jobs that must be submitted, parents before children.

    Like `make`: a parent is run only if a child that needs it is missing, and what was made of
    something that has changed is missing. Queued jobs that can never start because a parent failed
    count as missing.

    Args:
        ledger: contains all of the jobs.
        jobs: parents before children.
        rows: the queue.
    """
    jobs = list(jobs)
    alive = {
        key
        for key, job in ledger.jobs.items()  # a report also waits for jobs of earlier launches
        if (row := row_of(job, rows)) is not None and row.alive
    }
    done, stale = _done_and_stale(ledger, [job for job in jobs if job.key not in alive])
    requested: set[str] = set()
    parents = {key for job in jobs if job.after == "ok" for key in job.parents}
    # From the leaves up: which jobs are needed?
    needed = {job.key for job in jobs if job.key not in parents} | stale
    for job in reversed(jobs):
        if job.key in needed and job.key not in done and job.after == "ok":
            needed.update(job.parents)
    # From the roots down: which are not submitted, or have a parent that is resubmitted?
    for job in jobs:
        again = any(key in requested for key in job.parents)
        pending = job.key in alive and rows[job.job_id or ""].state == "PENDING"
        if job.after == "any":
            open_parents = any(key in requested or key in alive for key in job.parents)
            absent = job.key not in alive and (open_parents or job.key not in done)
            if absent or (pending and again):
                requested.add(job.key)
        elif job.key in needed and (
            (job.key not in alive and job.key not in done) or (pending and again)
        ):
            requested.add(job.key)
    return [job for job in jobs if job.key in requested]


def _done_and_stale(ledger: Ledger, jobs: Iterable[Job]) -> tuple[set[str], set[str]]:
    """Jobs whose result exists, and those that exist of other settings or of others' weights."""
    done: set[str] = set()
    stale: set[str] = set()
    for job in jobs:
        if job.after == "ok" and stale.intersection(job.parents):
            stale.add(job.key)
        elif _done(job, ledger):
            done.add(job.key)
        elif job.changes() or (job.stage == "convert" and Path(job.target).exists()):
            stale.add(job.key)
    return done, stale


def _done(job: Job, ledger: Ledger) -> bool:
    """Whether the job's result exists; allows for a file system that shows it late."""
    if job.changes():
        return False
    if finished(job, ledger):
        return True
    if job.job_id is None or job.stage not in RUNS:
        return False
    # It may have ended just now.
    running = (Path(job.target) / "manifest.json").exists()
    return running and settled_status(Path(job.target), _patience(job)) == "finished"


def _patience(job: Job) -> float:
    """Seconds to wait for a late manifest: 0 if the file is older than that."""
    with contextlib.suppress(OSError):
        age = time.time() - (Path(job.target) / "manifest.json").stat().st_mtime
        return max(0.0, min(LATE, LATE - age))
    return 0.0


def submit(ledger: Ledger, requested: list[Job], rows: dict[str, Row]) -> Iterator[list[Job]]:
    """Submits jobs to SLURM, similar ones as arrays; yields each array once it is queued.

    The ledger is written before and after each submission, so that the jobs of a launcher killed in
    between can be found.

    Args:
        ledger: contains the jobs and their parents.
        requested: parents before children.
        rows: the queue.

    Raises:
        UserError: with SLURM's message, if it rejects a job.
    """
    to_cancel = [
        job.job_id for job in requested if (row := row_of(job, rows)) and row.alive and job.job_id
    ]
    if to_cancel:
        controller.cancel(to_cancel)
    for job in requested:
        job.job_id = None
    limit = controller.largest_array() if len(requested) > 1 else 1
    logs = ledger.folder / "slurm"
    fresh: set[str] = set()
    for group in groups(requested, limit):
        first = group[0]
        dependency = depend(first, ledger, rows, fresh)
        name = f"{plain_title(first)}~{uuid.uuid4().hex[:6]}"
        resources = Resources(**first.resources)
        executor = executors.make_executor(resources, logs, name, dependency)
        ledger.submitting = {"name": name, "keys": [job.key for job in group]}
        ledger.write()
        try:
            submitted = executors.submit(executor, [stage_job(job) for job in group])
        except UserError as error:
            if _UNANSWERED.search(str(error)):  # kept, so that the next launch looks for it
                raise UserError(
                    f"{error}. It may be in the queue all the same: the same command finds it there"
                ) from None
            ledger.submitting = None
            ledger.write()
            raise
        for job, handle in zip(group, submitted, strict=True):
            record(job, str(handle.job_id), str(handle.paths.stdout), name)
        fresh.update(job.key for job in group)
        ledger.submitting = None
        ledger.write()
        yield group


def record(job: Job, job_id: str, log: str, title: str) -> None:
    """Records a submission of a job."""
    job.job_id, job.log, job.title = job_id, log, title
    job.attempts += 1
    job.made_with, job.submitted = job.settings, time.time()
    job.outcome = job.reason = None


def plain_title(job: Job) -> str:
    """The job's name without its unique suffix."""
    return job.title.rsplit("~", 1)[0]


def stage_job(job: Job) -> StageJob:
    """The callable that submitit runs."""
    resources = Resources(**job.resources)
    environment: dict[str, str] = {**resources.environment, "PYTHONUNBUFFERED": "1"}
    script = Path(job.command[1])
    if script.suffix == ".py":  # of a copy of the sources, which precedes the installed ones
        environment = executors.with_sources(environment, script.parents[1])
    return StageJob(
        job.command,
        job.folder,
        resources.max_requeues,
        environment,
        per_node=job.per_node,
        must_finish=job.target if job.must_finish else None,
    )


def groups(requested: list[Job], limit: int) -> list[list[Job]]:
    """Nodes that may share an array: same stage, resources and parents; parents' groups first.

    Args:
        requested: parents before children.
        limit: maximum size of an array.
    """
    depth: dict[str, int] = {}
    found: dict[str, list[Job]] = {}
    for job in requested:
        depth[job.key] = 1 + max((depth.get(key, 0) for key in job.parents), default=0)
        group_key = (
            *(depth[job.key], job.stage, plain_title(job)),
            *(job.resources, job.parents, job.after),
        )
        found.setdefault(repr(group_key), []).append(job)
    ordered = sorted(found.values(), key=lambda group: depth[group[0].key])
    return [
        group[first : first + limit] for group in ordered for first in range(0, len(group), limit)
    ]


def depend(job: Job, ledger: Ledger, rows: dict[str, Row], fresh: set[str]) -> str | None:
    """The job's ``--dependency``: on its parents that are new or still in the queue.

    Args:
        job: the child.
        ledger: contains its parents.
        rows: the queue before this launch submitted anything.
        fresh: keys of the jobs submitted since.
    """
    job_ids = []
    for key in job.parents:
        parent = ledger.jobs.get(key)
        row = row_of(parent, rows) if parent is not None else None
        if parent and parent.job_id and (key in fresh or (row is not None and row.alive)):
            job_ids.append(parent.job_id)
    if not job_ids:
        return None
    if job.after == "any":  # on whole arrays; a list of their jobs would be long
        job_ids = [job_id.split("_")[0] for job_id in job_ids]
    return f"after{job.after}:" + ":".join(dict.fromkeys(job_ids))


def adopt(ledger: Ledger, rows: dict[str, Row] | None) -> None:
    """Finds the jobs of a launcher that died between submitting and recording them.

    Args:
        ledger: changed, but not written.
        rows: the queue; None if it was not asked, so that what is in it stays unknown.
    """
    if ledger.submitting is None or rows is None:
        return
    name, keys = ledger.submitting["name"], ledger.submitting["keys"]
    found = [row for row in rows.values() if row.name == name]
    for row in found:
        index = int(row.job_id.split("_")[1]) if "_" in row.job_id else 0
        if index < len(keys) and keys[index] in ledger.jobs:
            log = ledger.folder / "slurm" / row.job_id / f"{row.job_id}_0_log.out"
            record(ledger.jobs[keys[index]], row.job_id, str(log), name)
    ledger.submitting = None
