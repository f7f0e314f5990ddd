"""The data sets that ``intl-transfer data`` generates, by folder name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from intl_transfer.data.made_sets import MadeSet
from intl_transfer.data.photo_cutouts import PHOTO_CUTOUTS
from intl_transfer.data.shapes import SHAPES

MADE: dict[str, MadeSet[Any]] = {one.name: one for one in (SHAPES, PHOTO_CUTOUTS)}


def command_for(path: str | Path) -> str | None:
    """The command that generates the data set of a path, by the name of its folder."""
    parts = Path(path).parts
    for name, one in MADE.items():
        if name in parts:
            folder = Path(*parts[: parts.index(name) + 1])
            return f"intl-transfer data {one.command} --out {folder}"
    return None
