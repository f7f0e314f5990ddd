"""Checkpoints of a run directory that a run can resume from."""

from __future__ import annotations

import re
import socket
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intl_transfer.conversion.reading import read_content
from intl_transfer.errors import UserError, first_line
from intl_transfer.files.names import default_name
from intl_transfer.runs.checkpoint import take_newest
from intl_transfer.runs.finite import first_nonfinite
from intl_transfer.runs.records import SCHEMA, Detector, Input, Manifest

#: Key of a :class:`intl_transfer.runs.records.Detector` in a checkpoint.
KEY = "detector"
_NUMBERED = re.compile(r"model_(\d+)\.pth")


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


def label(path: Path) -> str:
    """What a detector's file is called: after its run's folder, if its own name is any run's."""
    return default_name(path.resolve())


def iterations_of(path: Path, content: Mapping[str, Any] | None = None) -> int | None:
    """The iterations after which a checkpoint was saved; None if it does not state them.

    Args:
        path: its file.
        content: of the file, where it was read before.

    Raises:
        UserError: if the file is damaged.
    """
    match = _NUMBERED.fullmatch(path.name)  # counted from 0
    if match:
        return int(match.group(1)) + 1
    last = (read_content(path).values if content is None else content).get("iteration")
    return None if last is None else int(last) + 1


def manifest_in(path: Path) -> Manifest | None:
    """The run of a checkpoint, as far as its record of the detector states it.

    Returns:
        None for files of other software or earlier versions.

    Raises:
        UserError: if the file or its record is damaged.
    """
    content = read_content(path).values
    if content.get(KEY) is None:
        return None
    record = Detector.of(content[KEY], f"{path}: {KEY}")
    weights = Input(role="weights", sha256=record.initialization.weights_sha256)
    return Manifest(
        schema_version=SCHEMA,
        id=record.run or "",
        stage="detection",
        name="",
        status="interrupted",
        config=record.config,
        seed=record.seed or 0,
        inputs=[] if weights.sha256 is None else [weights],
        sessions=[],
        dataset=record.dataset,
    )


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
