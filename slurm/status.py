"""Shows where every launched job stands; cancels jobs, or launches again what failed.

    python slurm/status.py [RUNS ...] [--watch] [--cancel] [--retry-failed]

RUNS are folders that something was launched to, or folders of them (`runs` by default). Runs that
were started by hand are shown too.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from intl_transfer.boundary import Boundary
from intl_transfer.errors import UserError
from intl_transfer.runs import read_manifest
from intl_transfer.runs.progress import format_seconds
from slurm import controller
from slurm.controller import Row
from slurm.launching import launch
from slurm.ledger import RUNS, Ledger, find
from slurm.outcomes import Progress, Status, progress, row_of, status

_COLORS = {
    "finished": "green",
    "running": "cyan",
    "failed": "bold red",
    "interrupted": "yellow",
    "cancelled": "red",
}
_ORDER = {
    "finished": 0,
    "not submitted": 1,
    "submitted": 2,
    "waiting": 3,
    "queued": 4,
    "running": 5,
}
_BY_HAND = "started by hand"
_SECONDS = 5
_told: set[str] = set()


def main() -> int:
    """Reads the command line; returns 1 if something failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs",
        nargs="*",
        type=Path,
        default=[Path("runs")],
        metavar="RUNS",
        help="folders of runs (runs)",
    )
    parser.add_argument(
        "--watch", action="store_true", help="refresh the table until all jobs have ended"
    )
    parser.add_argument("--cancel", action="store_true", help="cancel running and waiting jobs")
    parser.add_argument("--retry-failed", action="store_true", help="relaunch what failed")
    parser.add_argument("--wait", action="store_true", help="with --retry-failed: wait for the end")
    arguments = parser.parse_args()
    if arguments.cancel and arguments.retry_failed:
        parser.error("--cancel and --retry-failed exclude each other")
    with Boundary() as boundary:
        if arguments.cancel:
            boundary.status = cancel(arguments.runs)
        elif arguments.retry_failed:
            boundary.status = retry(arguments.runs, arguments.wait)
        else:
            boundary.status = show(arguments.runs, arguments.watch)
    return boundary.status


def show(runs: list[Path], watch: bool) -> int:
    """Prints the table, again and again if asked to; returns 1 if something failed."""
    console = Console(width=None if sys.stdout.isatty() else 200)
    entries = survey(runs)
    if not entries:
        raise UserError(
            f"nothing was launched to {', '.join(map(str, runs))}; expected folders with runs"
        )
    if watch and sys.stdout.isatty():
        with Live(table(entries, console.width), console=console, auto_refresh=False) as live:
            while any(entry.status.alive for entry in entries):
                time.sleep(_SECONDS)
                entries = survey(runs)
                live.update(table(entries, console.width), refresh=True)
    elif watch:  # a log: a line whenever the counts change
        said = ""
        while any(entry.status.alive for entry in entries):
            if (text := counts(entries)) != said:
                said = text
                print(said, flush=True)
            time.sleep(_SECONDS)
            entries = survey(runs)
        console.print(table(entries, console.width))
    else:
        console.print(table(entries, console.width))
    print(counts(entries))
    return 1 if any(entry.status.bad for entry in entries) else 0


class Entry:
    """One row of the table."""

    def __init__(self, group: str, name: str, stage: str, found: Status, folder: Path) -> None:
        self.group, self.name, self.stage, self.status = group, name, stage, found
        is_run = stage in RUNS
        shown = found.state in ("running", "interrupted", "failed", "queued")
        self.progress: Progress | None = progress(folder) if is_run and shown else None

    def cells(self) -> tuple[str, ...]:
        """What the table shows."""
        how, found = self.progress, self.status
        left = how.left if how is not None and found.state == "running" else None
        return (
            self.stage,
            self.name,
            found.state,
            f"{how.done:4.0%} {how.text}" if how else "",
            format_seconds(left) if left is not None else "",
            found.where,
            escape(found.detail),
        )


