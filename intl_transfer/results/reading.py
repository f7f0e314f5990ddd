"""One folder in, what it holds out: manifest, results, and the state they are in."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.runs import MANIFEST, METRICS, RESULTS, read_manifest, read_results
from intl_transfer.runs.lock import LOCK

#: Larger than any manifest or results file of ours; what is larger is not one.
LARGEST_BYTES = 64 << 20


@dataclass(frozen=True)
class Entry:
    """One run directory that was found, whatever state it is in.

    Attributes:
        path: the folder.
        status: ``finished``, ``running``, ``stalled`` (says running, but nothing has moved for
            long), ``failed``, ``interrupted``, ``inconsistent``, ``copy`` or ``superseded`` (the
            newer run with the same seed and settings counts).
        detail: why, in words; "" where there is nothing to say.
        manifest: its manifest, or None where that cannot be read.
        results: its results, or None where there are none.
        foreign: True for a Detectron2 folder that was not written by this project.
    """

    path: Path
    status: str
    detail: str = ""
    manifest: dict[str, Any] | None = field(default=None, repr=False)
    results: dict[str, Any] | None = field(default=None, repr=False)
    foreign: bool = False

    @property
    def stage(self) -> str:
        """``pretrain``, ``detection``, ``evaluation``, or "" where that is not known."""
        return str(self.manifest.get("stage", "")) if self.manifest else ""


def check_plain(path: Path, status: os.stat_result, limited: bool = True) -> None:
    """Refuses what is not a plain file of a sensible size, before it is opened.

    Args:
        path: the file.
        status: what ``stat`` says of it.
        limited: False for files that are read in part, which may be of any size.

    Raises:
        UserError: for a pipe, a device, or a file too large to be one of ours.
    """
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is not a plain file")
    if limited and status.st_size > LARGEST_BYTES:
        raise UserError(
            f"{path} holds {status.st_size >> 20} MiB; expected less than {LARGEST_BYTES >> 20}"
        )


def read_run(path: Path, files: Mapping[str, os.stat_result]) -> tuple[dict[str, Any], Any]:
    """Manifest and results of a run directory.

    Args:
        path: the folder.
        files: what ``stat`` says of the two files, for those that are there.

    Returns:
        The manifest, and the results or None.

    Raises:
        UserError: if one of them is damaged, is not a plain file, or cannot be read.
    """
    for name, status in files.items():
        check_plain(path / name, status)
    try:
        manifest = read_manifest(path)
        results = read_results(path) if RESULTS in files else None
    except (TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not in the form of a run directory ({error})") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    for key, kind in (("id", str), ("stage", str), ("config", dict), ("sessions", list)):
        if not isinstance(manifest[key], kind):
            raise UserError(
                f"{path / MANIFEST}: '{key}' is {type(manifest[key]).__name__}, expected "
                f"{kind.__name__}"
            )
    return manifest, results


def state_of(
    path: Path, manifest: dict[str, Any], results: dict[str, Any] | None, stalled_after: float
) -> tuple[str, str]:
    """The status of a run directory, and what is to be said about it.

    Args:
        path: the folder.
        manifest: its manifest.
        results: its results.
        stalled_after: seconds without a sign of life after which a run that says it is running is
            called stalled.
    """
    status, error = manifest["status"], manifest.get("error")
    if status == "finished":
        if results is None:
            return "inconsistent", f"{path} is marked finished and has no {RESULTS}"
        return _agreement(path, manifest, results)
    if status != "running":
        return status, str(error or "")
    if results is not None:
        return "inconsistent", (
            f"{path} has {RESULTS}, but its manifest says running; it was copied half, or stopped "
            "in its last moment: copy it again, or run the same command again"
        )
    return _alive(path, stalled_after)


def _agreement(path: Path, manifest: dict[str, Any], results: dict[str, Any]) -> tuple[str, str]:
    """Whether the two files of a finished run are of one run."""
    for key in ("stage", "seed"):
        there, here = manifest.get(key), results.get(key)
        if here is not None and here != there:
            return "inconsistent", (
                f"{path}: {key} is {there!r} in {MANIFEST} and {here!r} in {RESULTS}"
            )
    return "finished", ""


def _alive(path: Path, stalled_after: float) -> tuple[str, str]:
    """Whether a run that says it is running shows a sign of life."""
    try:
        words = (path / LOCK).read_text(errors="replace").split()
        # "process PID on HOST": a process of this host can be looked for.
        if len(words) == 4 and words[3] == socket.gethostname() and words[1].isdigit():
            try:
                os.kill(int(words[1]), 0)
            except ProcessLookupError:
                return "stalled", f"its process {words[1]} has ended without a word"
            except (OSError, OverflowError):
                pass  # another user's, or no number of a process
    except OSError:
        pass
    times = []
    for name in (METRICS, MANIFEST, "checkpoints"):
        try:
            times.append((path / name).stat().st_mtime)
        except OSError:
            continue
    silent = time.time() - max(times, default=0.0)
    if silent > stalled_after:
        return "stalled", f"nothing was written for {_duration(silent)}"
    return "running", ""


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 60:.0f} min"
