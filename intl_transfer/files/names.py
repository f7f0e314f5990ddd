"""Names of weights files."""

from __future__ import annotations

import re
from pathlib import PurePath

#: Endings of weights files, which are not part of their names.
ENDINGS = (".pth", ".pt", ".tar", ".ckpt", ".safetensors", ".bin", ".pkl", ".npz", ".zip", ".gz")
# Names that a file of any run, conversion or model hub has; after some, the number of the step.
_ANY = ("backbone", "checkpoint", "model", "model_final", "pytorch_model")
_NUMBERED = re.compile(r"(?:step|model)_\d+")


def default_name(file: str | PurePath) -> str:
    """What is made from a weights file is called: the file's name, or its folder's if any has it.

    ``moco.pth.tar`` is ``moco``, ``RUN/backbone.safetensors`` is ``RUN``, and
    ``RUN/checkpoints/step_00000100.pt`` is ``RUN_step_00000100``.

    Args:
        file: its path, as far as it is known; "" for none.
    """
    path = PurePath(file)
    name = without_endings(path)
    folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    if folder.name and _NUMBERED.fullmatch(name):
        return f"{folder.name}_{name}"
    return folder.name if folder.name and name in _ANY else name


def without_endings(file: str | PurePath) -> str:
    """The name of a weights file without folder and endings.

    ``intl_lr0.1.pth`` and ``intl_lr0.2.pth`` are two names, ``moco.pth.tar`` has two endings.

    Args:
        file: its path; "" for none.
    """
    path = PurePath(file)
    while path.suffix.lower() in ENDINGS:
        path = path.with_suffix("")
    return path.name
