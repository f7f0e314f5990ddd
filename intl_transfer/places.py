"""Locations of configurations and the clone, for a clone and for a wheel."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent
#: Folders of stages and launchers in a clone.
_STAGES = ("pretrain/train.py", "detection/train_net.py", "slurm/launch_pretrain.py")
#: Features that need a clone, for messages.
NEEDS_CLONE = "pretraining, fine-tuning detectors, SLURM launchers and `doctor --cluster`"


def home() -> Path:
    """The user's home; the temporary folder where there is none.

    In a container, a user may have neither ``HOME`` nor an entry in the list of users.
    """
    try:
        return Path.home()
    except RuntimeError:
        return Path(tempfile.gettempdir())


def expanded(value: Any) -> Any:
    """A value whose texts that begin with ``~`` are paths below the home.

    Args:
        value: of any type; mappings and lists keep their keys and order.
    """
    if isinstance(value, str):
        return os.path.expanduser(value)
    if isinstance(value, Mapping):
        return {key: expanded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(expanded, value))
    return value


def cache_folder() -> Path:
    """The folder of this suite in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or home() / ".cache") / "intl-transfer"


def config_folder(stage: str) -> Path:
    """The configurations of a stage: those built into a wheel, or the clone's.

    Args:
        stage: a folder of ``configs/`` that is built in (``setup.py``).
    """
    built_in = _PACKAGE / "configs" / stage
    return built_in if built_in.is_dir() else _PACKAGE.parent / "configs" / stage


def clone() -> Path | None:
    """The clone that contains the package; None if installed from a wheel."""
    root = _PACKAGE.parent
    return root if all((root / name).is_file() for name in _STAGES) else None


def use_own_sources(name: str, file: str) -> None:
    """Makes a script import from its own copy of the sources; call it before other imports.

    The editable install refers to one clone, which must not be mixed with a job's copy of the
    sources or another clone. The script's own folder is removed from the search path:
    ``detection/datasets.py`` is `detection.datasets`, and no library's `datasets`.

    Args:
        name: the script's ``__name__``; does nothing if it is imported.
        file: its ``__file__``.

    Raises:
        ModuleNotFoundError: if `make setup` has not been run.
    """
    if importlib.util.find_spec("torch") is None:
        raise ModuleNotFoundError("torch is not installed")
    if name != "__main__":
        return
    own = Path(file).resolve().parent
    root = own.parent
    sys.path[:] = [str(root), *(place for place in sys.path if Path(place).resolve() != own)]
    if _PACKAGE.parent != root:
        for module in [module for module in sys.modules if module.split(".")[0] == "intl_transfer"]:
            del sys.modules[module]
