"""Waiting for what another node wrote: shared file systems show it late."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

#: Seconds after which a shared file system shows what another node wrote.
LATE_SECONDS = 60.0


def wait_until(
    is_there: Callable[[], bool],
    folder: str | Path,
    seconds: float = LATE_SECONDS,
    every: float = 0.5,
) -> bool:
    """Waits until something that should be there shows.

    Args:
        is_there: whether it does.
        folder: where it should; it is listed each time, which makes a network file system ask its
            server.
        seconds: to wait, at most.
        every: seconds between looks.

    Returns:
        Whether it showed in time.
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
