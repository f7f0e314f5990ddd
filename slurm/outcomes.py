"""Outcomes of jobs, from the queue and run directories; submitit's pickles are not used."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from intl_transfer.errors import UserError
from intl_transfer.runs import MANIFEST, read_manifest
from intl_transfer.runs.changes import in_lines
from intl_transfer.runs.folders import run_folders
from intl_transfer.runs.late import wait_until
from intl_transfer.runs.lock import holder_alive
from intl_transfer.runs.metrics import end_of, read_lines
from intl_transfer.runs.records import Manifest
from intl_transfer.runs.times import in_seconds
from slurm.controller import Row
from slurm.ledger import Job, Ledger
from slurm.made import RUNS, converted_from, source_hash

#: Seconds until a file written on another node is visible on a shared file system.
LATE = 10.0
_TAIL = 65536  # bytes read from the end of a file
_RAISED = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Exit)\b")
_OURS = re.compile(r"^(?:submitit |Traceback |srun: )")


@dataclass(frozen=True)
class Status:
    """The state of a job.

    Attributes:
        state: ``finished``, ``running``, ``queued``, ``waiting`` (for its parents), ``failed``,
            ``interrupted``, ``cancelled``, ``not submitted``, or ``submitted`` if SLURM does not
            answer and the run directory has no status yet.
        detail: the last error line, or why it waits or was cancelled.
        where: the node that runs it.
    """

    state: str
    detail: str = ""
    where: str = ""

    @property
    def alive(self) -> bool:
        """Whether it is running or queued."""
        return self.state in ("running", "queued", "waiting")

    @property
    def bad(self) -> bool:
        """Whether it ended without a result."""
        return self.state in ("failed", "interrupted", "cancelled")


def finished(job: Job, ledger: Ledger) -> bool:
    """Whether the job's output exists, is complete, and was made from its current source."""
    target = Path(job.target)
    if job.stage == "convert":
        return converted(job.source or "", target)
    if job.stage == "collect":
        return _collected(target, ledger.folder, job.submitted or 0.0)
    return run_status(target) == "finished"


def done(job: Job, ledger: Ledger) -> bool:
    """Whether the job's output is finished and was made with the requested settings."""
    return finished(job, ledger) and not job.changes()


def refusal(job: Job) -> str:
    """Why a job leaves what lies in its place; empty if it was made with its settings."""
    changes = job.changes()
    if not changes:
        return ""
    return (
        f"{job.target} was made with other settings ({in_lines(changes)}); choose another "
        "--output-dir, or remove it"
    )


def run_status(folder: Path) -> str | None:
    """The status in a run's manifest; None if there is no readable manifest (yet)."""
    try:
        return str(read_manifest(folder).status)
    except (UserError, OSError):
        return None


def unsaved(job: Job) -> str:
    """Describes checkpoints that a run could not write; empty if there are none."""
    if job.stage not in RUNS:
        return ""
    try:
        manifest = read_manifest(job.target)
    except (UserError, OSError):
        return ""
    if manifest.failed_save is None:
        return ""
    number = manifest.failed_saves or 1
    saves = "the last save" if number == 1 else f"{number} saves, including the last,"
    return f"{saves} failed: {manifest.failed_save}"


def settled_status(folder: Path, patience: float = LATE) -> str | None:
    """The status of a run whose job has ended, once the file system shows it.

    Args:
        folder: the run directory.
        patience: seconds to wait for a status other than ``running``, which is final for a job
            that was killed.
    """
    wait_until(lambda: run_status(folder) not in (None, "running"), folder, patience)
    return run_status(folder)


def converted(source: str, target: Path) -> bool:
    """Whether a file was converted from the source, or from one that was removed since.

    By the report beside it, which counts only for the file that it is of.
    """
    made = converted_from(target)
    try:
        return made is not None and (not Path(source).exists() or made == source_hash(source))
    except (OSError, UserError):
        return False


