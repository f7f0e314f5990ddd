"""A graph of jobs: what is missing is submitted, what is done or in the queue is not."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from intl_transfer.errors import UserError
from slurm import controller, executors
from slurm.controller import Row
from slurm.jobs import StageJob
from slurm.ledger import RUNS, Ledger, Node
from slurm.outcomes import LATE, finished, row_of, settled_status
from slurm.resources import Resources


def missing(ledger: Ledger, nodes: Iterable[Node], rows: dict[str, Row]) -> list[Node]:
    """The nodes that must be submitted, parents before children.

    Like `make`: what others are made from is made only if one of those is missing. Jobs that can
    never start, since a parent of theirs failed, count as missing.

    Args:
        ledger: holds all of the nodes.
        nodes: parents before children.
        rows: the queue.
    """
    nodes = list(nodes)
    alive = {node.key for node in nodes if (row := row_of(node, rows)) is not None and row.alive}
    done = {node.key for node in nodes if node.key not in alive and _done(node, ledger)}
    requested: set[str] = set()
    parents = {key for node in nodes if node.after == "ok" for key in node.parents}
    # From the leaves up: who is needed at all?
    needed = {node.key for node in nodes if node.key not in parents}
    for node in reversed(nodes):
        if node.key in needed and node.key not in done and node.after == "ok":
            needed.update(node.parents)
    # From the roots down: who has no job, or one whose parents come again?
    for node in nodes:
        again = any(key in requested for key in node.parents)
        pending = node.key in alive and rows[node.job or ""].state == "PENDING"
        if node.after == "any":
            open_parents = any(key in requested or key in alive for key in node.parents)
            absent = node.key not in alive and (open_parents or node.key not in done)
            if absent or (pending and again):
                requested.add(node.key)
        elif node.key in needed and (
            (node.key not in alive and node.key not in done) or (pending and again)
        ):
            requested.add(node.key)
    return [node for node in nodes if node.key in requested]


def _done(node: Node, ledger: Ledger) -> bool:
    """Whether the node's result is there, also on a file system that shows it late."""
    if node.changes():
        return False
    if finished(node, ledger):
        return True
    if node.job is None or node.stage not in RUNS:
        return False
    # Its job has ended only just now, perhaps.
    running = (Path(node.target) / "manifest.json").exists()
    return running and settled_status(Path(node.target), _patience(node)) == "finished"


def _patience(node: Node) -> float:
    """Seconds to wait for a late manifest: none if it has been lying there for longer than that."""
    with contextlib.suppress(OSError):
        age = time.time() - (Path(node.target) / "manifest.json").stat().st_mtime
        return max(0.0, min(LATE, LATE - age))
    return 0.0


def submit(ledger: Ledger, requested: list[Node], rows: dict[str, Row]) -> Iterator[list[Node]]:
    """Submits nodes to SLURM, those that are alike as arrays; yields each array once it is queued.

    The ledger is on disk before and after each submission, so that a launcher that is killed
    in between leaves no job behind that nobody knows.

    Args:
        ledger: holds the nodes and their parents.
        requested: parents before children.
        rows: the queue.

    Raises:
        UserError: with SLURM's own words, if it refuses one.
    """
    to_cancel = [
        node.job for node in requested if (row := row_of(node, rows)) and row.alive and node.job
    ]
    if to_cancel:
        controller.cancel(to_cancel)
    for node in requested:
        node.job = None
    limit = controller.largest_array() if len(requested) > 1 else 1
    logs = ledger.folder / "slurm"
    fresh: set[str] = set()
    for group in groups(requested, limit):
        first = group[0]
        dependency = depend(first, ledger, rows, fresh)
        name = f"{plain_title(first)}~{uuid.uuid4().hex[:6]}"
        ledger.submitting = {"name": name, "keys": [node.key for node in group]}
        ledger.write()
        resources = Resources(**first.resources)
        executor = executors.make_executor(resources, logs, name, dependency)
        try:
            submitted = executors.submit(executor, [stage_job(node) for node in group])
        except UserError:
            ledger.submitting = None
            ledger.write()
            raise
        for node, job in zip(group, submitted, strict=True):
            record(node, str(job.job_id), str(job.paths.stdout), name)
        fresh.update(node.key for node in group)
        ledger.submitting = None
        ledger.write()
        yield group


def record(node: Node, job: str, log: str, title: str) -> None:
    """Notes a node's new job."""
    node.job, node.log, node.title = job, log, title
    node.attempts += 1
    node.made_with = node.settings
    node.outcome = node.reason = None


def plain_title(node: Node) -> str:
    """The job's name without the word that makes it its own."""
    return node.title.rsplit("~", 1)[0]


def stage_job(node: Node) -> StageJob:
    """What the node's job runs."""
    resources = Resources(**node.resources)
    environment: dict[str, str] = {**resources.environment, "PYTHONUNBUFFERED": "1"}
    script = Path(node.command[1])
    if script.suffix == ".py":  # of a copy of the sources, which comes before the installed ones
        environment = executors.with_sources(environment, script.parents[1])
    return StageJob(
        node.command,
        node.folder,
        resources.max_requeues,
        environment,
        per_node=node.per_node,
        must_finish=node.target if node.must_finish else None,
    )


def groups(requested: list[Node], limit: int) -> list[list[Node]]:
    """Nodes that may share an array: same stage, resources and parents; parents' groups first.

    Args:
        requested: parents before children.
        limit: the largest array.
    """
    depth: dict[str, int] = {}
    found: dict[str, list[Node]] = {}
    for node in requested:
        depth[node.key] = 1 + max((depth.get(key, 0) for key in node.parents), default=0)
        group_key = (plain_title(node), node.resources, node.parents, node.after)
        alike = (depth[node.key], node.stage, *group_key)
        found.setdefault(repr(alike), []).append(node)
    ordered = sorted(found.values(), key=lambda group: depth[group[0].key])
    return [
        group[first : first + limit] for group in ordered for first in range(0, len(group), limit)
    ]


def depend(node: Node, ledger: Ledger, rows: dict[str, Row], fresh: set[str]) -> str | None:
    """The node's ``--dependency``: on its parents' jobs that are new or still in the queue.

    Args:
        node: the child.
        ledger: holds its parents.
        rows: the queue before anything was submitted.
        fresh: keys of what was submitted since.
    """
    jobs = []
    for key in node.parents:
        parent = ledger.nodes[key]
        row = row_of(parent, rows)
        if parent.job and (key in fresh or (row is not None and row.alive)):
            jobs.append(parent.job)
    if not jobs:
        return None
    if node.after == "any":  # the end of a whole array; a list of its jobs would be long
        jobs = [job.split("_")[0] for job in jobs]
    return f"after{node.after}:" + ":".join(dict.fromkeys(jobs))


def adopt(ledger: Ledger, rows: dict[str, Row]) -> None:
    """Finds the jobs of a launcher that died between submitting them and writing that down."""
    if ledger.submitting is None:
        return
    name, keys = ledger.submitting["name"], ledger.submitting["keys"]
    found = [row for row in rows.values() if row.name == name]
    for row in found:
        index = int(row.job.split("_")[1]) if "_" in row.job else 0
        if index < len(keys) and keys[index] in ledger.nodes:
            log = ledger.folder / "slurm" / row.job / f"{row.job}_0_log.out"
            record(ledger.nodes[keys[index]], row.job, str(log), name)
    ledger.submitting = None
    ledger.write()
