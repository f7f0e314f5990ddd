"""What became of a job: its run directory decides, with the queue, never a pickle."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from intl_transfer.errors import UserError
from intl_transfer.runs import RESULTS, read_manifest, read_results, sha256_file
from intl_transfer.runs.changes import in_lines
from intl_transfer.runs.late import wait_until
from intl_transfer.runs.metrics import end_of, read_lines
from slurm.controller import Row
from slurm.ledger import RUNS, Ledger, Node

#: A file that another node wrote may show late on a shared file system; seconds.
LATE = 10.0
_TAIL = 65536  # bytes from a file's end that are looked at
_RAISED = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Exit)\b")
_OURS = re.compile(r"^(?:submitit |Traceback |srun: )")


@dataclass(frozen=True)
class Status:
    """How a node stands.

    Attributes:
        state: ``finished``, ``running``, ``queued``, ``waiting`` (for its parents), ``failed``,
            ``interrupted``, ``cancelled``, ``not submitted``, or ``submitted`` where SLURM does not
            say what became of a job and its run directory says nothing yet.
        detail: the last error line, or why it waits or was cancelled.
        where: the node that runs it.
    """

    state: str
    detail: str = ""
    where: str = ""

    @property
    def alive(self) -> bool:
        """Whether a job of it runs or is in the queue."""
        return self.state in ("running", "queued", "waiting")

    @property
    def bad(self) -> bool:
        """Whether it ended without a result."""
        return self.state in ("failed", "interrupted", "cancelled")


def finished(node: Node, ledger: Ledger) -> bool:
    """Whether what the node makes is there, whole and of its present source."""
    target = Path(node.target)
    if node.stage == "convert":
        return converted(node.source or "", target)
    if node.stage == "collect":
        return _collected(target, [ledger.nodes[key] for key in node.parents])
    return run_status(target) == "finished"


def run_status(folder: Path) -> str | None:
    """The status in a run's manifest; None where there is no whole manifest (yet)."""
    try:
        return str(read_manifest(folder).status)
    except (UserError, OSError):
        return None


def unsaved(node: Node) -> str:
    """What a run's manifest says of checkpoints that could not be written; empty for none."""
    if node.stage not in RUNS:
        return ""
    try:
        manifest = read_manifest(node.target)
    except (UserError, OSError):
        return ""
    if manifest.failed_save is None:
        return ""
    number = manifest.failed_saves or 1
    saves = "the last save" if number == 1 else f"{number} saves, the last one too,"
    return f"{saves} failed: {manifest.failed_save}"


def settled_status(folder: Path, patience: float = LATE) -> str | None:
    """The status of a run whose job has ended, once the file system shows it.

    Args:
        folder: the run directory.
        patience: seconds to wait for a manifest that does not say ``running`` any more. A job that
            was killed leaves it so for good.
    """
    wait_until(lambda: run_status(folder) not in (None, "running"), folder, patience)
    return run_status(folder)


def converted(source: str, target: Path) -> bool:
    """Whether a conversion's report names the present source, or that was cleared away since."""
    report = target.with_suffix(".json")
    try:
        if not Path(source).exists():
            return target.is_file() and report.is_file()
        made = json.loads(report.read_text())["provenance"]["source_sha256"]
        return target.is_file() and bool(made) and made == source_hash(source)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError):
        return False


def source_hash(source: str) -> str | None:
    """The hash under which conversion reports name a run's backbone, or a file."""
    path = Path(source)
    if path.is_dir():
        results = read_results(path)
        found = results.get("backbone_sha256") if results is not None else None
        return str(found) if found else None
    return sha256_file(path) if path.is_file() else None


def _collected(report: Path, parents: Iterable[Node]) -> bool:
    """Whether the report is newer than every result that belongs into it, as ``make`` has it."""
    files = [report] if report.is_file() else [f for f in report.glob("*") if f.is_file()]
    if not files:
        return False
    made = min(file.stat().st_mtime for file in files)
    results = [Path(node.target) / RESULTS for node in parents]
    return all(file.stat().st_mtime <= made for file in results if file.exists())


def status(node: Node, ledger: Ledger, rows: dict[str, Row] | None) -> Status:
    """How a node stands.

    Args:
        node: one of the ledger's.
        ledger: all of them.
        rows: the queue; None where there is none, or where SLURM does not answer: a job of SLURM's
            then stands as its run directory has it.
    """
    row = row_of(node, rows)
    if row is not None and row.alive:
        if row.state == "PENDING":
            told = row.reason not in ("None", "")  # not yet, right after it was submitted
            parents = _open_parents(node, ledger)
            if row.reason.startswith("Dependency") or (parents and not told):
                return Status("waiting", parents)
            return Status("queued", row.reason if told else "")
        detail = "" if row.state == "RUNNING" else row.state.lower()
        return Status("running", detail or unsaved(node), row.nodes)
    if finished(node, ledger):
        changes = node.changes()
        other = f"made with other settings ({in_lines(changes)})" if changes else ""
        return Status("finished", other)
    if node.outcome == "running" and ledger.launcher_alive() is not False:
        return Status("running", unsaved(node), (ledger.launcher or {}).get("host", ""))
    if node.outcome == "waiting" and ledger.launcher_alive() is not False:
        return Status("waiting", _open_parents(node, ledger) or "for its turn")
    if node.job is None and node.outcome != "cancelled":
        return Status("not submitted")
    if rows is None and ledger.cluster == "slurm":
        return _by_directory(node)
    return _ended_badly(node, ledger, row)


