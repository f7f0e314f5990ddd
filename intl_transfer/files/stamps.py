"""What shows that a file or folder is as it was when a cache kept what was read from it."""

from __future__ import annotations

import os
import time

# File systems keep times to 2 s at the coarsest (FAT): what is younger could change again and
# have the same times, in ns.
_COARSEST = 2_500_000_000

Stamp = list[int]


def stamp_of(status: os.stat_result) -> Stamp:
    """Times, size and inode.

    Tools that copy or unpack set back a file's time of modification; that of its inode they cannot.
    """
    return [status.st_mtime_ns, status.st_size, status.st_ctime_ns, status.st_ino]


def is_settled(stamp: Stamp) -> bool:
    """Whether a later change will have another stamp, since the last one was not just now."""
    return time.time_ns() - stamp[0] > _COARSEST
