"""Names of files without their endings."""

from __future__ import annotations

from pathlib import PurePath

#: Endings of weights files, which are not part of their names.
ENDINGS = (".pth", ".pt", ".tar", ".ckpt", ".safetensors", ".bin", ".pkl", ".npz", ".zip", ".gz")


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
