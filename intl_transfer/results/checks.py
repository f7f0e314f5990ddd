"""Errors and warnings about the results of a finished run."""

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
#: fine-tuning on a part of the labels. Other evaluators may have further kinds.
EVALUATION_KINDS = ("linear", "knn", "semi")


def problem_of(results: AnyResults, config: Mapping[str, Any] | None = None) -> str | None:
    """Why valid results are unusable, in one sentence; None if they are usable.

    Args:
        results: of a run.
        config: of the run, if known. A kind of evaluation in the run's own configuration is
            accepted even if unknown here.
    """
    if isinstance(results, DetectionResults):
        return _detection_problem(results)
    if isinstance(results, EvaluationResults):
        return _evaluation_problem(results, (config or {}).get("kind"))
    return None


def warnings_of(results: AnyResults) -> list[str]:
    """Warnings about usable results."""
    found = [value for _, value in metrics_of(results) if isinstance(value, (int, float))]
    if found and 0 < max(found) <= 1:
        return [
            f"no metric is above 1 (the highest: {max(found):g}); they are taken as percentages, "
            "from 0 to 100"
        ]
    return []


def metrics_of(results: AnyResults) -> Iterator[tuple[str, Any]]:
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


def _evaluation_problem(results: EvaluationResults, kind: Any) -> str | None:
    if results.external is None and results.kind not in (*EVALUATION_KINDS, kind):
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
    values = dict(metrics_of(results))
    for name, value in values.items():
        if value is not None and not _is_percentage(value):
            return f"{name} is {value!r}; expected a percentage from 0 to 100"
    return None if any(v is not None for v in values.values()) else "has no metrics"


def _is_percentage(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 <= value <= 100
