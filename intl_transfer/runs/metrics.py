"""``metrics.jsonl``: a JSON object per line, appended while a run is in progress.

Detectron2's own ``metrics.json`` has the same form.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from intl_transfer.runs.jsonable import jsonable

METRICS = "metrics.jsonl"
#: Upper limit, larger than the file of any run (over a million lines).
LARGEST_BYTES = 1 << 30


def append_line(file: Path, values: Mapping[str, Any]) -> None:
    """Appends one line, with ``time`` (Unix seconds).

    The line is written in one call, so that readers see it incomplete only if the machine crashed.

    Args:
        file: the run's ``metrics.jsonl``.
        values: as JSON has them (:func:`~intl_transfer.runs.jsonable.jsonable`); NaN and infinities
            are stored as the strings ``"nan"``, ``"inf"``, ``"-inf"``.
    """
    clean = jsonable({"time": round(time.time(), 3), **values}, str(file))
    line = json.dumps(clean, allow_nan=False) + "\n"
    with open(file, "ab") as opened:
        if opened.tell() and not _ends_with_newline(file):
            opened.write(b"\n")  # an earlier session ended in the middle of a line
        opened.write(line.encode())


def read_lines(
    file: str | Path,
    most: int | None = None,
    always: tuple[bytes, ...] = (),
    tail_bytes: int | None = None,
) -> Iterator[dict[str, Any]]:
    """The lines of a metrics file; truncated ones are skipped.

    Args:
        file: a run's ``metrics.jsonl``, or the run directory.
        most: read about this many lines, evenly spaced and including the last; None for all.
        always: lines that contain one of these texts are always read.
        tail_bytes: read only the end of the file.

    Yields:
        One dictionary per line, in file order; empty if the file is missing, unreadable or not a
        regular file.
    """
    lines = _raw_lines(Path(file), tail_bytes)
    every = max(1, len(lines) // most) if most is not None else 1
    for index, line in enumerate(lines):
        chosen = index % every == 0 or index == len(lines) - 1
        if chosen or any(mark in line for mark in always):
            row = _object(line)
            if row is not None:  # neither truncated nor somebody else's
                yield row


def numbered_lines(file: str | Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """The lines of a metrics file with their numbers, also those that no reader understands.

    Args:
        file: as for :func:`read_lines`.

    Yields:
        Number, from 1, and content of each line; None for what is no JSON object. Blank lines and
        objects cut short, which a crash leaves and a resumed run continues after, are skipped.
    """
    for number, line in enumerate(_raw_lines(Path(file)), 1):
        row = _object(line)
        is_cut = line.startswith(b"{") and line.count(b"{") > line.count(b"}")
        if row is not None or (line.strip() and not is_cut):
            yield number, row


def _raw_lines(file: Path, tail_bytes: int | None = None) -> list[bytes]:
    """The lines of a file, or of its end; none if it cannot be read."""
    if file.is_dir():
        file = file / METRICS
    try:
        if not file.is_file() or file.stat().st_size > LARGEST_BYTES:
            return []  # missing, or a pipe, which would block
        data = file.read_bytes() if tail_bytes is None else end_of(file, tail_bytes)
    except OSError:  # while the folder is being synchronized
        return []
    return data.splitlines()


def _object(line: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, RecursionError):
        row = json.loads(line)
        if isinstance(row, dict):
            return row
    return None


def read_metrics(
    path: str | Path, keep: Callable[[dict[str, Any]], bool] = lambda row: True
) -> list[dict[str, Any]]:
    """All lines of a run's ``metrics.jsonl`` (see :func:`read_lines`).

    Args:
        path: the run directory, or the file.
        keep: whether to keep a line.
    """
    return [row for row in read_lines(path) if keep(row)]


def end_of(file: str | Path, most: int) -> bytes:
    """The end of a text file, from the start of a line.

    Args:
        file: any.
        most: maximum number of bytes.

    Raises:
        OSError: if it cannot be read.
    """
    with open(file, "rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, size - most))
        data = opened.read(most)
    return data if size <= most else data.partition(b"\n")[2]


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
