"""Locations of data sets, for the doctor and all stages.

In this order: the path in the command line or configuration; if it is relative and below
``datasets/`` (as in all shipped configurations), the environment's replacement; then ``datasets/``
itself.

- ``IMAGENET_DIR`` replaces ``datasets/imagenet``.
- ``DETECTRON2_DATASETS`` replaces ``datasets``.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

#: Of all data sets, as Detectron2 has it.
ROOT_VARIABLE = "DETECTRON2_DATASETS"
#: Variables that replace one data set's folder in ``datasets/``.
VARIABLES = {"imagenet": "IMAGENET_DIR"}
_DEFAULT = "datasets"


def data_root() -> Path:
    """Root of all data sets: ``DETECTRON2_DATASETS``, or ``datasets``."""
    return Path(os.environ.get(ROOT_VARIABLE) or _DEFAULT).expanduser()


def located(path: str | Path) -> str:
    """The location of the data set that a setting names.

    Args:
        path: as given; trailing patterns and parts (``:test``) are kept.

    Returns:
        The path itself, unless it is relative and below ``datasets/``: then with that prefix
        replaced by the environment's folder.
    """
    text = str(path)
    parts = PurePosixPath(text).parts
    if not parts or parts[0] != _DEFAULT:
        return os.path.expanduser(text) if text.startswith("~") else text
    rest = parts[1:]
    variable = VARIABLES.get(rest[0]) if rest else None
    if variable and os.environ.get(variable):
        return os.path.join(os.path.expanduser(os.environ[variable]), *rest[1:])
    if os.environ.get(ROOT_VARIABLE):
        return os.path.join(str(data_root()), *rest)
    return text
