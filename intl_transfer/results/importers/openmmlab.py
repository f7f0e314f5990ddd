"""OpenMMLab's logs: ``vis_data/scalars.json`` of MMEngine, ``*.log.json`` of MMCV before it.

Both have one JSON object per line, in the order of time. MMEngine's evaluations have keys
``coco/bbox_mAP`` and a ``step``, which counts epochs, and is 0 in a loop of iterations; its
training lines have ``loss``, ``iter``, ``step`` and, in a loop of epochs, ``epoch``. MMCV's lines
say ``mode`` (``train`` or ``val``), and the first of them describes the machine. Metrics are
fractions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.results.importers.found import Found, json_lines, only_file, percentage

_KEY = re.compile(r"(?:(?P<set>[\w-]+)/)?(?P<task>bbox|segm)_mAP(?:_(?P<part>50|75|s|m|l))?$")
_METRICS = {None: "AP", "50": "AP50", "75": "AP75", "s": "APs", "m": "APm", "l": "APl"}
_TASKS = {"bbox": "box", "segm": "mask"}
_VOC = re.compile(r"(?:pascal_voc/)?(mAP|AP50)$")


def read(source: Path) -> Found:
    """The last evaluation of a log, never the best one.

    Args:
        source: the file, or a folder with only one.

    Raises:
        UserError: if there is no evaluation, or training continued after the last one.
    """
    patterns = ("*.log.json", "scalars.json", "vis_data/scalars.json", "*/vis_data/scalars.json")
    file = only_file(source, patterns, "log of OpenMMLab (vis_data/scalars.json or *.log.json)")
    last: dict[str, Any] = {}
    before, after = _Training(), _Training()  # the last evaluation
    seed = None
    for line in json_lines(file):
        seed = line.get("seed", seed)
        if any(_KEY.match(key) or _VOC.match(key) for key in line):
            last, before, after = line, before.later(after), _Training()
        elif "loss" in line:
            after = after.later(_Training.of(line))
    sets = sorted({match["set"] or "" for key in last if (match := _KEY.match(key))})
    if len(sets) > 1:
        raise UserError(
            f"{file}: its last evaluation is of several data sets: {', '.join(sets)}; expected "
            "one. Leave the keys of one of them in that line"
        )
    metrics = _metrics(last)
    if not metrics:
        raise UserError(
            f"{file}: no evaluation; expected lines with keys such as coco/bbox_mAP or bbox_mAP"
        )
    # Both count epochs if training does; otherwise only training lines show its progress.
    epoch = _whole(last.get("epoch"), last.get("step") if "mode" not in last else None)
    epoch = epoch if before.epoch or after.epoch or "mode" in last else 0
    at = f"epoch {epoch}" if epoch else f"iteration {before.iteration or 'not stated'}"
    if after != _Training() or before.epoch > epoch > 0:
        on = before.later(after)
        raise UserError(
            f"{file}: its last evaluation (at {at}) is not of the end: training continued to "
            f"{on}; only the final one counts"
        )
    stated = {"seed": seed} if isinstance(seed, int) and not isinstance(seed, bool) else {}
    return Found(metrics, "OpenMMLab", at, epoch or None, stated)


@dataclass(frozen=True)
class _Training:
    """The progress of training."""

    epoch: int = 0
    iteration: int = 0

    @classmethod
    def of(cls, line: dict[str, Any]) -> _Training:
        # MMEngine's step is the iteration of all; its iter, and MMCV's in epochs, of the epoch.
        return cls(_whole(line.get("epoch")), _whole(line.get("step"), line.get("iter")) or 1)

    def later(self, other: _Training) -> _Training:
        return _Training(max(self.epoch, other.epoch), max(self.iteration, other.iteration))

    def __str__(self) -> str:
        epoch = f"epoch {self.epoch}, " if self.epoch else ""
        return f"{epoch}iteration {self.iteration}"


def _whole(*values: Any) -> int:
    return max((v for v in values if isinstance(v, int) and not isinstance(v, bool)), default=0)


def _metrics(line: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in line.items():
        if match := _KEY.match(key):
            metrics = found.setdefault(_TASKS[match["task"]], {})
            metrics[_METRICS[match["part"]]] = percentage(value, 100)
        elif (voc := _VOC.match(key)) and (known := percentage(value, 100)) is not None:
            found.setdefault("voc", {})["AP50" if voc[1] == "AP50" else "mAP"] = known
    return {task: metrics for task, metrics in found.items() if any(metrics.values())}
