"""A fine-tuned detector's own file: its metadata, which make it self-contained.

``model_final.pth`` contains, under ``detector``, the configuration, the class names in the order of
its outputs, and its origin; and under ``config`` its image preprocessing, like converted weights.
It gives the same results outside its folder.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator

from detection.checkpoints import KEY, newest_checkpoint
from detection.config import RANDOM, like
from intl_transfer.conversion.settings import config_values
from intl_transfer.data.class_names import unique_names
from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.runs import read_results
from intl_transfer.runs.records import DetectionResults, Detector
from intl_transfer.runs.settings import comparable, flatten, role_of

# Keys of MODEL that concern the machine or the command rather than the detector.
_NOT_ITS_OWN = ("MODEL.DEVICE", "MODEL.WEIGHTS")
# Sections of settings that a detector's test depends on.
_SECTIONS = ("INPUT", "TEST", "CONTROL", "MODEL")


def statement(record: Detector) -> dict[str, Any]:
    """The metadata written into a checkpoint: plain values only.

    Args:
        record: of the detector.
    """
    settings = flatten(record.config)
    return {
        KEY: record.as_json(),
        "config": {key: settings[key] for key in config_values("resnet50")},
        "config_source": "the detector's configuration",
    }


def stated(content: Mapping[str, Any], path: str | Path) -> Detector | None:
    """The metadata of a detector's file; None for files of other software or earlier versions.

    Args:
        content: of the file, from :func:`detection.weights.read_weights`.
        path: the file, for messages.

    Raises:
        UserError: if the metadata is incomplete.
    """
    return None if content.get(KEY) is None else Detector.of(content[KEY], f"{path}: {KEY}")


def find(weights: str | None, purpose: str) -> Path:
    """The file of a detector, given as a file or as a run directory.

    Args:
        weights: as given.
        purpose: such as ``--demo``, for messages.

    Returns:
        The file itself, or the directory's ``model_final.pth``; otherwise its newest intact
        checkpoint.

    Raises:
        UserError: if nothing is given, or a directory without a checkpoint.
    """
    if not weights or weights == RANDOM:
        raise UserError(
            f"{purpose} needs a fine-tuned detector: --weights FILE or --weights RUN_DIRECTORY"
        )
    path = Path(weights)
    if not path.is_dir():
        return path
    final = path / "model_final.pth"
    if final.exists():
        return final
    chosen = newest_checkpoint(path)
    if chosen is None:
        raise UserError(f"{path} contains no checkpoint (model_*.pth)")
    return chosen


def class_names(content: Mapping[str, Any], path: Path) -> list[str] | None:
    """Names of a detector's classes in the order of its outputs, if known.

    Args:
        content: of the file.
        path: the file; run directories of earlier versions state them in ``results.json``.
    """
    record = stated(content, path)
    if record is not None:
        return list(record.classes)
    results = read_results(path.parent)
    for of_task in results.metrics.values() if isinstance(results, DetectionResults) else ():
        if isinstance(of_task.get("per_class"), Mapping):
            return list(of_task["per_class"])
    return None


def decides_test(key: str) -> bool:
    """Whether a setting says how a detector is tested, rather than what it is.

    Args:
        key: such as ``INPUT.MIN_SIZE_TEST``.
    """
    section = key.partition(".")[0]
    if section == "TEST":  # precise batch norm is estimated in training
        return not key.startswith("TEST.PRECISE_BN.") and role_of("detection", key, {}) != "free"
    return key == "CONTROL.NOISE" or (section in _SECTIONS and key.endswith("_TEST"))


def protocol(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a configuration that say how a detector is tested, by dotted key."""
    sections = flatten({section: cfg[section] for section in _SECTIONS if section in cfg})
    return {key: value for key, value in sections.items() if decides_test(key)}


