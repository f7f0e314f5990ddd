"""The last log lines of a run that has not finished."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from intl_transfer.files.stamps import stamp_of
from intl_transfer.runs.metrics import end_of

LINES = 60
_BYTES = 1 << 16
_HEAD = 1 << 13
_ABOVE = 4
_WIDTH = 500
_LOGS = 4
_RANKS = 16  # whose errors are read
_ERROR = re.compile(r"^\S*(Error|Exception)\b|^Traceback|^srun: error|CANCELLED")
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def last_lines(folder: Path, lines: int = LINES) -> list[dict[str, object]]:
    """Reads the ends of a run's logs.

    These are ``log.txt`` in the run directory, ``NAME.log`` next to it, and the newest job's logs
    in ``slurm/`` in the run directory, next to it or a few folders above (there, of a job whose
    command contains this directory).

    Args:
        folder: the run directory.
        lines: of each log.

    Returns:
        ``{"file", "lines"}`` of at most four non-empty logs: those with an error first, then the
        latest.
    """
    found = []
    for file in _candidates(folder):
        with contextlib.suppress(OSError):
            if tail := _tail(file, lines):
                named = any(_ERROR.search(line) for line in tail)
                found.append((named, file.stat().st_mtime, str(file), tail))
    found.sort(reverse=True)
    return [{"file": name, "lines": tail} for *_, name, tail in found[:_LOGS]]


def _candidates(folder: Path) -> Iterator[Path]:
    yield folder / "log.txt"
    # with_suffix truncates names with a dot; both forms occur.
    yield from {folder.with_suffix(".log"), folder.parent / f"{folder.name}.log"}
    yield from _newest_job(folder / "slurm", None)
    for above in folder.parents[:_ABOVE]:
        yield from _newest_job(above / "slurm", folder.relative_to(above).as_posix())


def _newest_job(logs: Path, name: str | None) -> list[Path]:
    """The newest job's output and all ranks' errors.

    With a name, only jobs whose command has an argument that ends with ``/name``.
    """
    with contextlib.suppress(OSError):
        outputs = [(tuple(stamp_of(file.stat())), file) for file in logs.glob("*/*_log.out")]
        for stamp, output in sorted(outputs, reverse=True):
            if name is None or re.search(rf"/{re.escape(name)}(\s|$)", _head(output, stamp)):
                return [output, *sorted(output.parent.glob("*_log.err"))[:_RANKS]]
    return []


@lru_cache(maxsize=4096)  # hundreds of runs share a folder
def _head(file: Path, stamp: tuple[int, ...]) -> str:
    """The beginning of a log, with its job's command; cached by its stamp."""
    del stamp
    with open(file, "rb") as opened:
        return opened.read(_HEAD).decode(errors="replace")


def _tail(file: Path, lines: int) -> list[str]:
    text = end_of(file, _BYTES).decode(errors="replace")
    rows = [_clean(row) for row in text.split("\n")]
    while rows and not rows[-1]:
        rows.pop()
    return rows[-lines:]


def _clean(row: str) -> str:
    """A line as finally shown by a terminal: progress overwritten, without colors."""
    row = _ESCAPES.sub("", row.rstrip("\r"))
    row = _CONTROL.sub("", row.rsplit("\r", 1)[-1])
    return row if len(row) <= _WIDTH else row[:_WIDTH] + " …"
