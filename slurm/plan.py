"""What the plans of a benchmark and of a sweep have in common."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
            UserError: if a job's settings are invalid, or a pattern matches none.
        """
        return selected(self._every_job(), self.only)

    def _every_job(self) -> list[Job]:
        """All jobs, parents before children."""
        raise NotImplementedError


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

    Jobs that follow whether or not others succeed (the report) stay, after those that are left.

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
    return [
        job if job.after == "ok" else replace(job, parents=[p for p in job.parents if p in wanted])
        for job in jobs
        if job.key in wanted or job.after == "any"
    ]