def _collected(report: Path, folder: Path, submitted: float) -> bool:
    """Whether the report is newer than all results that it should include (like ``make``).

    These are all below the folder, whichever jobs the newest launch selected, also external ones.
    What is older than the newest submission is of an earlier one, with other options: this one
    failed.
    """
    files = [report] if report.is_file() else [f for f in report.glob("*") if f.is_file()]
    if not files:
        return False
    made = min(file.stat().st_mtime for file in files)
    if made < submitted:
        return False
    return all(
        status.st_mtime <= made
        for _, files in run_folders(folder)
        for name, status in files.items()
        if name != MANIFEST  # of an unfinished run, which has no results yet
    )


def run_directories(path: Path) -> Iterator[Path]:
    """This project's own run directories in a folder and its subfolders."""
    return (folder for folder, files in run_folders(path) if MANIFEST in files)


def status(job: Job, ledger: Ledger, rows: dict[str, Row] | None) -> Status:
    """The state of a job.

    Args:
        job: one of the ledger's.
        ledger: contains it and its parents.
        rows: the queue; None if there is none or SLURM does not answer: the state is then taken
            from the run directory.
    """
    row = row_of(job, rows)
    if row is not None and row.alive:
        if row.state == "PENDING":
            has_reason = row.reason not in ("None", "")  # not yet, right after submission
            parents = _open_parents(job, ledger)
            if row.reason.startswith("Dependency") or (parents and not has_reason):
                return Status("waiting", parents)
            return Status("queued", row.reason if has_reason else "")
        detail = "" if row.state == "RUNNING" else row.state.lower()
        return Status("running", detail or unsaved(job), row.nodes)
    if finished(job, ledger):
        changes = job.changes()
        other = f"made with other settings ({in_lines(changes)})" if changes else ""
        return Status("finished", other)
    if job.outcome == "running" and ledger.launcher_alive() is not False:
        return Status("running", unsaved(job), (ledger.launcher or {}).get("host", ""))
    if job.outcome == "waiting" and ledger.launcher_alive() is not False:
        return Status("waiting", _open_parents(job, ledger) or "for a free slot")
    if ledger.cluster != "slurm" and (holder := holder_of(job)) is not None:
        return Status("running", f"process {holder}; its launcher has ended")
    if job.job_id is None and job.outcome != "cancelled":
        return Status("not submitted")
    if rows is None and ledger.cluster == "slurm":
        return _by_directory(job)
    return _ended_badly(job, ledger, row)


def holder_of(job: Job) -> int | None:
    """The process on this machine that runs a job, by the lock of its run directory."""
    target = Path(job.target)
    if job.stage not in RUNS or run_status(target) != "running":
        return None
    holder = holder_alive(target)
    return holder[0] if holder is not None and holder[1] else None


def _by_directory(job: Job) -> Status:
    """The state of a SLURM job according to its run directory and log."""
    state = run_status(Path(job.target)) if job.stage in RUNS else None
    source = f"job {job.job_id}, according to its run directory"
    if state in ("running", "interrupted", "failed"):
        detail = last_error(job) if state == "failed" else unsaved(job)
        return Status(state, "; ".join(text for text in (detail, source) if text))
    log = "its log has started" if log_files(job) else "no log yet"
    return Status("submitted", f"job {job.job_id}, {log}")


def row_of(job: Job, rows: dict[str, Row] | None) -> Row | None:
    """The job's row in the queue; a row of another name has a recycled id."""
    row = (rows or {}).get(job.job_id or "")
    return row if row is not None and row.name == job.title else None


def _open_parents(job: Job, ledger: Ledger) -> str:
    """``for intl and 3 more``; empty if all parents have finished."""
    keys = _unfinished_parents(job, ledger)
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return f"for {keys[0]}{more}" if keys else ""


def _unfinished_parents(job: Job, ledger: Ledger) -> list[str]:
    """Those that were launched; a report is also of jobs that were not yet (``--only``)."""
    parents = [key for key in job.parents if key in ledger.jobs]
    return [key for key in parents if not done(ledger.jobs[key], ledger)]


