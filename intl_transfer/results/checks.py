"""What makes a finished run's results unusable: one sentence, or None."""

from __future__ import annotations

import math
from typing import Any

#: Kinds of the evaluation stage: frozen features with a linear head, k nearest neighbours, and
#: fine-tuning on a part of the labels.
EVALUATION_KINDS = ("linear", "knn", "semi")


def detection_problem(results: dict[str, Any]) -> str | None:
    """Of a detection run: form, last iteration, percentages."""
    try:
        if results["iteration"] != results["schedule"]["iterations"]:
            return (
                f"evaluated at iteration {results['iteration']} of "
                f"{results['schedule']['iterations']}; only the final one counts"
            )
        for key in ("name", "layout"):
            _text(results["dataset"], key)
        for key in ("meta", "backbone", "head"):
            _text(results["architecture"], key)
        for key in ("name", "batch_size"):
            results["schedule"][key]
        float(results["schedule"]["base_lr"])
        _common(results)
        figures = {
            f"{task} {metric}": value
            for task, values in results["metrics"].items()
            for metric, value in values.items()
            if metric.startswith(("AP", "AR"))
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return f"not in the form of a detection run's results ({error!r})"
    return _percentages(figures)


def evaluation_problem(results: dict[str, Any]) -> str | None:
    """Of a classification: form, last epoch, percentages."""
    try:
        protocol = results["protocol"]
        if results["kind"] not in EVALUATION_KINDS:
            return f"kind is {results['kind']!r}, expected one of {', '.join(EVALUATION_KINDS)}"
        if results.get("epoch") != protocol.get("epochs"):
            return (
                f"evaluated at epoch {results.get('epoch')} of {protocol.get('epochs')}; only the "
                "final one counts"
            )
        _text(results["dataset"], "name")
        _text(results["architecture"], "backbone")
        if results["kind"] == "knn":
            int(protocol["k"])
        if results["kind"] == "semi":
            float(protocol["labels_percent"])
        _common(results)
        figures = {metric: results["metrics"].get(metric) for metric in ("top1", "top5")}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return f"not in the form of an evaluation's results ({error!r})"
    return _percentages(figures)


def pretraining_problem(results: dict[str, Any]) -> str | None:
    """Of a pretraining run: the fields that tables and provenance need."""
    value = results.get("knn_accuracy")
    if value is not None and not _is_percentage(value):
        return f"knn_accuracy is {value!r}; expected a percentage from 0 to 100"
    for key in ("backbone_sha256", "method", "dataset", "backbone"):
        if not isinstance(results.get(key, ""), str):
            return f"{key} is {results[key]!r}; expected text"
    return None


def _common(results: dict[str, Any]) -> None:
    """What both kinds of rows need: where the weights come from, and the seed."""
    start = results["initialisation"]
    _text(start, "kind")
    if not isinstance(start.get("method"), (str, type(None))):
        raise TypeError("initialisation.method is no text")
    provenance = start.get("provenance")
    for value in (provenance, (provenance or {}).get("pretrain_run")):
        if not isinstance(value, (dict, type(None))):
            raise TypeError("initialisation.provenance is no object")
    int(results["seed"])


def _text(values: dict[str, Any], key: str) -> None:
    if not isinstance(values[key], str):
        raise TypeError(f"{key} is no text")


def _percentages(figures: dict[str, Any]) -> str | None:
    for name, value in figures.items():
        if value is not None and not _is_percentage(value):
            return f"{name} is {value!r}; expected a percentage from 0 to 100"
    return None if any(v is not None for v in figures.values()) else "holds no figure at all"


def _is_percentage(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 <= value <= 100
