"""Checkpoints of a run directory that a run can resume from."""

from __future__ import annotations

import socket
import zipfile
from pathlib import Path

from intl_transfer.conversion.reading import read_content
from intl_transfer.errors import UserError, first_line
from intl_transfer.runs.checkpoint import take_newest
from intl_transfer.runs.finite import first_nonfinite


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest intact checkpoint; damaged ones are skipped with a warning.

    Raises:
        UserError: if there are checkpoints and none is intact.
    """
    found = take_newest(checkpoints(folder), check_whole, folder)
    return None if found is None else found[0]


def checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints, newest first."""
    return sorted(folder.glob("model_*.pth"), key=lambda path: path.stat().st_mtime, reverse=True)


def check_whole(path: Path) -> None:
    """Refuses a checkpoint that is damaged, or contains NaN or infinity.

    Raises:
        UserError: with the reason.
    """
    if not path.exists():
        raise UserError(
            f"{path} does not exist on {socket.gethostname()}; all nodes need the same disk"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)})") from None
    if damaged is not None:
        raise UserError(f"{path} is damaged: the checksum of its record '{damaged}' is wrong")
    broken = first_nonfinite(read_content(path).values)
    if broken is not None:
        raise UserError(f"{path} contains NaN or infinity in {broken}")
