"""The last words of a run that has not finished."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

LINES = 60
_BYTES = 1 << 16
_WIDTH = 500
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def last_lines(folder: Path, lines: int = LINES) -> list[dict[str, object]]:
    """Reads the ends of a run's logs.

    Looked at are ``log.txt`` in the run directory, ``NAME.log`` beside it, and the newest job's
    logs in ``slurm/`` in the run directory or beside it (there, a job whose command names this
    directory).

    Args:
        folder: the run directory.
        lines: of each log.

    Returns:
        ``{"file", "lines"}`` of every log that is there and not empty, the last written first.
    """
    found = []
    for file in _candidates(folder):
        with contextlib.suppress(OSError):
            if tail := _tail(file, lines):
                found.append((file.stat().st_mtime, str(file), tail))
    found.sort(reverse=True)
    return [{"file": name, "lines": tail} for _, name, tail in found]


def _candidates(folder: Path) -> Iterator[Path]:
    yield folder / "log.txt"
    # Names with a point in them lose their end by with_suffix; either is met.
    yield from {folder.with_suffix(".log"), folder.parent / f"{folder.name}.log"}
    yield from _newest_job(folder / "slurm", None)
    yield from _newest_job(folder.parent / "slurm", folder.name)


def _newest_job(logs: Path, name: str | None) -> list[Path]:
    """Output and errors of the newest job, among those whose command ends a word with ``/name``."""
    with contextlib.suppress(OSError):
        outputs = sorted(logs.glob("**/*_log.out"), key=lambda f: f.stat().st_mtime, reverse=True)
        for output in outputs:
            if name is None or re.search(rf"/{re.escape(name)}(\s|$)", _head(output)):
                return [output, output.with_suffix(".err")]
    return []


def _head(file: Path) -> str:
    with open(file, "rb") as opened:
        return opened.read(_BYTES).decode(errors="replace")


def _tail(file: Path, lines: int) -> list[str]:
    with open(file, "rb") as opened:
        size = opened.seek(0, 2)
        opened.seek(max(0, size - _BYTES))
        content = opened.read(_BYTES).decode(errors="replace")
    rows = [_clean(row) for row in content.split("\n")]
    if size > _BYTES:
        rows = rows[1:]  # the first is a part of a line
    while rows and not rows[-1]:
        rows.pop()
    return rows[-lines:]


def _clean(row: str) -> str:
    """A line as a terminal would show it at the end: progress lines overwritten, no colours."""
    row = _ESCAPES.sub("", row.rstrip("\r"))
    row = _CONTROL.sub("", row.rsplit("\r", 1)[-1])
    return row if len(row) <= _WIDTH else row[:_WIDTH] + " …"
