"""Where data sets lie: resolved once, for the doctor and for every stage.

In this order: what the command line or a configuration names; where that is a place below
``datasets/`` (as in every configuration shipped), what the environment says of it; then
``datasets/`` itself.

- ``IMAGENET_DIR`` stands for ``datasets/imagenet``.
- ``DETECTRON2_DATASETS`` stands for ``datasets``.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

#: Of all data sets, as Detectron2 has it.
ROOT_VARIABLE = "DETECTRON2_DATASETS"
#: Variables that stand for one data set's folder below ``datasets/``.
VARIABLES = {"imagenet": "IMAGENET_DIR"}
_DEFAULT = "datasets"


def data_root() -> Path:
    """Root of all data sets: ``DETECTRON2_DATASETS``, or ``datasets``."""
    return Path(os.environ.get(ROOT_VARIABLE) or _DEFAULT).expanduser()


def located(path: str | Path) -> str:
    """Where a data set that a setting names is to be looked for.

    Args:
        path: as given; patterns and parts (``:test``) behind it stay.

    Returns:
        The path itself, unless it is a relative one below ``datasets/``: then with the
        environment's folder in place of the beginning.
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
