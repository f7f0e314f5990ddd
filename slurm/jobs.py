"""The function that a job runs: a stage's command with rank variables, signals and requeueing.

Pickled by value, so that changes to this file do not affect queued jobs.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intl_transfer.runs.late import LATE_SECONDS, wait_until

#: Exit status of a stage that was interrupted and can be continued by the same command.
CONTINUE = 75
_PATIENCE = 600  # seconds; longer than any site's grace time before SIGKILL
_WAITS = (1, 3, 10)  # seconds before a busy controller is asked again
_LAG = 2  # seconds within which a signal reaches all ranks
_FORWARDED = (signal.SIGUSR2, signal.SIGTERM)


class StageFailedError(RuntimeError):
    """A stage ended with an error, which is in its log."""


class StageJob:
    """Runs a stage's command line in every task of a job.

    The command is the same as without SLURM; the job adds the rank variables. Time-outs,
    preemptions and ``scancel --signal`` are forwarded to the stage as signals; it saves, exits with
    status 75, and the job requeues itself. An external ``scontrol requeue`` and a node failure give
    no warning: the stage then resumes from the last checkpoint of its run directory.

    Args:
        command: the stage's command line.
        folder: working directory.
        max_requeues: how often the job may requeue itself.
        environment: variables to set (NCCL settings and the like).
        per_node: the command starts its own processes on each node: ``{num_machines}``,
            ``{machine_rank}`` and ``{dist_url}`` in it are filled in, and no rank variables are
            set. For one task per node.
        must_finish: a run directory that must be finished if the exit status is 0; otherwise the
            job fails, so that no job uses an incomplete run.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: str,
        max_requeues: int = 10,
        environment: dict[str, str] | None = None,
        per_node: bool = False,
        must_finish: str | None = None,
    ) -> None:
        self.per_node, self.must_finish = per_node, must_finish
        self.command, self.folder = list(command), folder
        self.max_requeues, self.environment = max_requeues, dict(environment or {})

    def __call__(self) -> str:
        """Runs the command as one rank; returns ``"finished"`` or ``"interrupted"``.

        Raises:
            StageFailedError: if the stage ends with an error.
        """
        from submitit import JobEnvironment

        job = JobEnvironment()
        # Not by SLURM_JOB_ID, which within `salloc` is the shell's job.
        on_slurm = job.cluster == "slurm"
        restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0) if on_slurm else 0
        command, environment = self._on_this_rank(rank_environment(restarts))
        where = f"rank {job.global_rank} of {job.num_tasks} on {socket.gethostname()}"
        print(f"{where}, start {restarts + 1}: {' '.join(command)}", flush=True)
        status, received = self._run(command, environment, on_slurm)
        if status == 0:
            if self.must_finish is not None and job.global_rank == 0:
                require_finished(Path(self.must_finish))
            return "finished"
        # A stage without a handler is ended by the signal, and resumes as well.
        if status not in (CONTINUE, -signal.SIGUSR2, -signal.SIGTERM):
            reason = f"signal {-status}" if status < 0 else f"exit status {status}"
            raise StageFailedError(f"{where}: the stage ended with {reason}")
        if on_slurm:
            if status == CONTINUE and not received:
                # Another rank received the signal and the stage informed all ranks; this task's own
                # signal may still arrive.
                time.sleep(_LAG)
            signals = received or {signal.SIGUSR2 if status == CONTINUE else -status}
            self._requeue(job, where, signals, restarts)
        return "interrupted"

    def _on_this_rank(self, ranks: dict[str, str]) -> tuple[list[str], dict[str, str]]:
        """The command and environment of this rank."""
        environment = {**os.environ, **self.environment}
        if not self.per_node:
            return self.command, environment | ranks
        places = {
            "{num_machines}": ranks["WORLD_SIZE"],
            "{machine_rank}": ranks["RANK"],
            "{dist_url}": dist_url(ranks),
        }
        for name in ranks:  # possibly set in the launching shell
            environment.pop(name, None)
        return [places.get(word, word) for word in self.command], environment

    def _run(
        self, command: list[str], environment: dict[str, str], on_slurm: bool
    ) -> tuple[int, set[int]]:
        """Runs the command and forwards signals; returns its status and the signals received."""
        child = subprocess.Popen(command, cwd=self.folder, env=environment)
        received: set[int] = set()

        def forward(number: int, _: object) -> None:
            received.add(number)
            if child.poll() is None:
                child.send_signal(number)

        # In place of submitit's own handlers.
        before = {number: signal.signal(number, forward) for number in _FORWARDED}
        status = child.wait()
        for number, handler in before.items():
            if not on_slurm:  # possibly in the launcher's process
                signal.signal(number, handler)
        return status, received

    def _requeue(self, job: Any, where: str, signals: set[int], restarts: int) -> None:
        """Requeues the job, or waits for the controller to requeue or end it.

        Raises:
            StageFailedError: if it has been requeued ``max_requeues`` times.
        """
        if signal.SIGUSR2 not in signals:
            # SIGTERM alone: either scancel, which is final, or a preemption, after which the
            # controller requeues the job. It ends this task in both cases.
            print(f"{where}: saved; waiting for SLURM to end or requeue the job", flush=True)
            time.sleep(_PATIENCE)
            return
        if restarts >= self.max_requeues:
            raise StageFailedError(
                f"{where}: requeued {restarts} times, the maximum (max_requeues); launch it again "
                "to continue"
            )
        if job.global_rank == 0:
            print(f"{where}: requeueing, time {restarts + 1}", flush=True)
            ask_to_requeue(job.job_id)
        # The controller ends this task; if all tasks ended first, the job would be complete.
        time.sleep(_PATIENCE)


