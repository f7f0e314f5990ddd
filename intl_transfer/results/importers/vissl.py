"""VISSL's ``metrics.json``: one JSON object per line, metrics in % by layer of the head.

``{"iteration": 9000, "phase_idx": 55, "train_phase_idx": 27, "test_accuracy_list_meter":
{"top_1": {"0": 69.9}, "top_5": {"0": 89.4}}}``
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.results.importers.found import Found, Progress, final, json_lines, only_file

_TEST, _TRAIN = "test_accuracy_list_meter", "train_accuracy_list_meter"
_METRICS = {"top_1": "top1", "top_5": "top5"}


def read(source: Path, layer: str | None = None) -> Found:
    """The last test of a log, never the best one.

    Args:
        source: the file, or a folder with only one.
        layer: of the head to use, if there are several.

    Raises:
        UserError: if there is no test, training continued or began again after the last one, or it
            has several heads and none is named.
    """
    file = only_file(source, ("metrics.json", "checkpoints/metrics.json"), "metrics.json of VISSL")
    last: dict[str, Any] = {}
    progress = Progress()
    for line in json_lines(file):
        phase = line.get("train_phase_idx")
        position = (phase,) if isinstance(phase, int) and phase >= 0 else ()
        if isinstance(line.get(_TEST), dict):
            last = line
            progress.tested(position)
        elif _TRAIN in line:
            progress.trained(position)
    if not last:
        raise UserError(f"{file}: no test; expected lines with {_TEST}")
    progress.require_end(file, lambda position: f"training phase {position[0]}")
    found = last[_TEST]
    layers = sorted(
        {key for values in found.values() if isinstance(values, dict) for key in values}
    )
    if layer is None and len(layers) != 1:
        names = ", ".join(layers) or "none"
        raise UserError(f"{file}: expected one head, found {len(layers)}: {names}; give --layer")
    chosen = layers[0] if layer is None else layer
    if chosen not in layers:
        raise UserError(f"{file}: no head '{layer}'; there are {', '.join(layers)}")
    of_head = {
        name: values[chosen]
        for name in _METRICS
        if isinstance(values := found.get(name), dict) and chosen in values
    }
    if not of_head:
        raise UserError(f"{file}: {_TEST} has no top_1 or top_5 of '{chosen}'")
    metrics = {_METRICS[name]: value for name, value in final(file, of_head).items()}
    (phase,) = progress.evaluated or (None,)
    at = "not stated" if phase is None else f"training phase {phase}"
    epoch = None if phase is None else phase + 1
    return Found(metrics, "VISSL", at, epoch, detection=False)
