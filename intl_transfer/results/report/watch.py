"""Rebuilds a report while jobs write to their run directories."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from intl_transfer.errors import UserError
from intl_transfer.results.report.details import Fingerprint, fingerprint
from intl_transfer.results.terminal import print_timed
from intl_transfer.runs.folders import run_folders

EVERY = 10.0


def watch(
    folders: Iterable[str | Path], build: Callable[[int | None], object], every: float = EVERY
) -> None:
    """Builds once, then whenever a run in the folders has changed, until Ctrl-C.

    A failed build (an unmounted disk, an incomplete file) is reported and retried at the next
    change. The last build, after Ctrl-C, does not reload itself.

    Args:
        folders: run directories, or folders of them.
        build: makes the report; takes the seconds after which an open page reloads, or None.
        every: seconds between checks.
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
    visited: set[tuple[int, int]] = set()
    return {
        folder: fingerprint(folder)
        for top in folders
        for folder, _ in run_folders(top, visited=visited)
    }
