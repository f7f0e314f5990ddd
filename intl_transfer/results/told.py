"""Lines of progress, each with the time of day."""

from __future__ import annotations

import sys
import time


def tell_line(text: str) -> None:
    """Writes a line to stderr at once, with the time of day before it."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