def tested_otherwise(cfg: Mapping[str, Any], record: Detector) -> list[str]:
    """Settings of a test that differ from those of the detector's own, for the user.

    Args:
        cfg: the configuration of the test.
        record: the file's metadata.
    """
    own = protocol(record.config)
    return [
        f"{key} {value} ({own[key]})"
        for key, value in protocol(cfg).items()
        if key in own and comparable(own[key]) != comparable(value)
    ]


def follow_detector(cfg: Any, record: Detector, given: Container[str] = ()) -> list[str]:
    """Adapts a configuration to the detector in a file.

    This includes all of ``MODEL`` and the channel order: with other anchors or strides the same
    weights load, but detect nothing. It also includes the settings of its test: at another size
    than it was trained for it detects less.

    Args:
        cfg: the configuration, not frozen.
        record: the file's metadata.
        given: keys set by the user; they take precedence.

    Returns:
        The changed settings, for the user.
    """
    own = flatten(record.config)
    changed = []
    for key in flatten({section: cfg[section] for section in _SECTIONS}):
        is_its_own = key.startswith("MODEL.") or key == "INPUT.FORMAT" or decides_test(key)
        if not is_its_own or key not in own or key in given or key in _NOT_ITS_OWN:
            continue
        *folders, leaf = key.split(".")
        node = cfg
        for folder in folders:
            node = node[folder]
        target = like(node[leaf], own[key])
        if node[leaf] != target:
            node[leaf] = target
            changed.append(f"{key} {own[key]}")
    return changed


def match_classes(
    theirs: Sequence[str] | None, ours: Sequence[str], path: str | Path, name: str
) -> list[int] | None:
    """Maps a detector's classes to a data set's, by name.

    Args:
        theirs: names of the detector's classes; None if unknown.
        ours: names of the data set's.
        path: the detector's file, for messages.
        name: the data set's.

    Returns:
        For each of the detector's classes its index in the data set, -1 if not in it; None if both
        are the same, or the detector's are unknown.

    Raises:
        UserError: for classes that the detector does not know, and for duplicate names.
    """
    if theirs is None or list(theirs) in (list(ours), unique_names(ours)):
        return None
    missing = [word for word in ours if word not in theirs]
    if missing:
        raise UserError(
            f"'{name}' has {len(missing)} class(es) that the detector {path} was not trained on: "
            f"{', '.join(missing[:5])}.{did_you_mean(missing[0], theirs)} It knows "
            f"{', '.join(list(theirs)[:8])}{' …' if len(theirs) > 8 else ''}. Use the same names "
            "in the data set (CLASSES of CUSTOM_DATASETS, or the json file's categories), or a "
            "data set with its classes"
        )
    for whose, names in ((f"the detector {path}", theirs), (f"'{name}'", ours)):
        twice = [word for word in names if list(names).count(word) > 1]
        if twice:
            raise UserError(
                f"{whose} has several classes of the name '{twice[0]}': classes that differ in "
                "their order cannot be matched by name. Rename one of them"
            )
    return [list(ours).index(word) if word in ours else -1 for word in theirs]


class InClassesOf(DatasetEvaluator):
    """An evaluator that maps a detector's classes to the data set's.

    Detections of other classes are dropped.

    Args:
        evaluator: of the data set.
        places: from :func:`match_classes`.
    """

    def __init__(self, evaluator: DatasetEvaluator, places: Sequence[int]) -> None:
        self._evaluator, self._places = evaluator, torch.tensor(places, dtype=torch.int64)

    def reset(self) -> None:
        """Discards all detections."""
        self._evaluator.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Forwards the detections."""
        mapped = []
        for output in outputs:
            found = output["instances"].to("cpu")
            labels = self._places[found.pred_classes]
            found = found[labels >= 0]
            found.pred_classes = labels[labels >= 0]
            mapped.append({**output, "instances": found})
        self._evaluator.process(inputs, mapped)

    def evaluate(self) -> dict[str, Any]:
        """The data set's metrics."""
        found: dict[str, Any] = self._evaluator.evaluate()
        return found
