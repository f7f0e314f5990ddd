"""What the plans of a benchmark and of a sweep have in common."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Generic, TypeVar

from intl_transfer.errors import UserError, did_you_mean
from slurm.ledger import Job

Config = TypeVar("Config")


@dataclass
class Plan(Generic[Config]):
    """Makes the jobs of a configuration.

    Attributes:
        config: what to run.
        name: of the configuration; names folders and jobs.
        folder: parent of all run directories.
        code: the sources that jobs run.
        site: resources from the profile.
        options: resources from the command line; they override all others.
        gpus: GPUs of this machine, if jobs run on it; None on SLURM.
        only: patterns of the jobs to be made, as of :func:`selected`.
    """

    config: Config
    name: str
    folder: Path
    code: Path
    site: Mapping[str, Any]
    options: Mapping[str, Any]
    gpus: int | None = None
    only: Sequence[str] = ()

    def jobs(self) -> list[Job]:
        """The selected jobs, parents before children.

        Raises:
            UserError: if a job's settings are invalid, two jobs have the same name or folder, or a
                pattern matches none.
        """
        jobs = self._every_job()
        check_distinct(jobs, self.folder, self.name)
        return selected(jobs, self.only)

    def _every_job(self) -> list[Job]:
        """All jobs, parents before children."""
        raise NotImplementedError


def check_distinct(jobs: Sequence[Job], folder: Path, name: str) -> None:
    """Refuses jobs that would be taken for each other, or would write over each other's files.

    Args:
        jobs: all of a graph.
        folder: of the ledger; every target is in it.
        name: of the configuration, for messages.
    """
    keys: set[str] = set()
    targets: dict[str, str] = {}
    for job in jobs:
        target = os.path.normpath(job.target)
        same = job.key if job.key in keys else targets.get(target)
        if same is not None:
            raise UserError(
                f"{name}: two jobs, {same} and {job.key}, have the same name or folder ({target}). "
                "Give each seed and learning rate once, and another name to one of the "
                "initializations, evaluations or controls that they are of"
            )
        if not Path(target).is_relative_to(folder):
            raise UserError(f"{name}: {job.key} would write to {target}, outside {folder}")
        keys.add(job.key)
        targets[target] = job.key


def check_name(name: str, where: str) -> None:
    """Refuses a name that is not that of one folder."""
    if not name.replace("_", "").replace("-", "").replace(".", "").isalnum():
        raise UserError(f"{where}: the name is used for folders; use only letters, digits, _ - .")


def refuse_own(overrides: Sequence[str], given: Mapping[str, str], where: str) -> None:
    """Refuses overrides of what a launcher sets for each job, which would have no effect.

    Args:
        overrides: ``key=value``.
        given: by key, how it is given instead.
        where: their source, for messages.
    """
    for word in overrides:
        key = word.partition("=")[0].strip()
        if key in given:
            raise UserError(f"{where}: '{word}' would have no effect: {given[key]}")


#: Keys of pretraining and evaluation that plans set, and how to give them.
OF_PLAN = {
    "seed": "every run has its own seed; list them as seeds",
    "output_dir": "every run has its own folder, in that of --output-dir",
}


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Adds ``--only`` to a launcher's arguments."""
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="launch only jobs whose name (see --dry-run) matches, for example 'knn/*', with those "
        "that they depend on; may be repeated. The same command without it launches the rest",
    )


def selected(jobs: Sequence[Job], patterns: Sequence[str]) -> list[Job]:
    """Jobs whose keys match, with all that they depend on.

    Jobs that follow whether or not others succeed (the report) stay, with all of their parents:
    those of earlier launches may be in the queue.

    Args:
        jobs: parents before children.
        patterns: as of a shell; without any, all jobs are selected.

    Raises:
        UserError: for a pattern that matches no job.
    """
    if not patterns:
        return list(jobs)
    keys = [job.key for job in jobs]
    for pattern in patterns:
        if not any(fnmatchcase(key, pattern) for key in keys):
            folders = list(
                dict.fromkeys(f"{key.rpartition('/')[0]}/*" for key in keys if "/" in key)
            )
            raise UserError(
                f"--only {pattern}: no job has such a name."
                f"{did_you_mean(pattern, [*keys, *folders])} There are {', '.join(folders)}; "
                "--dry-run lists all"
            )
    wanted = {key for key in keys if any(fnmatchcase(key, pattern) for pattern in patterns)}
    for job in reversed(jobs):
        if job.key in wanted and job.after == "ok":
            wanted.update(job.parents)
    return [job for job in jobs if job.key in wanted or job.after == "any"]
