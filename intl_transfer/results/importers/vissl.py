"""VISSL's ``metrics.json``: one JSON object per line, metrics in % by layer of the head.

``{"iteration": 9000, "phase_idx": 55, "train_phase_idx": 27, "test_accuracy_list_meter":
{"top_1": {"0": 69.9}, "top_5": {"0": 89.4}}}``
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.results.importers.found import Found, json_lines, only_file, percentage

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
    trained, later = -1, list[int]()  # later: training phases after the last test
    for line in json_lines(file):
        phase = line.get("train_phase_idx")
        phase = phase if isinstance(phase, int) else -1
        if isinstance(line.get(_TEST), dict):
            last, later = line, []
        elif _TRAIN in line:
            trained = max(trained, phase)
            later.append(phase)
    if not last:
        raise UserError(f"{file}: no test; expected lines with {_TEST}")
    phase = last.get("train_phase_idx")
    if isinstance(phase, int) and phase < trained:
        raise UserError(
            f"{file}: its last test is after training phase {phase}, and training continued to "
            f"{trained}; only the final one counts"
        )
    again = [one for one in later if isinstance(phase, int) and -1 < one < phase]
    if again:
        raise UserError(
            f"{file}: training began again at phase {min(again)} after its last test, of phase "
            f"{phase}; this log does not have the test of the end"
        )
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
    metrics = {
        ours: value
        for theirs, ours in _METRICS.items()
        if (value := percentage((found.get(theirs) or {}).get(chosen))) is not None
    }
    if not metrics:
        raise UserError(f"{file}: {_TEST} has no top_1 or top_5 of '{chosen}'")
    epoch = phase + 1 if isinstance(phase, int) and phase >= 0 else None
    at = f"training phase {phase}" if epoch else "not stated"
    return Found(metrics, "VISSL", at, epoch, detection=False)
