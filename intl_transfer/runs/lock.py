"""Locks: one process at a time in a run directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from intl_transfer.errors import UserError
from intl_transfer.runs.atomic import clear_leftovers
from intl_transfer.runs.processes import process_alive, process_mark

LOCK = ".lock"
_HOLDER = re.compile(r"process ([0-9]+) on (\S+?)(?:, started ([0-9]+))?\s*")


@contextmanager
def directory_lock(folder: str | Path) -> Iterator[None]:
    """Locks a run directory against a second run, and removes partial files of a killed one.

    Args:
        folder: the run directory; created if missing.

    Raises:
        UserError: if another process holds it (names host and process), or the folder cannot be
            written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(_unwritable(folder, error)) from None
    harm = "two runs in one directory would overwrite each other's checkpoints"
    with file_lock(folder / LOCK, str(folder), harm):
        clear_leftovers(folder)
        yield


@contextmanager
def file_lock(path: Path, what: str, harm: str, remove: bool = False) -> Iterator[None]:
    """Locks a file against other processes.

    The kernel releases the lock whenever the process ends, so that a killed run leaves no stale
    lock.

    Args:
        path: the lock file, created if missing; its folder must exist.
        what: name of the locked resource, for messages.
        harm: consequence of two processes at once, for messages.
        remove: delete the file at the end.

    Raises:
        UserError: if another process holds it (names host and process), or the file cannot be
            written.
    """
    descriptor = _taken(path, what, harm)
    try:
        # The holder's name is only for messages; a full disk must not prevent locking.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{holder_text()}\n".encode())
        yield
    finally:  # releasing must not hide an earlier error
        with contextlib.suppress(OSError):
            if remove:
                path.unlink()
            else:
                os.ftruncate(descriptor, 0)
        with contextlib.suppress(OSError):
            os.close(descriptor)


def holder_text() -> str:
    """This process, as described in a lock file."""
    mark = process_mark()
    text = f"process {mark['pid']} on {mark['host']}"
    return text if mark["started"] is None else f"{text}, started {mark['started']}"


def holder_alive(folder: str | Path) -> tuple[int, bool] | None:
    """The process named in a run directory's lock, and whether it is alive; None if unknown."""
    try:
        text = (Path(folder) / LOCK).read_text(errors="replace")
    except OSError:
        return None
    found = _HOLDER.fullmatch(text)
    if found is None or len(found[1]) > 9:
        return None
    alive = process_alive(int(found[1]), found[2], int(found[3]) if found[3] else None)
    return None if alive is None else (int(found[1]), alive)


def _taken(path: Path, what: str, harm: str) -> int:
    """Opens and locks the lock file."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UserError(_unwritable(what, error)) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode(errors="replace").strip()
            os.close(descriptor)
            raise UserError(
                f"{what} is in use by {holder or 'an unknown process'}; {harm}. Wait for it, stop "
                "it, or choose another directory"
            ) from None
        except OSError as error:
            print(
                f"warning: {path} cannot be locked ({error.strerror}): its file system does not "
                f"support locks, so a second process would not be detected; {harm}",
                file=sys.stderr,
                flush=True,
            )
            return descriptor
        # If its holder removed it, the name may belong to another file by now.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        os.close(descriptor)


def _unwritable(what: str | Path, error: OSError) -> str:
    return (
        f"{what} cannot be written ({error.strerror or error}); choose another directory, for a "
        "run with "
        "--output-dir DIR"
    )
