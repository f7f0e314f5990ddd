"""The ledger ``jobs.json``: what was launched from a folder, and as which job.

It holds what is needed to submit a job again and to find it in the queue. What became of a job is
not in it: the run directories say that.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.files.jsons import parse_json
from intl_transfer.runs import read_manifest, write_atomically, write_json
from intl_transfer.runs.processes import process_alive, process_mark
from intl_transfer.runs.settings import IMPLIED, Differences, contrast, identity

NAME = "jobs.json"
#: Beside it, for this user alone: what a site's profile sets in jobs may be secret.
PRIVATE = "jobs.private.json"
SECRET = ("environment", "setup")
#: Stages whose work is a run directory.
RUNS = ("pretrain", "detection", "evaluation")
SCHEMA = 1
#: Among a node's settings, where its weights lie.
WEIGHTS = "weights"


@dataclass
class Node:
    """A piece of work: one job, and where its outcome is to be seen.

    Attributes:
        key: its name in the ledger, for example ``detection/coco/intl_seed0``.
        stage: one of ``RUNS``, ``convert`` or ``collect``.
        target: the run directory; the file or the folder that conversion or collecting make.
        command: what it runs.
        resources: fields of :class:`slurm.resources.Resources`.
        parents: keys of what must come first.
        after: ``ok`` if the parents must have succeeded, ``any`` if their end is enough.
        source: what a conversion reads.
        folder: where the command runs.
        per_node: the command starts its own processes on a node (see ``StageJob``).
        must_finish: a run that ends well and has not finished has failed (see ``StageJob``).
        settings: what makes its result what it is, by dotted key: the settings that decide, the
            seed, and where the weights lie.
        made_with: the settings of its newest job. Where they differ, the stage is asked again, and
            decides whether what is there may be kept or continued.
        title: the job's name, for people; once submitted, with ``~`` and a word of its own, by
            which it is known from another job with the same id.
        job: id of its newest job.
        log: that job's log, with ``.out``; errors are beside it in ``.err``.
        attempts: how often it was submitted.
        outcome: of a job on this machine: ``waiting``, ``running``, ``finished``, ``failed``,
            ``interrupted`` or ``cancelled``; SLURM keeps this itself.
        reason: why, for a job that was cancelled.
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
    job: str | None = None
    log: str | None = None
    attempts: int = 0
    made_with: dict[str, Any] | None = None
    outcome: str | None = None
    reason: str | None = None

    def changes(self) -> Differences:
        """Settings in which it differs from what was launched before, or lies in its folder."""
        if isinstance(self.made_with, dict):  # a list in ledgers of earlier versions
            # Keys that came later do what was done before.
            implied = IMPLIED.get(self.stage, {})
            before = {key: implied[key] for key in implied if key in self.settings}
            return contrast({**before, **self.made_with}, self.settings)
        if self.stage not in ("pretrain", "evaluation") or "seed" not in self.settings:
            return {}
        try:
            manifest = read_manifest(self.target)
        except (UserError, OSError):
            return {}
        mine = {key: value for key, value in self.settings.items() if key != WEIGHTS}
        return contrast(identity(self.stage, manifest.config), mine)


