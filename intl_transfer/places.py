"""Where configurations and the clone lie, for the package in a clone and installed from a wheel."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
#: What of a clone stages and launchers are.
_STAGES = ("pretrain/train.py", "detection/train_net.py", "slurm/launch_pretrain.py")
#: What needs a clone, for messages.
NEEDS_CLONE = "pretraining, fine-tuning detectors, SLURM launchers and `doctor --cluster`"


def config_folder(stage: str) -> Path:
    """The configurations of a stage: those built into a wheel, or the clone's.

    Args:
        stage: a folder of ``configs/`` that is built in (``setup.py``).
    """
    built_in = _PACKAGE / "configs" / stage
    return built_in if built_in.is_dir() else _PACKAGE.parent / "configs" / stage


def clone() -> Path | None:
    """The clone that the package is run from; None for an installed one."""
    root = _PACKAGE.parent
    return root if all((root / name).is_file() for name in _STAGES) else None


def use_own_sources(name: str, file: str) -> None:
    """Makes a script import from the sources that it lies among; called before other imports.

    The editable install leads to one clone. A job's copy of the sources, and another clone that
    shares the environment, must not be mixed with that. Nor is the script's own folder searched,
    as Python would: ``detection/datasets.py`` is `detection.datasets`, and no library's `datasets`.

    Args:
        name: the script's ``__name__``; where it is imported, nothing is done.
        file: its ``__file__``.

    Raises:
        ModuleNotFoundError: if what `make setup` installs is not here.
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
