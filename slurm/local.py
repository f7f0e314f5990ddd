"""Runs a graph of jobs on this machine, a few at a time, each on its own GPUs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import submitit

from intl_transfer.errors import UserError
from intl_transfer.runs.progress import timed
from slurm import executors
from slurm.graph import plain_title, record, stage_job
from slurm.ledger import Job, Ledger, who
from slurm.made import RUNS
from slurm.outcomes import done, finished, last_error, progress, refusal
from slurm.resources import Resources

_POLL_SECONDS = 0.2
_REPORT_SECONDS = 10
_STUCK_SECONDS = 30  # until the other ranks are killed after one has failed
_PATIENCE = 600  # seconds for a run to save when it is stopped


def visible_gpus() -> list[str]:
    """The GPUs that jobs may use, as ``CUDA_VISIBLE_DEVICES`` names them: by number or by UUID."""
    import torch

    count = torch.cuda.device_count()  # of those in the variable that are there
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [word.strip() for word in named.split(",")][:count]
    return [str(index) for index in range(count)]


def fit(requested: Resources, gpus: int | None) -> Resources:
    """Limits a job to this machine's GPUs; batch sizes are global, so results do not change.

    Args:
        requested: resources of the job.
        gpus: number of GPUs here; None for jobs that run elsewhere.
    """
    if gpus is None or requested.gpus_per_node <= gpus:
        return requested
    return replace(requested, gpus_per_node=gpus, gres=None)


@dataclass
class _Running:
    handle: submitit.Job[str]
    gpus: list[str]
    failed_since: float | None = None


@dataclass
class Local:
    """Runs jobs once their parents have finished; cancels jobs whose parents failed.

    Attributes:
        ledger: written at every change, for ``status.py``.
        parallel: maximum number of concurrent jobs; None for as many as the GPUs allow, or one
            without GPUs.
        gpus: the GPUs to use, by number or UUID.
    """

    ledger: Ledger
    parallel: int | None = None
    gpus: list[str] = field(default_factory=list)

    def run(self, requested: list[Job]) -> None:
        """Runs all jobs.

        Args:
            requested: parents before children.

        Raises:
            UserError: if a job needs more GPUs than there are.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once all jobs have saved.
        """
        most = max((job.resources["gpus_per_node"] for job in requested), default=0)
        if most > len(self.gpus):
            raise UserError(f"a job needs {most} GPU(s); this machine has {len(self.gpus)}")
        limit = self.parallel or (max(1, len(self.gpus) // most) if most else 1)
        self._limit, self._free = limit, list(self.gpus)
        waiting, running = list(requested), dict[str, _Running]()
        for job in waiting:
            job.outcome, job.reason, job.job_id = "waiting", None, None
        self.ledger.launcher = who()
        self.ledger.write()
        shown = time.monotonic()
        with _sigterm_as_interrupt():
            try:
                while waiting or running:
                    self._cancel_hopeless(waiting, running)
                    self._start_ready(waiting, running)
                    time.sleep(_POLL_SECONDS)
                    for key in [key for key, item in running.items() if self._ended(item)]:
                        self._reap(key, running, waiting)
                    if running and time.monotonic() - shown > _REPORT_SECONDS:
                        shown = time.monotonic()
                        lines = "; ".join(map(self._line, running))
                        executors.say(timed(f"    {lines}"))
            finally:
                self._stop(running)
                for job in waiting:
                    job.outcome = "cancelled" if job.outcome == "waiting" else job.outcome
                    job.reason = job.reason or "the launcher was stopped"
                self.ledger.launcher = None
                self.ledger.write()

    def _cancel_hopeless(self, waiting: list[Job], running: dict[str, _Running]) -> None:
        for job in list(waiting):
            open_keys = {other.key for other in waiting} | running.keys()
            if job.after == "any" or open_keys & set(job.parents):
                continue
            for key in job.parents:
                if not done(self.ledger.jobs[key], self.ledger):
                    waiting.remove(job)
                    job.outcome, job.reason = "cancelled", f"{key} did not finish"
                    self.ledger.write()
                    executors.say(f"{job.key}: cancelled, {job.reason}")
                    break

    def _start_ready(self, waiting: list[Job], running: dict[str, _Running]) -> None:
        for job in list(waiting):
            if len(running) >= self._limit:
                return
            open_keys = {other.key for other in waiting} | running.keys()
            needed = job.resources["gpus_per_node"]
            if open_keys & set(job.parents) or needed > len(self._free):
                continue
            gpus, self._free = self._free[:needed], self._free[needed:]
            waiting.remove(job)
            running[job.key] = _Running(self._submit(job, gpus), gpus)

    def _submit(self, job: Job, gpus: list[str]) -> submitit.Job[str]:
        resources = Resources(**job.resources)
        work = stage_job(job)
        threads = max(1, len(os.sched_getaffinity(0)) // self._limit)
        # Threads that busy-wait slow down the other jobs.
        quiet = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        preset = {name: os.environ[name] for name in quiet if name in os.environ}
        # A job without GPUs would otherwise take the first one, which is another job's.
        seen = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if self.gpus else {}
        work.environment = {**quiet, **preset, **work.environment, **seen}
        title = plain_title(job)
        executor = executors.make_executor(resources, self.ledger.folder / "slurm", title)
        # Ctrl-C is handled by this process, which forwards it in order.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            (handle,) = executors.submit(executor, [work])
        finally:
            signal.signal(signal.SIGINT, before)
        record(job, str(handle.job_id), str(handle.paths.stdout), title)
        job.outcome = "running"
        self.ledger.write()
        executors.say(f"job {handle.job_id}: {job.target}; log: {handle.paths.stdout}")
        return handle

    def _ended(self, item: _Running) -> bool:
        if isinstance(item.handle, submitit.DebugJob):
            return True  # it runs when its result is requested
        if item.handle.done():
            return True
        # If a rank has failed, the others wait for it.
        if _failed(item.handle):
            item.failed_since = item.failed_since or time.monotonic()
            if time.monotonic() - item.failed_since > _STUCK_SECONDS:
                _signal(item.handle, signal.SIGINT)  # submitit's controller then kills its tasks
        return False

    def _reap(self, key: str, running: dict[str, _Running], waiting: list[Job]) -> None:
        item, job = running.pop(key), self.ledger.jobs[key]
        self._free += item.gpus
        result = _result(item.handle)
        if result == "finished" and job.stage in RUNS:
            job.outcome = "finished" if finished(job, self.ledger) else "interrupted"
        elif result == "finished":
            job.outcome = "finished" if finished(job, self.ledger) else "failed"
        else:
            job.outcome = result
        if result == "interrupted" and job.attempts <= job.resources["max_requeues"]:
            executors.say(f"{key}: saved at its time limit; continuing")
            job.outcome = "waiting"
            waiting.insert(0, job)
        else:
            detail = "" if job.outcome == "finished" else refusal(job) or last_error(job)
            executors.say(f"{key}: {job.outcome}" + (f", {detail}" if detail else ""))
        self.ledger.write()

    def _line(self, key: str) -> str:
        found = progress(Path(self.ledger.jobs[key].target))
        return f"{key} {found.text}" if found else f"{key} starting"

    def _stop(self, running: dict[str, _Running]) -> None:
        """Signals running jobs to save, and waits for them."""
        if not running:
            return
        executors.say(f"stopping {len(running)} job(s), which save first")
        for item in running.values():
            _signal(item.handle, signal.SIGTERM)
        deadline = time.monotonic() + _PATIENCE
        try:
            while time.monotonic() < deadline:
                if all(item.handle.done() for item in running.values()):
                    break
                time.sleep(_POLL_SECONDS)
        finally:
            for key, item in running.items():
                if not item.handle.done():
                    _signal(item.handle, signal.SIGINT)
                self.ledger.jobs[key].outcome = "interrupted"


def _signal(job: submitit.Job[str], number: int) -> None:
    if isinstance(job, submitit.LocalJob):
        with suppress(ProcessLookupError):
            os.kill(int(job.job_id), number)


def _failed(job: submitit.Job[str]) -> bool:
    """Whether one of its ranks has failed."""
    for rank in range(job.num_tasks):
        task = job.task(rank)
        if task.paths.result_pickle.exists() and task.exception() is not None:
            return True
    return False


def _result(job: submitit.Job[str]) -> str:
    """``finished``, ``interrupted`` or ``failed``, by the results of its ranks."""
    if not isinstance(job, submitit.DebugJob):
        pickles = [job.task(rank).paths.result_pickle for rank in range(job.num_tasks)]
        if not all(pickle.exists() for pickle in pickles):
            return "failed"  # killed
    try:
        results = job.results()
    except Exception:  # any error of the job; its log has it
        return "failed"
    return "interrupted" if "interrupted" in results else "finished"


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
