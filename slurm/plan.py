"""What the plans of a benchmark and of a sweep have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

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
    """

    config: Config
    name: str
    folder: Path
    code: Path
    site: Mapping[str, Any]
    options: Mapping[str, Any]
    gpus: int | None = None

    def jobs(self) -> list[Job]:
        """All jobs, parents before children."""
        raise NotImplementedError
