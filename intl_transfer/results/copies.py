"""Directories that hold one run more than once: copies of it, and repeats of it."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intl_transfer.results.reading import Entry
from intl_transfer.results.run import Run, set_name
from intl_transfer.runs.records import EvaluationResults
from intl_transfer.runs.settings import comparable, differences, fingerprint, flatten
from intl_transfer.runs.times import in_one_order, in_seconds, moment

_FURTHER = ("inconsistent", "stalled", "running", "failed", "interrupted", "finished")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def without_copies(
    entries: Sequence[Entry], problems: list[str]
) -> tuple[list[Entry], list[Entry]]:
    """Of copies of one run, keeps the most advanced; the others are reported.

    Folders with the same run id are copies if their settings and figures agree. With other
    settings all count. With the same settings and other figures one of them was run again: the
    newest counts, or, where no times say which that is, none. Folders without an id are copies if
    they agree in everything, to the last digit of every metric.

    Args:
        entries: all run directories found.
        problems: one line for each copy, and for each run with another's id, is added to it.

    Returns:
        The entries that count, and the others, with the status ``copy``, ``superseded`` or
        ``inconsistent``.
    """
    alike: dict[str, list[Entry]] = {}
    kept = []
    others: list[Entry] = []
    for entry in entries:
        if entry.manifest is None:
            kept.append(entry)
        else:
            alike.setdefault(identity(entry) or str(entry.path), []).append(entry)
    for members in alike.values():
        members.sort(key=lambda entry: _order(entry, members))
        remaining: list[Entry] = []  # no copies of each other
        for entry in members:
            verdict = _against(entry, remaining, problems)
            if verdict is None:
                remaining.append(entry)
            else:
                others.append(verdict)
        undecided = _undecided(remaining, problems)
        others += undecided
        paths = {entry.path for entry in undecided}
        kept += [entry for entry in remaining if entry.path not in paths]
    return kept, others


def identity(entry: Entry) -> str:
    """A run's id; of external results, which have none, a digest of all that they state.

    Of their copy in an archive, which states less, that of the original.
    """
    if entry.manifest is None or entry.manifest.id:
        return "" if entry.manifest is None else entry.manifest.id
    if entry.results is None:
        return ""
    if entry.results.copy_of is not None:
        return entry.results.copy_of
    # A copy may have another folder's name.
    stated = {key: value for key, value in entry.manifest_json.items() if key != "name"}
    return fingerprint({"manifest": stated, "results": entry.results_json})


def _order(entry: Entry, members: Sequence[Entry]) -> tuple[int, float, bool, int, str]:
    """Sort key of copies: most advanced first, then newest, not inside another's folder, by path.

    The copy in an anonymous archive, whose time is unknown, comes after its original.
    """
    inside = any(entry.path.is_relative_to(other.path) for other in members if other is not entry)
    ended = in_seconds(entry.manifest.ended) if entry.manifest is not None else None
    newest = math.inf if ended is None else -ended
    return -_FURTHER.index(entry.status), newest, inside, len(entry.path.parts), str(entry.path)


def _against(entry: Entry, remaining: Sequence[Entry], problems: list[str]) -> Entry | None:
    """A folder as a copy of one further along or newer, or superseded by it; None if neither."""
    for other in remaining:
        difference = _disagreement(other, entry)
        if difference is None:
            text = f"{entry.path} is a copy of {other.path}"
            problems.append(f"left out: {text}")
            return dataclasses.replace(entry, status="copy", detail=text)
        if difference == _FIGURES and _is_newer(other, entry):
            text = f"{entry.path} and {other.path} have one id, but differ in {difference}"
            problems.append(f"left out: {text}; the newer one, {other.path}, counts")
            return dataclasses.replace(entry, status="superseded", detail=text)
    return None


def _undecided(remaining: Sequence[Entry], problems: list[str]) -> list[Entry]:
    """Folders with one id and the same settings, of which nothing says which one counts."""
    found: dict[Path, Entry] = {}
    for one, other in itertools.combinations(remaining, 2):
        difference = _disagreement(one, other)
        text = f"{other.path} and {one.path} have one id, but differ in {difference}"
        if difference != _FIGURES:
            problems.append(f"{text}; both count. Was one of them copied and run again?")
            continue
        text += ", and no times say which is newer"
        problems.append(f"left out: {text}; neither counts. Remove the one that does not hold")
        for entry in (one, other):
            found[entry.path] = dataclasses.replace(entry, status="inconsistent", detail=text)
    return list(found.values())


def _is_newer(one: Entry, other: Entry) -> bool:
    """Whether a run ended after another, as far as their times can be compared."""
    assert one.manifest is not None
    assert other.manifest is not None
    times = in_one_order({"one": [one.manifest.ended], "other": [other.manifest.ended]})
    return times is not None and times["one"] > times["other"]


#: What two folders with one id, stage and configuration may differ in.
_FIGURES = "their results"


def _disagreement(one: Entry, other: Entry) -> str | None:
    """A difference between two folders with the same id, apart from progress; None for copies."""
    assert one.manifest is not None
    assert other.manifest is not None
    if one.stage != other.stage:
        return "their stage"
    changed = differences(one.stage, one.manifest.config, other.manifest.config)
    if changed:
        return ", ".join(changed)
    if None in (one.results, other.results):
        return None
    figures = [_figures(entry.results_json) for entry in (one, other)]
    return _FIGURES if figures[0] != figures[1] else None


def _figures(results: Mapping[str, Any]) -> dict[str, Any]:
    """All numbers and digests of results: texts are not those of a shared copy."""
    return {
        key: comparable(value) for key, value in flatten(results).items() if not _is_text(value)
    }


def _is_text(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_is_text, value))
    return isinstance(value, str) and not _DIGEST.fullmatch(value)


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
    for run in runs:
        seed = run.path if run.seed is None else run.seed
        key = (*_plan(run), run.start.key, run.start.unit, seed)
        alike.setdefault(key, []).append(run)
    kept: list[Run] = []
    older: dict[Path, str] = {}
    for members in alike.values():
        same: dict[Any, list[Run]] = {}
        for run in members:
            # Comparing settings is the slowest part, so it comes after all else.
            settings = comparable(run.protocol) if len(members) > 1 else None
            same.setdefault(settings, []).append(run)
        for repeats in same.values():
            kept += _newest(repeats, older, problems)
    for index, entry in enumerate(entries):
        if entry.path in older:
            entries[index] = dataclasses.replace(
                entry, status="superseded", detail=older[entry.path]
            )
    return sorted(kept, key=lambda run: str(run.path))


def _newest(repeats: list[Run], older: dict[Path, str], problems: list[str]) -> list[Run]:
    """The newest run; further ones whose times cannot be compared with its time."""
    dated: dict[str, list[tuple[float, Run]]] = {}
    counted = []
    for run in repeats:
        if (ended := moment(run.manifest.ended)) is None:
            counted.append(run)
        else:
            dated.setdefault(ended[0], []).append((ended[1], run))
    for runs in dated.values():
        *former, (_, newest) = sorted(runs, key=lambda item: item[0])
        counted.append(newest)
        for _, run in former:
            text = f"{run.path} repeats {newest.path} with the same seed; the newer one counts"
            problems.append(f"left out: {text}")
            older[run.path] = text
    for one, other in itertools.pairwise(counted):
        problems.append(
            f"{one.path} and {other.path} have the same seed, weights and settings, and no times "
            "say which is newer; both count. Remove one, or state their seeds"
        )
    return counted


def _plan(run: Run) -> tuple[Any, ...]:
    results = run.results
    if isinstance(results, EvaluationResults):
        network = comparable(results.architecture.as_json())
        protocol = comparable(results.protocol)
        return (results.kind, protocol, set_name(results.dataset.name), network)
    return run.comparable
