"""Processes of this machine: distinguished from later ones with the same number."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Any


def process_mark() -> dict[str, Any]:
    """This process, so that it is told from a later one of the same number."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": process_started(os.getpid()),
    }


def process_started(pid: int) -> int | None:
    """When a process of this machine began, in clock ticks since boot; None where unknown."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        words = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return int(words[19])
    return None


def process_alive(pid: int, host: str, started: int | None = None) -> bool | None:
    """Whether a process lives; None where nobody can say from here.

    Args:
        pid: its number, which another process may have by now.
        host: where it ran.
        started: when it began, as :func:`process_started` has it.
    """
    if host != socket.gethostname():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # another user's, or no number of a process
    now = process_started(pid)
    return started is None or now is None or now == started