def survey(runs: list[Path]) -> list[Entry]:
    """All jobs of all ledgers, and all runs that are in none.

    Where SLURM does not answer at once, run directories alone say how its jobs stand.

    Raises:
        UserError: if a folder does not exist or a ledger is damaged.
    """
    ledgers = list(find(runs))
    try:
        rows = queue(ledgers, patient=False)
    except UserError as error:
        rows = None
        words = str(error).removesuffix("; try again later")
        if words not in _told:  # once, however often the table is renewed
            _told.add(words)
            print(f"{words}; jobs are shown as their run directories have them", file=sys.stderr)
    entries, known = [], set()
    for ledger in ledgers:
        for node in ledger.nodes.values():
            target = Path(node.target)
            known.add(target)
            name = node.key if len(ledger.nodes) > 1 else target.name
            found = status(node, ledger, rows)
            entries.append(Entry(str(ledger.folder), name, node.stage, found, target))
    for folder in by_hand(runs):
        if folder.resolve() in known:
            continue
        try:
            manifest = read_manifest(folder)
        except UserError as error:
            found = Status("failed", str(error).removeprefix(f"{folder}/"))
            entries.append(Entry(_BY_HAND, str(folder), "", found, folder))
            continue
        found = Status(manifest.status, manifest.error or "")
        entries.append(Entry(_BY_HAND, str(folder), manifest.stage, found, folder))
    return entries


def queue(ledgers: list[Ledger], patient: bool = True) -> dict[str, Row] | None:
    """The queue, if any ledger has jobs there."""
    if any(ledger.cluster == "slurm" for ledger in ledgers):
        return controller.queue(patient)
    return None


def by_hand(runs: list[Path]) -> list[Path]:
    """Run directories below some folders."""
    found = []
    for path in runs:
        for folder, inner, files in os.walk(path):
            if "manifest.json" in files:
                inner.clear()
                found.append(Path(folder))
            inner[:] = sorted(n for n in inner if n != "slurm" and not n.startswith("code"))
    return found


def table(entries: list[Entry], width: int) -> Group:
    """The tables of all folders; what needs attention is last, where the eye is.

    Args:
        entries: from :func:`survey`.
        width: of the terminal; the last column takes what the others leave.
    """
    groups: dict[str, list[tuple[str, ...]]] = {}
    for entry in sorted(entries, key=lambda e: (e.group, _ORDER.get(e.status.state, 6))):
        groups.setdefault(entry.group, []).append(entry.cells())
    titles = ("stage", "name", "state", "progress", "ETA", "node")
    rows = [row for cells in groups.values() for row in cells]
    widths = [max(map(len, cells)) for cells in zip(titles, *(r[:6] for r in rows), strict=True)]
    left = max(12, width - sum(widths) - 2 * len(widths))
    parts: list[Text | Table] = []
    for group, cells in groups.items():
        made = Table(box=None, pad_edge=False, header_style="dim")
        for title, column in zip((*titles, "what"), (*widths, left), strict=True):
            made.add_column(title, no_wrap=True, width=column, overflow="ellipsis")
        for row in cells:
            made.add_row(*map(Text, row[:2]), Text(row[2], _COLORS.get(row[2], "")), *row[3:])
        parts += [Text(_short(group), style="bold"), made]
    return Group(*parts)


def _short(folder: str) -> str:
    path = Path(folder)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else folder


def counts(entries: list[Entry]) -> str:
    """``3 finished, 1 running``."""
    found = Counter(entry.status.state for entry in entries)
    return ", ".join(f"{number} {state}" for state, number in found.items())


def cancel(runs: list[Path]) -> int:
    """Cancels all jobs that run or wait; those on this machine save first."""
    number = 0
    ledgers = list(find(runs))
    rows = queue(ledgers)
    for ledger in ledgers:
        if ledger.cluster == "slurm":
            alive = [n for n in ledger.nodes.values() if (row := row_of(n, rows)) and row.alive]
            # Children first: no parent's end may start one.
            controller.cancel(node.job for node in reversed(alive) if node.job)
            number += len(alive)
        elif ledger.launcher is not None and ledger.launcher_alive():
            alive = [n for n in ledger.nodes.values() if n.outcome in ("running", "waiting")]
            os.kill(ledger.launcher["pid"], signal.SIGTERM)
            number += len(alive)
        elif ledger.launcher_alive() is None:
            print(f"{ledger.folder}: its launcher is on {ledger.launcher}; cancel it there")
    print(f"{number} job(s) cancelled; launching again continues from where they were")
    return 0


def retry(runs: list[Path], wait: bool) -> int:
    """Launches again what failed, was interrupted or cancelled, with what depends on it."""
    code, number = 0, 0
    for ledger in list(find(runs)):
        rows = queue([ledger])
        bad = [node for node in ledger.nodes.values() if status(node, ledger, rows).bad]
        if bad:
            number += len(bad)
            print(f"{ledger.folder}: {len(bad)} to launch again", flush=True)
            code = max(
                code, launch(ledger.folder, ledger.cluster, list(ledger.nodes.values()), wait)
            )
    if not number:
        print("nothing has failed")
    return code


if __name__ == "__main__":
    sys.exit(main())
