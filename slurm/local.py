"""A graph of jobs on this machine, a few at a time, each on its own GPUs."""

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
from slurm.ledger import RUNS, Ledger, Node, who
from slurm.outcomes import finished, last_error, progress
from slurm.resources import Resources

_POLL_SECONDS = 0.2
_REPORT_SECONDS = 10
_STUCK_SECONDS = 30  # that the other ranks have after one has failed
_PATIENCE = 600  # seconds that a run has to save when it is asked to stop


def visible_gpus() -> list[int]:
    """The GPUs that jobs may use."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None and all(word.isdecimal() for word in named.split(",")):
        return [int(word) for word in named.split(",")]
    return list(range(torch.cuda.device_count()))


def fit(requested: Resources, gpus: int | None) -> Resources:
    """Takes no more GPUs than this machine has; batches are global, so that results stay the same.

    Args:
        requested: what a job asks for.
        gpus: that are here; None for jobs that run elsewhere.
    """
    if gpus is None or requested.gpus_per_node <= gpus:
        return requested
    return replace(requested, gpus_per_node=gpus, gres=None)


@dataclass
class _Running:
    job: submitit.Job[str]
    gpus: list[int]
    failed_since: float | None = None


@dataclass
class Local:
    """Runs nodes whose parents are done; what has no hope any more is marked, with the reason.

    Attributes:
        ledger: written at every change, for ``status.py``.
        parallel: jobs at a time; None takes one a set of GPUs, or one in all.
        gpus: that may be used.
    """

    ledger: Ledger
    parallel: int | None = None
    gpus: list[int] = field(default_factory=list)

    def run(self, requested: list[Node]) -> None:
        """Runs nodes to their end.

        Args:
            requested: parents before children.

        Raises:
            UserError: if a job wants more GPUs than there are.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once all jobs have saved.
        """
        most = max((node.resources["gpus_per_node"] for node in requested), default=0)
        if most > len(self.gpus):
            raise UserError(f"a job wants {most} GPU(s), and {len(self.gpus)} are here")
        limit = self.parallel or (max(1, len(self.gpus) // most) if most else 1)
        self._limit, self._free = limit, list(self.gpus)
        waiting, running = list(requested), dict[str, _Running]()
        for node in waiting:
            node.outcome, node.reason, node.job = "waiting", None, None
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
                for node in waiting:
                    node.outcome = "cancelled" if node.outcome == "waiting" else node.outcome
                    node.reason = node.reason or "the launcher was stopped"
                self.ledger.launcher = None
                self.ledger.write()

    def _cancel_hopeless(self, waiting: list[Node], running: dict[str, _Running]) -> None:
        for node in list(waiting):
            open_keys = {other.key for other in waiting} | running.keys()
            if node.after == "any" or open_keys & set(node.parents):
                continue
            for key in node.parents:
                if not finished(self.ledger.nodes[key], self.ledger):
                    waiting.remove(node)
                    node.outcome, node.reason = "cancelled", f"{key} did not finish"
                    self.ledger.write()
                    executors.say(f"{node.key}: cancelled, {node.reason}")
                    break

    def _start_ready(self, waiting: list[Node], running: dict[str, _Running]) -> None:
        for node in list(waiting):
            if len(running) >= self._limit:
                return
            open_keys = {other.key for other in waiting} | running.keys()
            needed = node.resources["gpus_per_node"]
            if open_keys & set(node.parents) or needed > len(self._free):
                continue
            gpus, self._free = self._free[:needed], self._free[needed:]
            waiting.remove(node)
            running[node.key] = _Running(self._submit(node, gpus), gpus)

    def _submit(self, node: Node, gpus: list[int]) -> submitit.Job[str]:
        resources = Resources(**node.resources)
        work = stage_job(node)
        threads = max(1, len(os.sched_getaffinity(0)) // self._limit)
        # Threads that spin while they wait slow all others down.
        quiet = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        given = {name: os.environ[name] for name in quiet if name in os.environ}
        seen = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))} if gpus else {}
        work.environment = {**quiet, **given, **work.environment, **seen}
        title = plain_title(node)
        executor = executors.make_executor(resources, self.ledger.folder / "slurm", title)
        # Ctrl-C is for this process, which passes it on in order.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            (job,) = executors.submit(executor, [work])
        finally:
            signal.signal(signal.SIGINT, before)
        record(node, str(job.job_id), str(job.paths.stdout), title)
        node.outcome = "running"
        self.ledger.write()
        executors.say(f"job {job.job_id}: {node.target}; log: {job.paths.stdout}")
        return job

    def _ended(self, item: _Running) -> bool:
        if isinstance(item.job, submitit.DebugJob):
            return True  # it runs where its outcome is asked for
        if item.job.done():
            return True
        # A rank that failed leaves the others waiting for it.
        if _failed(item.job):
            item.failed_since = item.failed_since or time.monotonic()
            if time.monotonic() - item.failed_since > _STUCK_SECONDS:
                _signal(item.job, signal.SIGINT)  # submitit's controller then kills its tasks
        return False

    def _reap(self, key: str, running: dict[str, _Running], waiting: list[Node]) -> None:
        item, node = running.pop(key), self.ledger.nodes[key]
        self._free += item.gpus
        said = _result(item.job)
        if said == "finished" and node.stage in RUNS:
            done = finished(node, self.ledger)
            node.outcome = "finished" if done else "interrupted"
        elif said == "finished":
            node.outcome = "finished" if finished(node, self.ledger) else "failed"
        else:
            node.outcome = said
        if said == "interrupted" and node.attempts <= node.resources["max_requeues"]:
            executors.say(f"{key}: saved at its time limit, continues")
            node.outcome = "waiting"
            waiting.insert(0, node)
        else:
            words = "" if node.outcome == "finished" else last_error(node)
            executors.say(f"{key}: {node.outcome}" + (f", {words}" if words else ""))
        self.ledger.write()

    def _line(self, key: str) -> str:
        found = progress(Path(self.ledger.nodes[key].target))
        return f"{key} {found.text}" if found else f"{key} starting"

    def _stop(self, running: dict[str, _Running]) -> None:
        """Asks what runs to save, and waits for it."""
        if not running:
            return
        executors.say(f"stopping {len(running)} job(s); they save first")
        for item in running.values():
            _signal(item.job, signal.SIGTERM)
        deadline = time.monotonic() + _PATIENCE
        try:
            while time.monotonic() < deadline:
                if all(item.job.done() for item in running.values()):
                    break
                time.sleep(_POLL_SECONDS)
        finally:
            for key, item in running.items():
                if not item.job.done():
                    _signal(item.job, signal.SIGINT)
                self.ledger.nodes[key].outcome = "interrupted"


def _signal(job: submitit.Job[str], number: int) -> None:
    if isinstance(job, submitit.LocalJob):
        with suppress(ProcessLookupError):
            os.kill(int(job.job_id), number)


def _failed(job: submitit.Job[str]) -> bool:
    """Whether one of its ranks has left an error."""
    for rank in range(job.num_tasks):
        task = job.task(rank)
        if task.paths.result_pickle.exists() and task.exception() is not None:
            return True
    return False


def _result(job: submitit.Job[str]) -> str:
    """``finished``, ``interrupted`` or ``failed``, by what its ranks left."""
    if not isinstance(job, submitit.DebugJob):
        pickles = [job.task(rank).paths.result_pickle for rank in range(job.num_tasks)]
        if not all(pickle.exists() for pickle in pickles):
            return "failed"  # killed
    try:
        results = job.results()
    except Exception:  # whatever the stage's job raised; its log says what
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
