"""Directories that hold one run more than once: copies of it, and repeats of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intl_transfer.results.reading import Entry
from intl_transfer.results.run import Run, set_name
from intl_transfer.runs.records import EvaluationResults
from intl_transfer.runs.settings import comparable, differences, fingerprint
from intl_transfer.runs.times import in_seconds

_FURTHER = ("inconsistent", "stalled", "running", "failed", "interrupted", "finished")


def without_copies(
    entries: Sequence[Entry], problems: list[str]
) -> tuple[list[Entry], list[Entry]]:
    """Of copies of one run, keeps the most advanced; the others are reported.

    Folders with the same run id are copies if their contents agree; otherwise all count. So are
    folders without an id that agree in everything, to the last digit of every metric.

    Args:
        entries: all run directories found.
        problems: one line for each copy, and for each run with another's id, is added to it.

    Returns:
        The entries that count, and the copies, with the status ``copy``.
    """
    alike: dict[str, list[Entry]] = {}
    kept = []
    copies = []
    for entry in entries:
        identity = _identity(entry)
        if identity:
            alike.setdefault(identity, []).append(entry)
        else:
            kept.append(entry)
    for members in alike.values():
        while members:
            whole = min(members, key=lambda entry: _order(entry, members))
            kept.append(whole)
            others = []
            for other in members:
                if other is whole:
                    continue
                difference = _disagreement(whole, other)
                if difference is None:
                    text = f"{other.path} is a copy of {whole.path}"
                    problems.append(f"left out: {text}")
                    copies.append(dataclasses.replace(other, status="copy", detail=text))
                    continue
                problems.append(
                    f"{other.path} and {whole.path} have one id, but differ in {difference}; both "
                    "count. Was one of them copied and run again?"
                )
                others.append(other)
            members = others
    return kept, copies


def _identity(entry: Entry) -> str:
    """A run's id; of external results, which have none, a digest of all that they state."""
    if entry.manifest is None or entry.manifest.id:
        return "" if entry.manifest is None else entry.manifest.id
    if entry.results is None:
        return ""
    # A copy may have another folder's name.
    stated = {key: value for key, value in entry.manifest_json.items() if key != "name"}
    return fingerprint({"manifest": stated, "results": entry.results_json})


def _order(entry: Entry, members: Sequence[Entry]) -> tuple[int, bool, int, str]:
    """Sort key of copies: most advanced first, then not inside another's folder, then by path."""
    inside = any(entry.path.is_relative_to(other.path) for other in members if other is not entry)
    return -_FURTHER.index(entry.status), inside, len(entry.path.parts), str(entry.path)


def _disagreement(one: Entry, other: Entry) -> str | None:
    """A difference between two folders with the same id, apart from progress; None for copies."""
    assert one.manifest is not None
    assert other.manifest is not None
    if one.stage != other.stage:
        return "their stage"
    changed = differences(one.stage, one.manifest.config, other.manifest.config)
    if changed:
        return ", ".join(changed)
    results = [
        None if entry.results is None else comparable(entry.results.as_json())
        for entry in (one, other)
    ]
    if None not in results and results[0] != results[1]:
        return "their results"
    return None


def without_repeats(runs: Sequence[Run], entries: list[Entry], problems: list[str]) -> list[Run]:
    """Of runs with the same seed, weights and settings, keeps the newest.

    A seed that nobody stated makes no repeat; of runs of which one has no time, both count.

    Args:
        runs: finished, consistent runs of one stage.
        entries: those of older repeats are replaced by ones with the status ``superseded``.
        problems: one line for each repeat is added to it.

    Returns:
        The runs that count, by path.
    """
    alike: dict[tuple[Any, ...], list[Run]] = {}
    for run in sorted(runs, key=lambda run: _ended(run) or -math.inf):
        seed = run.path if run.seed is None else run.seed
        key = (*_plan(run), run.start.key, run.start.unit, seed)
        alike.setdefault(key, []).append(run)
    kept: list[Run] = []
    older: dict[Path, str] = {}
    for members in alike.values():
        newest: dict[Any, Run] = {}
        for run in members:
            # Comparing settings is the slowest part, so it comes after all else.
            settings = comparable(run.protocol) if len(members) > 1 else None
            former = newest.get(settings)
            if former is not None and former.manifest.id == run.manifest.id != "":
                settings = (settings, run.path)  # reported before: same id, different content
            elif former is not None and None in (_ended(former), _ended(run)):
                problems.append(
                    f"{former.path} and {run.path} have the same seed, weights and settings, and "
                    "no times say which is newer; both count. Remove one, or state their seeds"
                )
                newest[settings, former.path] = former
            elif former is not None:
                text = f"{former.path} repeats {run.path} with the same seed; the newer one counts"
                problems.append(f"left out: {text}")
                older[former.path] = text
            newest[settings] = run
        kept += newest.values()
    for index, entry in enumerate(entries):
        if entry.path in older:
            entries[index] = dataclasses.replace(
                entry, status="superseded", detail=older[entry.path]
            )
    return sorted(kept, key=lambda run: str(run.path))


def _ended(run: Run) -> float | None:
    """When a run ended, in Unix seconds; None if unknown."""
    return in_seconds(run.manifest.ended)


def _plan(run: Run) -> tuple[Any, ...]:
    results = run.results
    if isinstance(results, EvaluationResults):
        network = comparable(results.architecture.as_json())
        protocol = comparable(results.protocol)
        return (results.kind, protocol, set_name(results.dataset.name), network)
    return run.comparable
