"""Settings in which runs of one schedule still differ, so that they are not mixed in silence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intl_transfer.results.collect import Run

# Where things lie, how the machine is used, what is told meanwhile; and what the schedule, the
# architecture and the seed of the results say already.
_FREE = (
    "OUTPUT_DIR", "SEED", "VERSION", "CUDNN_BENCHMARK", "VIS_PERIOD", "GLOBAL.",
    "FLOAT32_PRECISION", "CUSTOM_DATASETS", "MODEL.WEIGHTS", "MODEL.DEVICE", "DATALOADER.",
    "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD", "TEST.EXPECTED_RESULTS", "SOLVER.BASE_LR",
    "SOLVER.IMS_PER_BATCH", "SOLVER.MAX_ITER", "SOLVER.REFERENCE_WORLD_SIZE",
    "DATASETS.PROPOSAL_FILES_",
    # These belong to the weights, not to the protocol: a row brings its own.
    "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.FORMAT", "MODEL.RESNETS.STRIDE_IN_1X1",
)  # fmt: skip


def settings(config: dict[str, Any]) -> dict[str, str]:
    """The settings of a configuration that make runs comparable, by dotted key."""
    found: dict[str, str] = {}
    _flatten(config, "", found)
    return found


def _flatten(values: dict[str, Any], prefix: str, found: dict[str, str]) -> None:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            _flatten(value, f"{name}.", found)
        elif not name.startswith(_FREE):
            found[name] = value if isinstance(value, str) else repr(value)


def fingerprint(run: Run) -> str:
    """The same for runs whose settings agree."""
    text = json.dumps(settings(run.manifest["config"]), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def split(runs: Sequence[Run]) -> list[tuple[dict[str, str], list[Run]]]:
    """Runs of one schedule in groups whose settings agree.

    A setting that only some of the configurations have (another version's) tells nothing unless
    those that have it differ.

    Args:
        runs: that share data, architecture and schedule.

    Returns:
        For each group the settings in which the groups differ, with this one's values, and its
        runs.
    """
    configs = [settings(run.manifest["config"]) for run in runs]
    values: dict[str, set[str]] = {}
    for config in configs:
        for key, value in config.items():
            values.setdefault(key, set()).add(value)
    differing = sorted(key for key, found in values.items() if len(found) > 1)
    groups: dict[tuple[str | None, ...], list[Run]] = {}
    for run, config in zip(runs, configs, strict=True):
        groups.setdefault(tuple(config.get(key) for key in differing), []).append(run)
    return [
        ({k: v for k, v in zip(differing, found, strict=True) if v is not None}, members)
        for found, members in groups.items()
    ]


def in_words(differing: dict[str, str]) -> str:
    """Settings as a title names them, the first four of many."""
    parts = [f"{name} {value}" for name, value in differing.items()]
    shown = parts if len(parts) <= 4 else [*parts[:4], f"and {len(parts) - 4} more settings"]
    return ", ".join(shown)