@dataclass
class Ledger:
    """All nodes launched from one folder.

    Attributes:
        folder: where it lies.
        cluster: ``slurm``, ``local`` or ``debug``.
        nodes: by key, parents before children.
        submitting: an array that is being submitted: its job's name and the keys in order. Left
            behind only by a launcher that died in between; its jobs are then found by the name.
        launcher: ``{"pid", "host", "started"}`` of the launcher that runs the jobs on this machine.
    """

    folder: Path
    cluster: str
    nodes: dict[str, Node] = field(default_factory=dict)
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
            nodes = {key: Node(key=key, **value) for key, value in content["nodes"].items()}
            for key, secrets in _read_private(Path(folder)).items():
                if key in nodes and isinstance(secrets, dict):
                    nodes[key].resources.update(secrets)
            rest = {key: content[key] for key in ("cluster", "submitting", "launcher")}
            return cls(folder=Path(folder), nodes=nodes, **rest)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror or error})") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{file} is damaged ({error!r}). Remove it: run directories say what is done, but "
                "jobs that are still in the queue would be submitted again, so look at squeue first"
            ) from None

    def write(self) -> None:
        """Writes the ledger, atomically.

        Raises:
            UserError: if the folder cannot be written.
        """
        nodes, private = {}, {}
        for key, node in self.nodes.items():
            nodes[key] = {name: value for name, value in vars(node).items() if name != "key"}
            secrets = {name: node.resources[name] for name in SECRET if node.resources.get(name)}
            if secrets:
                private[key] = secrets
                known = {name: v for name, v in node.resources.items() if name not in SECRET}
                nodes[key]["resources"] = known
        rest = {"cluster": self.cluster, "submitting": self.submitting, "launcher": self.launcher}
        try:
            _write_private(self.folder, private)
            write_json(self.folder / NAME, {"schema": SCHEMA, **rest, "nodes": nodes})
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be written ({error.strerror or error})"
            ) from None

    def take_up(self, nodes: Iterable[Node]) -> list[Node]:
        """Adds nodes; those that are there already keep what is known of their jobs.

        Returns:
            The ledger's own nodes, in the order given.
        """
        taken = []
        for new in nodes:
            old = self.nodes.pop(new.key, None)  # and back at the end: parents before children
            if old is not None:
                kept = ["job", "log", "attempts", "outcome", "reason", "made_with"]
                for name in [*kept, "title"] if old.job is not None else kept:
                    setattr(new, name, getattr(old, name))
            self.nodes[new.key] = new
            taken.append(new)
        return taken

    def launcher_alive(self) -> bool | None:
        """Whether the launcher that runs the jobs on this machine lives; None if nobody can say."""
        if self.launcher is None:
            return False
        mark = self.launcher
        return process_alive(mark["pid"], mark["host"], mark.get("started"))


def close_to_others(folder: Path) -> None:
    """Lets nobody but this user and the folder's group into a folder.

    Raises:
        UserError: if that cannot be done.
    """
    try:
        mode = folder.stat().st_mode
        if mode & 0o007:
            folder.chmod(mode & 0o770)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be closed to other users ({error.strerror or error}); the profile's "
            "environment and setup would be readable in it"
        ) from None


def _parsed(file: Path) -> Any:
    try:
        return parse_json(file.read_bytes(), file.name)
    except UserError as error:  # with advice of the ledger's own
        raise ValueError(str(error)) from None


def _write_private(folder: Path, content: dict[str, Any]) -> None:
    """Writes what only this user may read."""
    file = folder / PRIVATE
    if not content:
        file.unlink(missing_ok=True)
        return
    text = json.dumps(content, indent=2).encode()
    write_atomically(file, lambda out: out.write(text), private=True)


def _read_private(folder: Path) -> dict[str, Any]:
    """What :func:`_write_private` wrote; nothing for other users, who submit nothing."""
    file = folder / PRIVATE
    try:
        content = _parsed(file)
    except (FileNotFoundError, PermissionError):
        return {}
    return content if isinstance(content, dict) else {}


def find(paths: Iterable[str | Path]) -> Iterator[Ledger]:
    """Every ledger in some folders and below them.

    Raises:
        UserError: if a path does not exist or a ledger is damaged.
    """
    for path in map(Path, paths):
        if not path.is_dir():
            raise UserError(f"{path} is not a folder; expected one that something was launched to")
        for folder, inner, files in os.walk(path):
            # Nothing is launched from the logs, from copies of the sources, or into a run.
            skipped = ("slurm", "datasets", "checkpoints", "tensorboard", "predictions")
            inner[:] = sorted(
                name for name in inner if name not in skipped and not name.startswith("code")
            )
            if "manifest.json" in files:
                inner.clear()
            if NAME in files:
                ledger = Ledger.read(folder)
                if ledger is not None:
                    yield ledger


def who() -> dict[str, Any]:
    """This process, for :attr:`Ledger.launcher`."""
    return process_mark()
