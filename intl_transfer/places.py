"""Where configurations and the clone lie, for the package in a clone and installed from a wheel."""

from __future__ import annotations

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
