"""Details of a row in a few lines: repetitions, seeds, settings, versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from intl_transfer.results.rows import Row, Table
from intl_transfer.results.run import Run
from intl_transfer.runs.settings import NOT_STATED, comparable
from intl_transfer.runs.wording import setting_in_words

#: Maximum number of differing settings shown in the summary of a row.
_MOST = 8
_LIBRARIES = ("torch", "torchvision", "detectron2", "pillow")


def evidence_of(table: Table, row: Row) -> dict[str, Any]:
    """The details of a row, shown on hover and focus, and on the row's page.

    Args:
        table: that contains it; settings on which all its rows agree are omitted from the summary.
        row: of it.

    Returns:
        ``lines``, (name, text) pairs, and ``decided``, all deciding settings of the row's
        initialization, as pairs.
    """
    if row.published:
        lines = [("source", row.source), *(("", note) for note in row.notes[1:])]
        return {"lines": [list(pair) for pair in lines], "decided": []}
    start = row.runs[0].start
    different = _differing(table)
    words = [setting_in_words(k, v) for k, v in start.settings.items() if k in different]
    more = f" and {len(words) - _MOST} more" if len(words) > _MOST else ""
    lines = [
        ("n", _counts(table, row)),
        ("seeds", _seeds(row.runs)),
        ("pretraining seeds", _listed(run.start.unit_seed for run in row.runs)),
        ("decided by", ", ".join(words[:_MOST]) + more),
        ("weights", _listed(_weights(run) for run in row.runs)),
        ("versions", _versions(row.runs)),
    ]
    decided = [[key, _text(value)] for key, value in sorted(start.settings.items())]
    return {"lines": [list(pair) for pair in lines if pair[1]], "decided": decided}


def _differing(table: Table) -> set[str]:
    """Settings of initializations that differ between measured rows of a table."""
    values: dict[str, list[Any]] = {}
    starts = [row.runs[0].start for row in table.rows if row.runs]
    for start in starts:
        for key, value in start.settings.items():
            values.setdefault(key, []).append(comparable(value))
    return {
        key
        for key, found in values.items()
        if len(found) < len(starts) or any(value != found[0] for value in found)
    } - {"weights"}


def _counts(table: Table, row: Row) -> str:
    """``5 (coco_2017_val), 3 (voc_2007_test)``; one number if all agree."""
    counts: dict[str, str] = {}
    for (task, _), summary in row.metrics.items():
        counts.setdefault(table.dataset_of(task), summary.count)
    if len(set(counts.values())) <= 1:
        return next(iter(counts.values()), "")
    return ", ".join(f"{count} ({dataset})" for dataset, count in counts.items())


def _seeds(runs: Sequence[Run]) -> str:
    return _listed(run.seed for run in runs)


def _weights(run: Run) -> str | None:
    sha = run.results.initialization.weights_sha256
    return sha[:12] if sha else None


def _versions(runs: Sequence[Run]) -> str:
    found = []
    for name in _LIBRARIES:
        versions = _listed(run.manifest.versions.get(name) for run in runs)
        if versions:
            found.append(f"{name} {versions}")
    revisions = _listed((run.manifest.git.revision or "")[:10] or None for run in runs)
    return ", ".join([*found, *([f"sources {revisions}"] if revisions else [])])


def _listed(values: Any) -> str:
    known = {value for value in values if value is not None}
    return ", ".join(map(str, sorted(known)))


def _text(value: Any) -> str:
    return "not stated" if value is NOT_STATED else str(value)
