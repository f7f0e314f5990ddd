"""OpenMMLab's logs: ``vis_data/scalars.json`` of MMEngine, ``*.log.json`` of MMCV before it.

Both have one JSON object per line, in the order of time. MMEngine's evaluations have keys
``coco/bbox_mAP`` and a ``step``, which counts epochs, and is 0 in a loop of iterations; its
training lines have ``loss``, ``iter``, ``step`` and, in a loop of epochs, ``epoch``. MMCV's lines
say ``mode`` (``train`` or ``val``), and the first of them describes the machine. Metrics are
fractions.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.results.importers.found import (
    Found,
    Position,
    Progress,
    final,
    json_lines,
    only_file,
)

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
    progress = Progress()
    seed = None
    for line in json_lines(file):
        seed = line.get("seed", seed)
        if any(_KEY.match(key) or _VOC.match(key) for key in line):
            last = line
            progress.tested(_evaluated(line, progress.now))
        elif "loss" in line:
            # MMEngine's step is the iteration of all; its iter, and MMCV's in epochs, of the epoch.
            iteration = _whole(line.get("step"), line.get("iter")) or 1
            progress.trained((_whole(line.get("epoch")), iteration))
    sets = sorted({match["set"] or "" for key in last if (match := _KEY.match(key))})
    if len(sets) > 1:
        raise UserError(
            f"{file}: its last evaluation is of several data sets: {', '.join(sets)}; expected "
            "one. Leave the keys of one of them in that line"
        )
    metrics = _metrics(file, last)
    if not metrics:
        raise UserError(
            f"{file}: no evaluation; expected lines with keys such as coco/bbox_mAP or bbox_mAP"
        )
    progress.require_end(file, _in_words)
    epoch, iteration = progress.evaluated or (0, 0)
    at = f"epoch {epoch}" if epoch else f"iteration {iteration or 'not stated'}"
    stated = {"seed": seed} if isinstance(seed, int) and not isinstance(seed, bool) else {}
    return Found(metrics, "OpenMMLab", at, epoch or None, stated)


def _evaluated(line: dict[str, Any], now: Position) -> Position:
    """The epoch and iteration of an evaluation, given those of the last line; () if unknown.

    It counts epochs if training does; otherwise only training lines show its progress.
    """
    trained, iteration = now or (0, 0)
    if not (trained or "mode" in line):
        return ()
    epoch = _whole(line.get("epoch"), line.get("step") if "mode" not in line else None)
    return epoch or trained, iteration


def _in_words(position: Position) -> str:
    epoch, iteration = position
    parts = [f"epoch {epoch}" if epoch else "", f"iteration {iteration}" if iteration else ""]
    return ", ".join(part for part in parts if part) or "an unknown position"


def _whole(*values: Any) -> int:
    return max((v for v in values if isinstance(v, int) and not isinstance(v, bool)), default=0)


def _metrics(file: Path, line: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    used = {key: value for key, value in line.items() if _KEY.match(key) or _VOC.match(key)}
    for key, value in final(file, used, 100, is_detection=True).items():
        if match := _KEY.match(key):
            metrics = found.setdefault(_TASKS[match["task"]], {})
            metrics[_METRICS[match["part"]]] = value
        elif (voc := _VOC.match(key)) and value is not None:
            found.setdefault("voc", {})["AP50" if voc[1] == "AP50" else "mAP"] = value
    return {
        task: metrics
        for task, metrics in found.items()
        if any(value is not None for value in metrics.values())
    }
