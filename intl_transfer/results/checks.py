"""What makes a finished run's results unusable, and what looks wrong about them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from intl_transfer.runs.records import (
    AnyResults,
    DetectionResults,
    EvaluationResults,
)

#: Kinds of the evaluation stage: frozen features with a linear head, k nearest neighbors, and
#: fine-tuning on a part of the labels. Evaluators of others have kinds of their own.
EVALUATION_KINDS = ("linear", "knn", "semi")


def problem_of(results: AnyResults, config: Mapping[str, Any] | None = None) -> str | None:
    """What makes results of the right form unusable, in one sentence; None for good ones.

    Args:
        results: of a run.
        config: of the run, where it is known. A kind of evaluation that the run's own
            configuration asked for is one, whether or not it is known here.
    """
    if isinstance(results, DetectionResults):
        return _detection_problem(results)
    if isinstance(results, EvaluationResults):
        return _evaluation_problem(results, (config or {}).get("kind"))
    return None


def warnings_of(results: AnyResults) -> list[str]:
    """What looks wrong about usable results."""
    figures = [value for _, value in figures_of(results) if isinstance(value, (int, float))]
    if figures and 0 < max(figures) <= 1:
        return [
            f"no metric is above 1 (the highest: {max(figures):g}); they are taken as percentages, "
            "from 0 to 100"
        ]
    return []


def figures_of(results: AnyResults) -> Iterator[tuple[str, Any]]:
    """Name and value of every metric: ``box.AP``, ``top1``; those of single classes left out."""
    metrics: Mapping[str, Any] = getattr(results, "metrics", {})
    for task, values in metrics.items():
        if isinstance(values, Mapping):
            yield from ((f"{task}.{k}", v) for k, v in values.items() if k != "per_class")
        else:
            yield task, values


def _detection_problem(results: DetectionResults) -> str | None:
    planned, made = results.schedule.iterations, results.iteration
    if made is not None and planned is not None and made != planned:
        return f"evaluated at iteration {made} of {planned}; only the final one counts"
    return _percentages(results)


def _evaluation_problem(results: EvaluationResults, asked: Any) -> str | None:
    if results.external is None and results.kind not in (*EVALUATION_KINDS, asked):
        return (
            f"kind is {results.kind!r}, expected one of {', '.join(EVALUATION_KINDS)} (others come "
            "with `external`)"
        )
    if results.kind == "knn" and results.external is None and "k" not in results.protocol:
        return "protocol.k is missing: the number of neighbors"
    planned = results.protocol.get("epochs")
    if results.epoch is not None and planned is not None and results.epoch != planned:
        return f"evaluated at epoch {results.epoch} of {planned}; only the final one counts"
    share = results.protocol.get("labels_percent")
    if results.kind == "semi" and not _is_percentage(share):
        return f"protocol.labels_percent is {share!r}; expected a percentage from 0 to 100"
    return _percentages(results)


def _percentages(results: AnyResults) -> str | None:
    values = dict(figures_of(results))
    for name, value in values.items():
        if value is not None and not _is_percentage(value):
            return f"{name} is {value!r}; expected a percentage from 0 to 100"
    return None if any(v is not None for v in values.values()) else "holds no figure at all"


def _is_percentage(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 <= value <= 100
