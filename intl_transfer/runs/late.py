"""Waits for files written on another node, which a shared file system may show late."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

#: Seconds until a shared file system shows a file written on another node.
LATE_SECONDS = 60.0


def wait_until(
    is_there: Callable[[], bool],
    folder: str | Path,
    seconds: float = LATE_SECONDS,
    every: float = 0.5,
) -> bool:
    """Waits until an expected file appears.

    Args:
        is_there: whether it has appeared.
        folder: that should contain it; listing it makes a network file system refresh its cache.
        seconds: maximum time.
        every: seconds between checks.

    Returns:
        Whether it appeared in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            os.listdir(folder)
        if is_there():
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(every)
