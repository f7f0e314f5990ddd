"""Rebuilds a report while jobs write to their run directories."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from intl_transfer.errors import UserError
from intl_transfer.results.report.details import Fingerprint, fingerprint
from intl_transfer.results.terminal import print_timed
from intl_transfer.runs import MANIFEST

EVERY = 10.0


def watch(
    folders: Iterable[str | Path], build: Callable[[int | None], object], every: float = EVERY
) -> None:
    """Builds once, then whenever a run below the folders has changed, until Ctrl-C.

    A build that fails (a disk that went away, a file half-written) is told and tried again at the
    next change. The last build, after Ctrl-C, is told not to refresh itself any more.

    Args:
        folders: run directories, or folders of them.
        build: makes the report; takes the seconds after which an open page loads itself again, or
            None for a page that stays.
        every: seconds between two looks.
    """
    tops = [Path(folder) for folder in folders]
    seen: dict[Path, Fingerprint] | None = None
    try:
        while True:
            now = _state(tops)
            if now != seen:
                seen = now
                try:
                    build(max(1, round(every)))
                except (UserError, OSError) as error:
                    print_timed(f"not rebuilt: {error}")
            time.sleep(every)
    except KeyboardInterrupt:
        build(None)


def _state(folders: Iterable[Path]) -> dict[Path, Fingerprint]:
    state = {}
    for top in folders:
        for folder, inner, files in os.walk(top):
            if MANIFEST in files:
                inner.clear()  # nothing below a run directory is another run
                state[Path(folder)] = fingerprint(Path(folder))
    return state
