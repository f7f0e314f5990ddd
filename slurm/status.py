"""Shows the state of all launched jobs; cancels jobs, or relaunches failed ones.

    python slurm/status.py [RUNS ...] [--watch] [--cancel] [--retry-failed]

RUNS are folders that jobs were launched into, or their parents (default: runs). Runs that were
started without a launcher are shown too.
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
from intl_transfer.command_line import parse
from intl_transfer.errors import UserError
from intl_transfer.runs import read_manifest
from intl_transfer.runs.lock import holder_alive
from intl_transfer.runs.progress import format_seconds
from slurm import controller
from slurm.controller import Row
from slurm.graph import adopt
from slurm.launching import launch
from slurm.ledger import Ledger, find
from slurm.made import RUNS
from slurm.outcomes import (
    Progress,
    Status,
    holder_of,
    progress,
    row_of,
    run_directories,
    status,
)

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
_BY_HAND = "started by hand"  # without a launcher
_SECONDS = 5
_reported: set[str] = set()


def main() -> int:
    """Reads the command line; returns 1 if a job failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs",
        nargs="*",
        type=Path,
        default=[Path("runs")],
        metavar="RUNS",
        help="folders of runs (default: runs)",
    )
    parser.add_argument(
        "--watch", action="store_true", help="refresh the table until all jobs have ended"
    )
    parser.add_argument("--cancel", action="store_true", help="cancel running and waiting jobs")
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="relaunch failed, interrupted and cancelled jobs",
    )
    parser.add_argument(
        "--wait", action="store_true", help="with --retry-failed: wait for the jobs to end"
    )
    arguments = parse(parser)
    if arguments.cancel + arguments.retry_failed + arguments.watch > 1:
        parser.error("--watch, --cancel and --retry-failed exclude each other")
    if arguments.wait and not arguments.retry_failed:
        parser.error("--wait is of --retry-failed; --watch waits until all jobs have ended")
    with Boundary() as boundary:
        if arguments.cancel:
            boundary.status = cancel(arguments.runs)
        elif arguments.retry_failed:
            boundary.status = retry(arguments.runs, arguments.wait)
        else:
            boundary.status = show(arguments.runs, arguments.watch)
    return boundary.status


def show(runs: list[Path], watch: bool) -> int:
    """Prints the table, repeatedly with ``watch``; returns 1 if a job failed."""
    console = Console(width=None if sys.stdout.isatty() else 200)
    entries = survey(runs)
    if not entries:
        raise UserError(
            f"no jobs or runs in {', '.join(map(str, runs))}; expected folders that jobs were "
            "launched into"
        )
    if watch and sys.stdout.isatty():
        with Live(table(entries, console.width), console=console, auto_refresh=False) as live:
            while any(entry.status.alive for entry in entries):
                time.sleep(_SECONDS)
                entries = survey(runs)
                live.update(table(entries, console.width), refresh=True)
    elif watch:  # a log: a line whenever the counts change
        printed = ""
        while any(entry.status.alive for entry in entries):
            if (text := counts(entries)) != printed:
                printed = text
                print(text, flush=True)
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
        """Text of the table's columns."""
        progress, found = self.progress, self.status
        left = progress.left if progress is not None and found.state == "running" else None
        return (
            self.stage,
            self.name,
            found.state,
            f"{progress.done:4.0%} {progress.text}" if progress else "",
            format_seconds(left) if left is not None else "",
            found.where,
            escape(found.detail),
        )


def survey(runs: list[Path]) -> list[Entry]:
    """All jobs of all ledgers, and all runs that are in no ledger.

    If SLURM does not answer quickly, states are taken from the run directories.

    Raises:
        UserError: if a folder does not exist or a ledger is damaged.
    """
    ledgers = list(find(runs))
    try:
        rows = queue(ledgers, patient=False)
    except UserError as error:
        rows = None
        message = str(error).removesuffix("; try again later")
        if message not in _reported:  # once, however often the table is refreshed
            _reported.add(message)
            print(
                f"{message}; states of jobs are taken from their run directories", file=sys.stderr
            )
    entries, known = [], set()
    for ledger in ledgers:
        adopt(ledger, rows)
        for job in ledger.jobs.values():
            target = Path(job.target)
            known.add(target)
            name = job.key if len(ledger.jobs) > 1 else target.name
            found = status(job, ledger, rows)
            entries.append(Entry(str(ledger.folder), name, job.stage, found, target))
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
        holder = holder_alive(folder) if manifest.status == "running" else None
        if holder is not None and not holder[1]:
            ended = f"its process {holder[0]} has ended without recording it"
            found = Status("interrupted", ended)
        entries.append(Entry(_BY_HAND, str(folder), manifest.stage, found, folder))
    return entries


def queue(ledgers: list[Ledger], patient: bool = True) -> dict[str, Row] | None:
    """The queue, if any ledger has jobs there."""
    if any(ledger.cluster == "slurm" for ledger in ledgers):
        return controller.queue(patient)
    return None


def by_hand(runs: list[Path]) -> list[Path]:
    """Run directories in the given folders."""
    return [folder for path in runs for folder in run_directories(path)]


def table(entries: list[Entry], width: int) -> Group:
    """One table per folder; failed jobs come last, next to the prompt.

    Args:
        entries: from :func:`survey`.
        width: of the terminal; the last column takes the remaining space.
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
        for title, column in zip((*titles, "detail"), (*widths, left), strict=True):
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
    """Cancels all running and waiting jobs; those on this machine save first."""
    number = 0
    ledgers = list(find(runs))
    rows = queue(ledgers)
    for ledger in ledgers:
        adopt(ledger, rows)
        if ledger.cluster == "slurm":
            alive = [n for n in ledger.jobs.values() if (row := row_of(n, rows)) and row.alive]
            # Children first: the end of a parent could start one.
            controller.cancel(job.job_id for job in reversed(alive) if job.job_id)
            number += len(alive)
        elif ledger.launcher is not None and ledger.launcher_alive():
            alive = [n for n in ledger.jobs.values() if n.outcome in ("running", "waiting")]
            os.kill(ledger.launcher["pid"], signal.SIGTERM)
            number += len(alive)
        elif ledger.launcher_alive() is None:
            print(
                f"{ledger.folder}: launched from another host ({ledger.launcher}); cancel it there"
            )
        else:  # jobs whose launcher was killed
            holders = {holder for job in ledger.jobs.values() if (holder := holder_of(job))}
            for holder in holders:
                os.kill(holder, signal.SIGTERM)
            number += len(holders)
    print(f"{number} job(s) cancelled; launching again resumes them")
    return 0


def retry(runs: list[Path], wait: bool) -> int:
    """Relaunches failed, interrupted and cancelled jobs, and the jobs that depend on them."""
    code, number = 0, 0
    for ledger in list(find(runs)):
        rows = queue([ledger])
        bad = [job for job in ledger.jobs.values() if status(job, ledger, rows).bad]
        if bad:
            number += len(bad)
            print(f"{ledger.folder}: relaunching {len(bad)} job(s)", flush=True)
            code = max(
                code, launch(ledger.folder, ledger.cluster, list(ledger.jobs.values()), wait)
            )
    if not number:
        print("no failed jobs")
    return code


if __name__ == "__main__":
    sys.exit(main())
