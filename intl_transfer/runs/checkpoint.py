"""Checkpoints that are whole, verified when read, and found again after any crash."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from intl_transfer.errors import UserError
from intl_transfer.runs.atomic import write_atomically

FORMAT = "intl-transfer checkpoint"
SCHEMA = 1
_NAME = re.compile(r"step_(\d+)\.pt")


def checkpoint_path(folder: str | Path, step: int) -> Path:
    """Where the checkpoint taken after ``step`` optimiser steps lies."""
    return Path(folder) / f"step_{step:08d}.pt"


def save_checkpoint(folder: str | Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Writes a checkpoint atomically, then removes all but the newest ones.

    Args:
        folder: the run's ``checkpoints`` folder; made if absent.
        step: number of optimiser steps taken.
        state: tensors, numbers, strings, lists and dictionaries only, so that it can be read
            with ``weights_only=True``.
        keep: how many checkpoints stay.

    Returns:
        The file written.
    """
    path = checkpoint_path(folder, step)
    value = {"format": FORMAT, "schema": SCHEMA, **state}
    write_atomically(path, lambda file: torch.save(value, file))
    for old in list_checkpoints(folder)[keep:]:
        old.unlink(missing_ok=True)
    return path


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in a folder, newest (most steps) first."""
    folder = Path(folder)
    found = [(m, p) for p in folder.glob("step_*.pt") if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found, key=lambda item: int(item[0][1]), reverse=True)]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads one checkpoint, verifying every record's checksum, without running any code in it.

    Raises:
        UserError: if the file is absent, damaged, or not a checkpoint of this project.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise UserError(f"{path} is damaged: the checksum of its record '{damaged}' is wrong")
        value = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected a checkpoint") from None
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged or not a checkpoint ({first})") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this project (no format mark in it)")
    if value["schema"] > SCHEMA:
        raise UserError(
            f"{path} was written with schema {value['schema']}, this version reads up to {SCHEMA}; "
            "upgrade intl-transfer"
        )
    return value


def load_newest(folder: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Reads the newest whole checkpoint; a damaged one is named in a warning and passed over.

    Returns:
        The file and its content, or None where the folder holds none at all.

    Raises:
        UserError: if there are checkpoints and none can be read.
    """
    paths = list_checkpoints(folder)
    for path in paths:
        try:
            return path, read_checkpoint(path)
        except UserError as error:
            warnings.warn(f"passed over: {error}", stacklevel=2)
    if paths:
        raise UserError(
            f"none of the {len(paths)} checkpoints in {folder} can be read; move the folder away "
            "to start the run anew"
        )
    return None
