"""One process at a time in a run directory."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from intl_transfer.errors import UserError

LOCK = ".lock"


@contextmanager
def directory_lock(folder: str | Path) -> Iterator[None]:
    """Holds a run directory against a second run.

    The kernel gives the lock back when the process ends, however it ends: a killed run leaves
    nothing behind that would have to be removed by hand.

    Args:
        folder: the run directory; made if absent.

    Raises:
        UserError: if another process holds it (names host and process), or the folder cannot be
            written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a+")  # noqa: SIM115 - closed below; the lock lives with it
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror or error}); give another directory with "
            "--output-dir DIR"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "an unknown process"
            raise UserError(
                f"{folder} is in use by {holder}; two runs in one directory would destroy each "
                "other's checkpoints. Wait for it, stop it, or give another directory with "
                "--output-dir DIR"
            ) from None
        except OSError:
            pass  # a file system without locks: nothing can be said
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
