"""Identifies processes of this machine, despite recycled process ids."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Any


def process_mark() -> dict[str, Any]:
    """Identifies this process, as distinct from a later one with the same id."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": process_started(os.getpid()),
    }


def process_started(pid: int) -> int | None:
    """Start time of a process of this machine, in clock ticks since boot; None if unknown."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        words = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return int(words[19])
    return None


def process_alive(pid: int, host: str, started: int | None = None) -> bool | None:
    """Whether a process is alive; None if unknown (another host).

    Args:
        pid: its id, which another process may have by now.
        host: its host.
        started: its start time, from :func:`process_started`.
    """
    if host != socket.gethostname():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # another user's, or not a valid id
    now = process_started(pid)
    return started is None or now is None or now == started
