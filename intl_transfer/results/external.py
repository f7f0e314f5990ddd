"""Reads external output folders of Detectron2.

The final evaluation is used, never the best one: the last line of ``metrics.json`` with metrics, or
the last evaluation in ``log.txt``, if it is of the last iteration.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.files.yamls import read_yaml
from intl_transfer.results.reading import check_plain
from intl_transfer.results.run import METRICS
from intl_transfer.runs.architectures import architecture
from intl_transfer.runs.folders import CONFIG, LABEL, LOG, METRICS_JSON
from intl_transfer.runs.metrics import end_of
from intl_transfer.runs.records import (
    SCHEMA,
    AnyResults,
    Architecture,
    Dataset,
    DetectionResults,
    Initialization,
    Input,
    Manifest,
    Provenance,
    Schedule,
)
from intl_transfer.runs.schedules import schedule_name
from intl_transfer.runs.settings import flatten

# The final evaluation is at the end; logs of long trainings are long.
_TAIL_BYTES = 8 << 20
# CommonMetricPrinter writes every 20 iterations.
_PRINTED_EVERY = 20
_TASKS = {
    "bbox": "box",
    "segm": "mask",
    "keypoints": "keypoints",
    "sem_seg": "semantic",
    "panoptic_seg": "panoptic",
}
# After a separator: the `s` of `epochs100` or `views2` is no seed's.
_SEED_IN_NAME = re.compile(r"[-_. ](?:seed|run|trial|s)[-_]?(\d{1,6})$", re.IGNORECASE)


def read_external(
    path: Path, files: Mapping[str, os.stat_result], label: str | None = None
) -> tuple[Manifest, DetectionResults | None]:
    """The manifest and results of an external Detectron2 folder, in our format.

    Args:
        path: the folder.
        files: ``stat`` results of its files in :data:`~intl_transfer.runs.folders.EXTERNAL`.
        label: the method's name; overrides ``label.yaml``'s and the folder's.

    Returns:
        The manifest, and the results, or None if training has not ended.

    Raises:
        UserError: if the configuration is damaged, lacks the schedule, or contains code.
    """
    for name, status in files.items():
        check_plain(path / name, status, limited=name in (CONFIG, LABEL))
    config = read_yaml(path / CONFIG)
    if not config:
        raise UserError(f"{path / CONFIG}: expected keys and values, found nothing")
    given = read_yaml(path / LABEL) if LABEL in files else {}
    stated = _stated(path, config)
    name, number = _named(path.name)
    try:
        known: Any = given.get("seed", stated.seed if stated.seed >= 0 else number)
        unknown = [] if known is not None or "seed" in given else ["seed"]
        seed = 0 if unknown else int(known)
    except (TypeError, ValueError):
        found = given.get("seed")
        raise UserError(f"{path / LABEL}: seed is {found!r}, expected a number") from None
    metrics, source = _final_metrics(path, files, stated.dataset.name, stated.iterations)
    method = label or str(given.get("method") or name)
    manifest = Manifest(
        schema_version=SCHEMA,
        id="",
        stage="detection",
        name=path.name,
        method=method,
        status="finished" if metrics else "running",
        config_name=CONFIG,
        config=config,
        seed=seed,
        inputs=[Input(role="weights", path=stated.weights)] if stated.weights else [],
        sessions=[],
    )
    if metrics is None:
        return manifest, None
    results = DetectionResults(
        schema_version=SCHEMA,
        stage="detection",
        dataset=stated.dataset.model_copy(update={"layout": "voc" if "voc" in metrics else "coco"}),
        architecture=stated.architecture,
        schedule=stated.schedule,
        initialization=Initialization(
            kind="external",
            method=method,
            detail=str(given.get("detail") or _weights_name(stated.weights)),
            # Where the file lies concerns nobody; its folder may be all that tells it apart.
            provenance=Provenance(source_path="/".join(Path(stated.weights).parts[-2:])),
        ),
        seed=seed,
        iteration=stated.iterations,
        metrics=metrics,
        external="Detectron2",
        source=source,
        not_stated=unknown,
    )
    return manifest, results


def unread(manifest: Manifest, results: AnyResults) -> list[str]:
    """What a folder has and its row does not, as text: metrics of further test sets.

    Args:
        manifest: from :func:`read_external`; of other runs there is nothing.
        results: its results.
    """
    if results.external is None or not isinstance(results, DetectionResults):
        return []
    others = list(map(str, flatten(manifest.config).get("DATASETS.TEST") or []))[1:]
    if not others:
        return []
    return [
        f"DATASETS.TEST names {len(others) + 1} data sets; the row has the metrics of the first, "
        f"{results.dataset.name}, and not those of {', '.join(others)}"
    ]


@dataclass(frozen=True)
class _Stated:
    """The facts in Detectron2's configuration; the seed is -1 if it is random."""

    architecture: Architecture
    dataset: Dataset
    schedule: Schedule
    iterations: int
    weights: str
    seed: int


def _stated(path: Path, config: Mapping[str, Any]) -> _Stated:
    """Reads a folder's configuration.

    Raises:
        UserError: if it is incomplete.
    """
    try:
        solver, model = config["SOLVER"], config["MODEL"]
        iterations, batch = int(solver["MAX_ITER"]), int(solver["IMS_PER_BATCH"])
        base_lr, steps = float(solver["BASE_LR"]), tuple(map(int, solver["STEPS"]))
        train, test = list(config["DATASETS"]["TRAIN"]), list(config["DATASETS"]["TEST"])
        built = architecture({**config, "MODEL": {**model, "RESNETS": {**model["RESNETS"]}}})
        name, sets = str(test[0]), list(map(str, train))
        return _Stated(
            built,
            Dataset(name=name, train=sets),
            Schedule(
                name=schedule_name(sets, iterations, steps, batch),
                iterations=iterations,
                batch_size=batch,
                base_lr=base_lr,
            ),
            iterations,
            weights=str(model.get("WEIGHTS") or ""),
            seed=int(config.get("SEED", -1)),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"{path / CONFIG} is not a whole Detectron2 configuration ({error!r})"
        ) from None


