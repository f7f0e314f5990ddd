"""Checkpoints of a run directory: which of them can be gone on from."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

from intl_transfer.conversion.reading import read_content
from intl_transfer.errors import UserError
from intl_transfer.runs.finite import first_nonfinite


def newest_checkpoint(folder: Path) -> tuple[str | None, str | None]:
    """Path of the newest whole checkpoint, and what is wrong where there should be one.

    Damaged ones, and those that hold NaN or infinity, are named and passed over.
    """
    found = sorted(folder.glob("model_*.pth"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except zipfile.BadZipFile:
            damaged = "all of it"
        if damaged is not None:
            print(f"passed over: {path} is damaged", file=sys.stderr)
            continue
        try:
            broken = first_nonfinite(read_content(path).values)
        except UserError as error:
            print(f"passed over: {error}", file=sys.stderr)
            continue
        if broken is None:
            return str(path.resolve()), None
        print(f"passed over: {path} holds NaN or infinity in {broken}", file=sys.stderr)
    if found:
        return None, f"none of the {len(found)} checkpoints in {folder} can be read and is whole"
    return None, None
