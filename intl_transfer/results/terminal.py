"""Lines of progress, each with the time of day."""

from __future__ import annotations

import sys

from intl_transfer.runs.progress import timed


def print_timed(text: str) -> None:
    """Writes a line to stderr, unbuffered, prefixed with the time of day."""
    print(timed(text), file=sys.stderr, flush=True)