def ask_to_requeue(job_id: str) -> None:
    """Puts the job back into the queue; asks again if the controller is busy.

    Raises:
        StageFailedError: with SLURM's message, if it refuses.
    """
    message = ""
    for wait in (*_WAITS, None):
        try:
            command = ["scontrol", "requeue", job_id]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            message = str(error)
        else:
            if done.returncode == 0:
                return
            message = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        if wait is not None:
            time.sleep(wait)
    raise StageFailedError(
        f"saved, but `scontrol requeue {job_id}` says: {message}; launch it again to continue"
    )


def dist_url(ranks: dict[str, str]) -> str:
    """Where the processes of a stage that starts its own meet, from :func:`rank_environment`."""
    from intl_transfer.runs.rendezvous import address_of, in_url

    host = ranks["MASTER_ADDR"]
    if "INTL_RENDEZVOUS" in ranks:
        return address_of(Path(ranks["INTL_RENDEZVOUS"]), host)
    return f"tcp://{in_url(host)}:{ranks['MASTER_PORT']}"


def rank_environment(restarts: int = 0) -> dict[str, str]:
    """torch.distributed's variables for this task, from submitit's job environment.

    The port differs between jobs and between restarts: a variable from the launching shell would be
    the same for all jobs, and the port of an earlier start may not be free yet. A stage that
    supports ``INTL_RENDEZVOUS`` chooses a free one (:mod:`intl_transfer.runs.rendezvous`).

    Args:
        restarts: how often the job was requeued.
    """
    import random

    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    os.environ.pop("MASTER_PORT", None)  # which submitit would use
    place = TorchDistributedEnvironment()
    # Below Linux's range for outgoing connections.
    port = random.Random(f"{JobEnvironment().job_id}:{restarts}")
    found = {
        "MASTER_ADDR": reachable(place.master_addr),
        "MASTER_PORT": str(port.randint(20000, 32000)),
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.world_size),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.local_world_size),
    }
    if "SUBMITIT_FOLDER" in os.environ:  # not set for a job in the launcher's process
        # Rank 0 writes its port here: one file per start.
        folder = Path(JobEnvironment().paths.folder)
        found["INTL_RENDEZVOUS"] = str(folder / f"rendezvous-{restarts}")
    return found


def require_finished(folder: Path) -> None:
    """Waits until a run's status is finished.

    Raises:
        StageFailedError: if it is not after a minute.
    """
    import json

    def status() -> object:
        try:
            return json.loads((folder / "manifest.json").read_text())["status"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return "without a readable manifest"

    if not wait_until(lambda: status() == "finished", folder, LATE_SECONDS):
        raise StageFailedError(f"the stage exited with status 0, but {folder} is {status()}")


def reachable(host: str) -> str:
    """A node's name, or its address if the name does not resolve."""
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        address = _address(host)
        if address is not None:
            return address
        print(f"the node name {host} does not resolve", file=sys.stderr)
    return host


def _address(host: str) -> str | None:
    """A node's address from SLURM: by `getaddrs`, or before SLURM 22.05 by `show node`."""
    import re

    forms = (("getaddrs", r":\s*\[?([^\s\]]+?)\]?:\d+\s*$"), ("show node", r"NodeAddr=(\S+)"))
    for subcommand, pattern in forms:
        command = ["scontrol", *subcommand.split(), host]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return None
        found = re.search(pattern, done.stdout, re.MULTILINE)
        if done.returncode == 0 and found and found[1] != host:
            return found[1]
    return None


def snapshot(root: Path, target: Path) -> Path:
    """Copies the source tree, so that edits do not affect queued jobs.

    Args:
        root: the repository.
        target: folder of the copy; an existing copy is kept.

    Returns:
        The folder.
    """
    import json
    import shutil

    from intl_transfer.runs.directory import git_state

    if (target / "REVISION.json").exists():
        return target
    copied = ("intl_transfer/", "pretrain/", "detection/", "configs/", "slurm/")
    names: list[str] = []
    if shutil.which("git"):
        listing = ["git", "-C", str(root), "ls-files", "-co", "--exclude-standard", "-z"]
        found = subprocess.run(listing, capture_output=True)
        names = [os.fsdecode(name) for name in found.stdout.split(b"\0") if name]
    if not names:  # no git, no repository, or one of another user's: git refuses it
        names = [
            str(path.relative_to(root))
            for folder in copied
            for path in (root / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        ]
    for name in names:
        # Profiles may contain secrets, and no job needs them.
        if name.startswith("configs/slurm/"):
            continue
        if name.startswith(copied) and (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)
    (target / "REVISION.json").write_text(json.dumps(git_state(root)))
    return target