def _by_directory(node: Node) -> Status:
    """How a job of SLURM's stands as far as its run directory and log say."""
    state = run_status(Path(node.target)) if node.stage in RUNS else None
    told = f"job {node.job}, by its run directory"
    if state in ("running", "interrupted", "failed"):
        words = last_error(node) if state == "failed" else unsaved(node)
        return Status(state, "; ".join(text for text in (words, told) if text))
    began = "its log has begun" if log_files(node) else "no log yet"
    return Status("submitted", f"job {node.job}, {began}")


def row_of(node: Node, rows: dict[str, Row] | None) -> Row | None:
    """The node's job in the queue; a job of another name has taken over an old id."""
    row = (rows or {}).get(node.job or "")
    return row if row is not None and row.name == node.title else None


def _open_parents(node: Node, ledger: Ledger) -> str:
    """``for intl and 3 more``; nothing where all parents have finished."""
    keys = [key for key in node.parents if not finished(ledger.nodes[key], ledger)]
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return f"for {keys[0]}{more}" if keys else ""


def _ended_badly(node: Node, ledger: Ledger, row: Row | None) -> Status:
    state = run_status(Path(node.target)) if node.stage in RUNS else None
    where = row.nodes if row else ""
    if node.outcome == "cancelled":
        return Status("cancelled", node.reason or "")
    if not log_files(node) or (row is not None and row.reason == "DependencyNeverSatisfied"):
        # It never began. SLURM itself cancels the children of what failed.
        failed = [key for key in node.parents if not finished(ledger.nodes[key], ledger)]
        if failed:
            return Status("cancelled", f"{failed[0]} did not finish")
        if row is not None and row.state == "CANCELLED":
            return Status("cancelled", "before it began")
        return Status("failed", f"no log; {row.state.lower()}" if row else "no log, no job")
    if row is not None and row.state == "CANCELLED":
        return Status("interrupted", "cancelled", where)
    if "interrupted" in (state, node.outcome):
        words = "; ".join(text for text in (last_error(node), unsaved(node)) if text)
        return Status("interrupted", words, where)
    words = last_error(node)
    if row is not None and row.state not in ("FAILED", "COMPLETED"):
        words = f"{row.state.lower()}: {words}" if words else row.state.lower()
    return Status("failed", words or "ended without a word", where)


def log_files(node: Node) -> list[Path]:
    """The logs of the node's newest job: errors first, then output."""
    if node.log is None:
        return []
    out = Path(node.log)
    files = [*sorted(out.parent.glob("*_log.err")), *sorted(out.parent.glob("*_log.out"))]
    mine = out.name.removesuffix("0_log.out")  # ID_, of every task
    return [file for file in files if file.name.startswith(mine) and file.stat().st_size]


def last_error(node: Node) -> str:
    """The last line of the log that tells of an error, else the last that was said before it."""
    fallback = ""
    for file in log_files(node):
        lines = [line.rstrip() for line in tail(file).splitlines() if line.strip()]
        own = [line for line in lines if line.startswith("error: ")]
        raised = [line for line in lines if _RAISED.match(line) and "StageFailed" not in line]
        if own or raised:
            return (own or raised)[-1].removeprefix("error: ")
        ends = [line for line in lines if "StageFailedError: " in line]
        if ends and not fallback:
            fallback = ends[-1].split("StageFailedError: ")[-1]
            first = next((i for i, line in enumerate(lines) if _OURS.match(line)), len(lines))
            if first and "as allowed" not in fallback:
                fallback = f"{lines[first - 1]} ({fallback})"
    return fallback


def tail(file: Path) -> str:
    """The end of a text file; nothing where it cannot be read."""
    try:
        return end_of(file, _TAIL).decode(errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        done: share of the whole, 0 to 1.
        left: seconds to go at the recent rate; None where there is no rate yet.
        text: in steps or iterations.
    """

    done: float
    left: float | None
    text: str


def progress(folder: Path) -> Progress | None:
    """How far a run is by the end of its ``metrics.jsonl``; None where nothing is known."""
    try:
        config = read_manifest(folder).config
    except (UserError, OSError):
        return None
    rows = [row for row in read_lines(folder, tail_bytes=_TAIL) if "time" in row]
    detection = "SOLVER" in config
    unit = "iteration" if detection else "epoch"
    try:
        total = float(config["SOLVER"]["MAX_ITER"] if detection else config["optim"]["epochs"])
    except (KeyError, TypeError, ValueError):
        return None
    counted = [(row["time"], float(row[unit])) for row in rows if unit in row]
    if not counted:
        return None
    recent = counted[-20:]
    (then, before), (now, done) = recent[0], recent[-1]
    rate = (done - before) / (now - then) if now > then and done > before else None
    left = (total - done) / rate if rate else None
    text = f"{done:.0f}/{total:.0f}" if detection else f"epoch {done:.1f}/{total:.0f}"
    return Progress(min(1.0, done / total), left, text)