def _named(folder: str) -> tuple[str, int | None]:
    """A folder's name without the seed at its end, and that seed (None without one)."""
    match = _SEED_IN_NAME.search(folder)
    if match is None or match.start() == 0:
        return folder, None
    return folder[: match.start()], int(match.group(1))


def _is_voc(flat: Mapping[tuple[str, str], Any], dataset: str) -> bool:
    """Whether metrics are of VOC's evaluation.

    Detectron2's has AP, AP50 and AP75 of boxes alone; COCO's also those of sizes, classes or masks.
    Where that leaves both, the data set's name decides, by its last word that is a layout.
    """
    if any(kind != "bbox" or metric not in METRICS for kind, metric in flat):
        return False
    words = [word for word in re.findall("[a-z]+", dataset.lower()) if word in ("coco", "voc")]
    return words[-1:] == ["voc"]


def _weights_name(weights: str) -> str:
    return f"weights {Path(weights).name}" if weights else "no weights"


def _tail(file: Path) -> str:
    """The end of a file, from the start of a line."""
    try:
        return end_of(file, _TAIL_BYTES).decode(errors="replace")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from None


def _final_metrics(
    path: Path, files: Mapping[str, os.stat_result], test: str, iterations: int
) -> tuple[dict[str, Any] | None, str]:
    """The metrics of the last iteration, and the file they are from."""
    if METRICS_JSON in files:
        later: list[int] = []  # iterations of the lines after it
        for line in reversed(_tail(path / METRICS_JSON).splitlines()):
            found = _of_json(line, test)
            if found is None:
                continue
            reached, final = found
            if not final:
                later.append(reached)
                continue
            if min(later, default=reached) < reached:
                return None, ""  # training began again in this folder
            # Counted from 0; the final evaluation is at the last iteration or after it.
            if reached >= iterations - 1:
                return final, METRICS_JSON
            break
    if LOG in files:
        metrics = _of_log(_tail(path / LOG), test, iterations)
        if metrics:
            return metrics, LOG
    return None, ""


def _of_json(line: str, test: str) -> tuple[int, dict[str, Any]] | None:
    """Iteration and metrics, if any, of one line of ``metrics.json``; None if it is damaged."""
    try:
        values = json.loads(line)
        iteration = int(values["iteration"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None  # truncated by a crash
    flat: dict[tuple[str, str], Any] = {}
    for key, value in values.items():
        # "bbox/AP50", or "coco_2017_val/bbox/AP50" where several sets are evaluated
        words = key.removeprefix(f"{test}/").split("/", 1)
        if len(words) == 2 and words[0] in _TASKS:
            flat[words[0], words[1]] = value
    return iteration, _arranged(flat, test)


def _of_log(text: str, test: str, iterations: int) -> dict[str, Any] | None:
    """The last evaluation of ``log.txt``, if it is of the model at the end of training."""
    reached, final_model = -1, False  # of what is evaluated next
    current: dict[tuple[str, str], Any] = {}
    dataset, task = test, ""
    names: list[str] = []
    blocks: list[tuple[int, bool, str, dict[tuple[str, str], Any]]] = []
    for line in text.splitlines():
        if match := re.search(r"\biter: (\d+)\b", line):
            reached, final_model = int(match.group(1)), False
            # From here, training began again in this folder: earlier evaluations are another's.
            blocks = [block for block in blocks if not block[1] and block[0] <= reached]
        elif "oading from" in line:
            reached, final_model = -1, "model_final" in line
        elif match := re.search(r"Evaluation results for (\S+) in csv format", line):
            dataset, current = match.group(1), {}
            blocks.append((reached, final_model, dataset, current))
        elif match := re.search(r"copypaste: (.*)$", line):
            words = match.group(1)
            if words.startswith("Task: "):
                task, names = words[6:].strip(), []
                if not blocks or any(kind == task for kind, _ in current):  # no heading
                    current = {}
                    blocks.append((reached, final_model, test, current))
            elif not names:
                names = words.split(",")
            else:
                for metric, value in zip(names, words.split(","), strict=False):
                    current[task, metric.strip()] = _number(value)
                names = []
    for reached, final_model, dataset, found in reversed(blocks):
        if dataset == test and found:
            if final_model or reached >= iterations - 1 - _PRINTED_EVERY:
                return _arranged(found, test)
            if reached >= 0:
                return None
            # Otherwise an evaluation of other weights alone.
    return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _arranged(flat: Mapping[tuple[str, str], Any], test: str) -> dict[str, Any]:
    """``{"box": {"AP": ..., "per_class": {...}}}``; values that are not numbers are null."""
    metrics: dict[str, Any] = {}
    tasks = {**_TASKS, "bbox": "voc"} if _is_voc(flat, test) else _TASKS
    for (kind, metric), value in flat.items():
        task = tasks.get(kind)
        if task is None:
            continue
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        number = float(value) if good and math.isfinite(value) else None
        of_task = metrics.setdefault(task, {"per_class": {}})
        if metric.startswith("AP-"):
            of_task["per_class"][metric[3:]] = number
        else:
            of_task[metric] = number
    return metrics
