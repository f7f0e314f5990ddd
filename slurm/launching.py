"""What every launcher does with its jobs: submit what is missing, say so, and wait if asked."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from intl_transfer.errors import UserError
from intl_transfer.runs.changes import in_lines
from intl_transfer.runs.lock import directory_lock
from slurm import controller
from slurm.controller import Row
from slurm.executors import say
from slurm.graph import adopt, missing, submit
from slurm.ledger import RUNS, SECRET, Ledger, Node, close_to_others
from slurm.local import Local, visible_gpus
from slurm.outcomes import Status, row_of, settled_status, status

_POLL_SECONDS = 2.0
_SHOWN = 12  # jobs that are named one by one


def launch(
    folder: Path,
    cluster: str,
    nodes: Iterable[Node],
    wait: bool = False,
    parallel: int | None = None,
) -> int:
    """Submits what is missing of a graph, says where it went and, if asked to wait, how it ended.

    Args:
        folder: where the ledger and the logs are.
        cluster: ``slurm``, ``local`` or ``debug``; the latter two always wait.
        nodes: parents before children.
        wait: wait for the end of all jobs, those that were in the queue before too.
        parallel: jobs at a time on this machine.

    Returns:
        An exit status: 1 if something that was waited for has no result.

    Raises:
        UserError: if the folder cannot be written, is in use, or SLURM refuses.
    """
    # The logs' folder: a run that lies in the same one has a lock of its own.
    with directory_lock(folder / "slurm"):
        if any(node.resources.get(name) for node in nodes for name in SECRET):
            close_to_others(folder / "slurm")  # batch scripts and pickled jobs hold them
        ledger = Ledger.read(folder) or Ledger(folder, cluster)
        rows = controller.queue() if cluster == "slurm" else {}
        adopt(ledger, rows)
        _check_cluster(ledger, cluster, rows)
        ledger.cluster = cluster
        taken = ledger.take_up(nodes)
        requested = missing(ledger, taken, rows)
        _tell_what_is_there(taken, requested, rows)
        for node in requested:
            if changes := node.changes():
                say(f"{node.key}: other settings than before ({in_lines(changes)})")
        if not requested:
            say("nothing to submit")
        elif cluster == "slurm":
            for group in submit(ledger, requested, rows):
                _tell_submitted(group)
        else:
            try:
                Local(ledger, parallel, visible_gpus()).run(requested)
            except KeyboardInterrupt:
                print("stopped; the same command continues", file=sys.stderr)
                return 130
    if cluster == "slurm":
        return _wait(ledger, taken) if wait else 0
    return _verdict(ledger, taken, {})


def something_missing(nodes: list[Node], folder: Path, cluster: str) -> bool:
    """Whether there is anything to submit, and a copy of the sources is needed.

    Args:
        nodes: parents before children.
        folder: where the ledger is.
        cluster: ``slurm``, ``local`` or ``debug``.
    """
    ledger = Ledger.read(folder) or Ledger(folder, cluster)
    taken = ledger.take_up(nodes)
    return bool(missing(ledger, taken, controller.queue() if cluster == "slurm" else {}))


def _check_cluster(ledger: Ledger, cluster: str, rows: dict[str, Row]) -> None:
    """Refuses to run the same work in two places at once."""
    if ledger.cluster == cluster:
        return
    there = rows or (controller.queue() if controller.available() else {})
    alive = [n.key for n in ledger.nodes.values() if (row := row_of(n, there)) and row.alive]
    if ledger.cluster == "slurm" and alive:
        raise UserError(
            f"{ledger.folder}: {len(alive)} job(s) are in SLURM's queue, the first: {alive[0]}. "
            "Wait for them, or cancel them with `python slurm/status.py --cancel`"
        )
    for node in ledger.nodes.values():
        node.job = node.outcome = node.reason = None


def _tell_what_is_there(nodes: list[Node], requested: list[Node], rows: dict[str, Row]) -> None:
    keys = {node.key for node in requested}
    for state, words in (("finished", "finished before"), ("alive", "in the queue already")):
        there = []
        for node in nodes:
            if node.key in keys:
                continue
            row = row_of(node, rows)
            alive = row is not None and row.alive
            if (state == "alive") == alive:
                there.append(f"{node.key} as job {node.job}" if alive else node.key)
        if there:
            more = f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
            say(f"{words}: {', '.join(there[:_SHOWN])}{more}")


def _tell_submitted(group: list[Node]) -> None:
    for node in group[:_SHOWN]:
        say(f"job {node.job}: {node.target}; log: {node.log}")
    if len(group) > _SHOWN:
        last = group[-1]
        say(f"... {len(group) - _SHOWN} more, to job {last.job}: {last.target}")


def _wait(ledger: Ledger, nodes: list[Node]) -> int:
    """Waits until no job is in the queue any more, and tells of each end."""
    told: set[str] = set()
    while True:
        rows = controller.queue()
        open_nodes = [n for n in nodes if (row := row_of(n, rows)) is not None and row.alive]
        open_keys = {node.key for node in open_nodes}
        for node in nodes:
            if node.key not in open_keys and node.key not in told and node.job is not None:
                told.add(node.key)
                if len(nodes) > 1 and open_keys:
                    found = _final(node, ledger, rows)
                    say(f"({len(told)}/{len(nodes)}) {node.key}: {_words(found)}")
        if not open_nodes:
            return _verdict(ledger, nodes, rows)
        time.sleep(_POLL_SECONDS)


def _final(node: Node, ledger: Ledger, rows: dict[str, Row]) -> Status:
    """How a node ended, once the file system shows it."""
    if node.stage in RUNS and Path(node.target).exists():
        settled_status(Path(node.target))
    return status(node, ledger, rows)


def _verdict(ledger: Ledger, nodes: list[Node], rows: dict[str, Row]) -> int:
    found = {node.key: _final(node, ledger, rows) for node in nodes}
    for node in nodes:
        state = found[node.key]
        if node.job is not None or state.bad:
            say(f"job {node.job}: {_words(state)}" + (f" ({node.key})" if len(nodes) > 1 else ""))
    if len(nodes) > 1:
        counts = Counter(state.state for state in found.values())
        say(", ".join(f"{number} {state}" for state, number in counts.items()))
    good = {"finished"} if any(node.must_finish for node in nodes) else {"finished", "interrupted"}
    return 0 if all(state.state in good for state in found.values()) else 1


def _words(state: Status) -> str:
    return f"{state.state}, {state.detail}" if state.detail else state.state