def _ended_badly(job: Job, ledger: Ledger, row: Row | None) -> Status:
    state = run_status(Path(job.target)) if job.stage in RUNS else None
    where = row.nodes if row else ""
    if job.outcome == "cancelled":
        return Status("cancelled", job.reason or "")
    if not log_files(job) or (row is not None and row.reason == "DependencyNeverSatisfied"):
        # It never started: SLURM cancels the children of failed jobs.
        failed = _unfinished_parents(job, ledger)
        if failed:
            return Status("cancelled", f"{failed[0]} did not finish")
        if row is not None and row.state == "CANCELLED":
            return Status("cancelled", "before it started")
        return Status("failed", f"no log; {row.state.lower()}" if row else "no log, no job")
    if row is not None and row.state == "CANCELLED":
        return Status("interrupted", "cancelled", where)
    if "interrupted" in (state, job.outcome):
        detail = "; ".join(text for text in (last_error(job), unsaved(job)) if text)
        return Status("interrupted", detail, where)
    detail = last_error(job)
    if row is not None and row.state not in ("FAILED", "COMPLETED"):
        detail = f"{row.state.lower()}: {detail}" if detail else row.state.lower()
    return Status("failed", detail or "no error in the log", where)


def log_files(job: Job) -> list[Path]:
    """Logs of the newest submission: stderr first, then stdout."""
    if job.log is None:
        return []
    out = Path(job.log)
    files = [*sorted(out.parent.glob("*_log.err")), *sorted(out.parent.glob("*_log.out"))]
    mine = out.name.removesuffix("0_log.out")  # ID_, for all tasks
    return [file for file in files if file.name.startswith(mine) and file.stat().st_size]


def last_error(job: Job) -> str:
    """The last error line of the logs, else the last line before the job failed."""
    fallback = ""
    for file in log_files(job):
        lines = [line.rstrip() for line in tail(file).splitlines() if line.strip()]
        own = [line for line in lines if line.startswith("error: ")]
        raised = [line for line in lines if _RAISED.match(line) and "StageFailed" not in line]
        if own or raised:
            return (own or raised)[-1].removeprefix("error: ")
        ends = [line for line in lines if "StageFailedError: " in line]
        if ends and not fallback:
            fallback = ends[-1].split("StageFailedError: ")[-1]
            first = next((i for i, line in enumerate(lines) if _OURS.match(line)), len(lines))
            if first and "launch it again" not in fallback:
                fallback = f"{lines[first - 1]} ({fallback})"
    return fallback


def tail(file: Path) -> str:
    """The end of a text file; empty if it cannot be read."""
    try:
        return end_of(file, _TAIL).decode(errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
        done: fraction done, 0 to 1.
        left: estimated seconds left, at the recent rate; None if there is no rate yet.
        text: in epochs or iterations.
    """

    done: float
    left: float | None
    text: str


def _session_began(manifest: Manifest) -> float:
    """When a run was last started, in Unix seconds; 0 if unknown."""
    started = manifest.sessions[-1].started if manifest.sessions else None
    return in_seconds(started) or 0.0


def progress(folder: Path) -> Progress | None:
    """Progress of a run, from the end of its ``metrics.jsonl``; None if unknown."""
    try:
        manifest = read_manifest(folder)
    except (UserError, OSError):
        return None
    config = manifest.config
    rows = [row for row in read_lines(folder, tail_bytes=_TAIL) if "time" in row]
    began = _session_began(manifest)
    detection = "SOLVER" in config
    unit = "iteration" if detection else "epoch"
    try:
        total = float(config["SOLVER"]["MAX_ITER"] if detection else config["optim"]["epochs"])
    except (KeyError, TypeError, ValueError):
        return None
    counted = [(row["time"], float(row[unit])) for row in rows if unit in row]
    if not counted or total <= 0:
        return None
    # Between two sessions a run waits in the queue; the rate is that of the last one.
    recent = [row for row in counted[-20:] if row[0] >= began] or counted[-1:]
    (then, before), (now, done) = recent[0], recent[-1]
    rate = (done - before) / (now - then) if now > then and done > before else None
    left = (total - done) / rate if rate else None
    text = f"{done:.0f}/{total:.0f}" if detection else f"epoch {done:.1f}/{total:.0f}"
    return Progress(min(1.0, done / total), left, text)
