"""OpenMMLab's logs: ``vis_data/scalars.json`` of MMEngine, ``*.log.json`` of MMCV before it.

Both have one JSON object a line. MMEngine's evaluations have keys ``coco/bbox_mAP`` and a
``step``, its training lines ``loss``, ``epoch``, ``iter``, ``step``; MMCV's lines say ``mode``
(``train`` or ``val``), and the first of them describes the machine. Figures are fractions.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.results.importers.found import Found, figure, json_lines, only_file

_KEY = re.compile(r"(?:(?P<set>[\w-]+)/)?(?P<task>bbox|segm)_mAP(?:_(?P<part>50|75|s|m|l))?$")
_METRICS = {None: "AP", "50": "AP50", "75": "AP75", "s": "APs", "m": "APm", "l": "APl"}
_TASKS = {"bbox": "box", "segm": "mask"}
_VOC = re.compile(r"(?:pascal_voc/)?(mAP|AP50)$")


def read(source: Path) -> Found:
    """The last evaluation of a log, never the best one.

    Args:
        source: the file, or a folder with only one.

    Raises:
        UserError: if there is no evaluation, or training went on after the last one.
    """
    patterns = ("*.log.json", "scalars.json", "vis_data/scalars.json", "*/vis_data/scalars.json")
    file = only_file(source, patterns, "log of OpenMMLab (vis_data/scalars.json or *.log.json)")
    last: dict[str, Any] = {}
    trained, seed = 0, None
    trained_epoch = 0
    for line in json_lines(file):
        seed = line.get("seed", seed)
        if any(_KEY.match(key) or _VOC.match(key) for key in line):
            last = line
        elif "loss" in line:
            trained = max(trained, _whole(line.get("step"), line.get("iter")))
            trained_epoch = max(trained_epoch, _whole(line.get("epoch")))
    metrics = _metrics(last)
    if not metrics:
        raise UserError(
            f"{file}: no evaluation; expected lines with keys such as coco/bbox_mAP or bbox_mAP"
        )
    step, epoch = _whole(last.get("step")), _whole(last.get("epoch"))
    old = "mode" in last
    # MMEngine counts evaluations in epochs where training is, else in iterations.
    reached = epoch >= trained_epoch if old else step >= (trained_epoch or trained)
    if not reached:
        raise UserError(
            f"{file}: its last evaluation (at {epoch or step}) is not of the end: training went "
            f"on to epoch {trained_epoch}, iteration {trained}; only the final one counts"
        )
    at = f"epoch {epoch}" if old else f"step {step}" if step else "not stated"
    stated = {"seed": seed} if isinstance(seed, int) and not isinstance(seed, bool) else {}
    return Found(metrics, "OpenMMLab", at, epoch or None, stated)


def _whole(*values: Any) -> int:
    return max((v for v in values if isinstance(v, int) and not isinstance(v, bool)), default=0)


def _metrics(line: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in line.items():
        if match := _KEY.match(key):
            metrics = found.setdefault(_TASKS[match["task"]], {})
            metrics[_METRICS[match["part"]]] = figure(value, 100)
        elif (voc := _VOC.match(key)) and (known := figure(value, 100)) is not None:
            found.setdefault("voc", {})["AP50" if voc[1] == "AP50" else "mAP"] = known
    return {task: metrics for task, metrics in found.items() if any(metrics.values())}
