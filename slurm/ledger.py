"""The ledger ``jobs.json``: the jobs launched into a folder, with their ids.

It holds what is needed to resubmit a job and to find it in the queue. Outcomes are not in it: they
are read from the run directories.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.files.jsons import parse_json
from intl_transfer.runs import write_atomically, write_json
from intl_transfer.runs.processes import process_alive, process_mark
from intl_transfer.runs.settings import Differences
from slurm import made

NAME = "jobs.json"
#: Beside it, readable by this user only: environment variables of a profile may be secret.
PRIVATE = "jobs.private.json"
SECRET = ("environment", "setup")
#: 2: ``jobs`` with their ``job_id``; schema 1 (``nodes`` with their ``job``) is still read.
SCHEMA = 2


@dataclass
class Job:
    """One job of the graph, submitted or not.

    Attributes:
        key: its name in the ledger, for example ``detection/coco/intl_seed0``.
        stage: one of ``made.RUNS``, ``convert`` or ``collect``.
        target: the run directory, or the output of a conversion or collection.
        command: its command line.
        resources: fields of :class:`slurm.resources.Resources`.
        parents: keys of the jobs it depends on.
        after: ``ok`` if the parents must succeed, ``any`` if they need only end.
        source: input of a conversion.
        folder: working directory of the command.
        per_node: the command starts its own processes on a node (see ``StageJob``).
        must_finish: exit status 0 without a finished run is a failure (see ``StageJob``).
        settings: settings that determine its result, by dotted key; includes the seed and the path
            of the weights.
        made_with: settings of its newest submission, for what its target does not state itself. If
            they differ, the stage is run again and decides whether existing output can be kept or
            continued.
        submitted: when that was, in Unix seconds.
        title: job name in the queue; once submitted, with ``~`` and a unique suffix, which tells it
            from another job with a recycled id.
        job_id: id of its newest submission.
        log: log of that submission (``.out``); stderr is beside it (``.err``).
        attempts: number of submissions.
        outcome: of a job on this machine: ``waiting``, ``running``, ``finished``, ``failed``,
            ``interrupted`` or ``cancelled``; SLURM keeps its own.
        reason: why it was cancelled.
    """

    key: str
    stage: str
    target: str
    command: list[str]
    resources: dict[str, Any]
    parents: list[str] = field(default_factory=list)
    after: str = "ok"
    source: str | None = None
    folder: str = ""
    per_node: bool = False
    must_finish: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    title: str = ""
    job_id: str | None = None
    log: str | None = None
    attempts: int = 0
    made_with: dict[str, Any] | None = None
    submitted: float | None = None
    outcome: str | None = None
    reason: str | None = None

    def changes(self) -> Differences:
        """Settings that differ from those that its target was made with.

        The file of its weights may have other content than when the run began.
        """
        return made.changes(self.stage, Path(self.target), self.settings, self.made_with)


@dataclass
class Ledger:
    """All jobs launched from one folder.

    Attributes:
        folder: the folder that contains it.
        cluster: ``slurm``, ``local`` or ``debug``.
        jobs: by key, parents before children.
        submitting: an array being submitted: its job name, and the keys in order. Still set only
            if the launcher died meanwhile; the jobs are then found in the queue by that name.
        launcher: ``{"pid", "host", "started"}`` of the launcher running the jobs on this machine.
    """

    folder: Path
    cluster: str
    jobs: dict[str, Job] = field(default_factory=dict)
    submitting: dict[str, Any] | None = None
    launcher: dict[str, Any] | None = None

    @classmethod
    def read(cls, folder: str | Path) -> Ledger | None:
        """The folder's ledger, or None where nothing was launched.

        Raises:
            UserError: if the file is damaged or was written by a newer version.
        """
        file = Path(folder) / NAME
        try:
            content = _parsed(file)
            if content["schema"] > SCHEMA:
                raise UserError(
                    f"{file}: written with schema {content['schema']}, this version reads up to "
                    f"{SCHEMA}; upgrade intl-transfer"
                )
            if content["schema"] == 1:
                _upgrade(content)
            jobs = {key: Job(key=key, **value) for key, value in content["jobs"].items()}
            for job in jobs.values():
                if not isinstance(job.made_with, dict):  # a list in earlier versions
                    job.made_with = None
            for key, secrets in _read_private(Path(folder)).items():
                if key in jobs and isinstance(secrets, dict):
                    jobs[key].resources.update(secrets)
            rest = {key: content[key] for key in ("cluster", "submitting", "launcher")}
            return cls(folder=Path(folder), jobs=jobs, **rest)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror or error})") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{file} is damaged ({error!r}). Remove it: finished runs are recognized by their "
                "run directories, but jobs still in the queue would be submitted again, so check "
                "squeue first"
            ) from None

    def write(self) -> None:
        """Writes the ledger, atomically.

        Raises:
            UserError: if the folder cannot be written.
        """
        jobs, private = {}, {}
        for key, job in self.jobs.items():
            jobs[key] = {name: value for name, value in vars(job).items() if name != "key"}
            secrets = {name: job.resources[name] for name in SECRET if job.resources.get(name)}
            if secrets:
                private[key] = secrets
                known = {name: v for name, v in job.resources.items() if name not in SECRET}
                jobs[key]["resources"] = known
        rest = {"cluster": self.cluster, "submitting": self.submitting, "launcher": self.launcher}
        try:
            _write_private(self.folder, private)
            write_json(self.folder / NAME, {"schema": SCHEMA, **rest, "jobs": jobs})
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be written ({error.strerror or error})"
            ) from None

    def merge(self, jobs: Iterable[Job]) -> list[Job]:
        """Adds jobs; a job already in the ledger keeps the state of its newest submission.

        Returns:
            The ledger's own jobs, in the order given.
        """
        merged = []
        jobs = list(jobs)
        assert len({job.key for job in jobs}) == len(jobs), "two jobs of one key"
        for new in jobs:
            old = self.jobs.pop(new.key, None)  # re-added at the end: parents before children
            if old is not None:
                kept = ["job_id", "log", "attempts", "outcome", "reason", "made_with", "submitted"]
                for name in [*kept, "title"] if old.job_id is not None else kept:
                    setattr(new, name, getattr(old, name))
            self.jobs[new.key] = new
            merged.append(new)
        return merged

    def launcher_alive(self) -> bool | None:
        """Whether the launcher of the local jobs is alive; None if unknown (another host)."""
        if self.launcher is None:
            return False
        mark = self.launcher
        return process_alive(mark["pid"], mark["host"], mark.get("started"))


def close_to_others(folder: Path) -> None:
    """Restricts a folder to this user and the folder's group.

    Raises:
        UserError: if that cannot be done.
    """
    try:
        mode = folder.stat().st_mode
        if mode & 0o007:
            folder.chmod(mode & 0o770)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot remove other users' access ({error.strerror or error}), and the "
            "profile's environment and setup would be readable in it"
        ) from None


def _upgrade(content: dict[str, Any]) -> None:
    """Renames the fields of schema 1, in place."""
    content["jobs"] = content.pop("nodes")
    for job in content["jobs"].values():
        job["job_id"] = job.pop("job", None)


def _parsed(file: Path) -> Any:
    try:
        return parse_json(file.read_bytes(), file.name)
    except UserError as error:  # reworded by the caller
        raise ValueError(str(error)) from None


def _write_private(folder: Path, content: dict[str, Any]) -> None:
    """Writes the part that only this user may read."""
    file = folder / PRIVATE
    if not content:
        file.unlink(missing_ok=True)
        return
    text = json.dumps(content, indent=2).encode()
    write_atomically(file, lambda out: out.write(text), private=True)


def _read_private(folder: Path) -> dict[str, Any]:
    """Reads what :func:`_write_private` wrote; empty for other users, who do not submit jobs."""
    file = folder / PRIVATE
    try:
        content = _parsed(file)
    except (FileNotFoundError, PermissionError):
        return {}
    return content if isinstance(content, dict) else {}


def beside_runs(files: Iterable[str], folders: Iterable[str]) -> Iterator[str]:
    """Folders that launchers make beside the runs: logs and copies of the sources.

    Args:
        files: names of the files of a folder.
        folders: names of the folders in it.
    """
    if NAME in files:  # elsewhere, a folder of that name is anyone's
        for name in folders:
            if name == "slurm" or re.fullmatch(r"code\d*", name):
                yield name


def find(paths: Iterable[str | Path]) -> Iterator[Ledger]:
    """All ledgers in the given folders and their subfolders.

    Raises:
        UserError: if a path does not exist or a ledger is damaged.
    """
    for path in map(Path, paths):
        if not path.is_dir():
            raise UserError(f"{path} is not a folder; expected one that jobs were launched into")
        for folder, inner, files in os.walk(path):
            # No ledgers among logs, copies of the sources, or in a run.
            inner[:] = sorted(set(inner) - {"datasets", *beside_runs(files, inner)})
            if "manifest.json" in files:
                inner.clear()
            if NAME in files:
                ledger = Ledger.read(folder)
                if ledger is not None:
                    yield ledger


def who() -> dict[str, Any]:
    """This process, for :attr:`Ledger.launcher`."""
    return process_mark()
