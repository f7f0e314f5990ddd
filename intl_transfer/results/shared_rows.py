"""Rows of classification: one per initialization, or per method with columns of several."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from intl_transfer.results.grouping import (
    SAME_SEED_NOTE,
    provenance_notes,
    repetitions,
    summary_of,
)
from intl_transfer.results.rows import Column, Metrics, Row
from intl_transfer.results.run import Run
from intl_transfer.results.samples import Sample
from intl_transfer.runs.settings import Group, group
from intl_transfer.runs.wording import apart

_AT_THE_END = "k-NN as measured at the end of pretraining"
_RECIPES = "pretrained by recipes that differ by column"
_NOT_COMPARED = "whether the pretrainings of its columns differ in other settings is not stated"
#: Key of the row, column, value, sample.
Entry = tuple[str, Column, float, Sample]


def rows_of(
    entries: Sequence[Entry],
    details: Mapping[str, str] | None = None,
    further: Mapping[str, str] | None = None,
) -> list[Row]:
    """Rows with the metrics of each column over runs.

    Args:
        entries: key of the row, column, value, sample.
        details: of rows, by key, if different from those of the initializations.
        further: footnotes of rows, by key.
    """
    groups: dict[str, list[tuple[Column, float, Sample]]] = defaultdict(list)
    for key, column, value, sample in entries:
        groups[key].append((column, value, sample))
    rows = []
    for key, members in groups.items():
        metrics: Metrics = {}
        each: dict[Column, dict[Path, float]] = {}
        by_column: dict[Column, list[Run]] = {}
        repeated = False
        for column in dict.fromkeys(column for column, _, _ in members):
            found = [(v, s) for c, v, s in members if c == column]
            # A dedicated evaluation takes precedence over pretraining's own.
            if not all(s.from_pretraining for _, s in found):
                found = [(v, s) for v, s in found if not s.from_pretraining]
            newest = repetitions([s.run for _, s in found])
            if len(newest) < len(found):
                paths = {run.path for run in newest}
                found, repeated = [(v, s) for v, s in found if s.run.path in paths], True
            summary = summary_of([s.run for _, s in found], [v for v, _ in found])
            assert summary is not None
            metrics[column] = summary
            each[column] = {s.run.path: v for v, s in found}
            if not all(s.from_pretraining for _, s in found):
                by_column[column] = [s.run for _, s in found]
        start = members[0][2].run.start
        runs = tuple({sample.run.path: sample.run for _, _, sample in members}.values())
        n = max(summary.n for summary in metrics.values())
        notes = dict.fromkeys(note for _, _, sample in members for note in sample.notes)
        evaluated = [run for run in runs if run.manifest.stage == "evaluation"]
        if evaluated:
            notes |= dict.fromkeys(provenance_notes(evaluated, by_column))
        if any(sample.from_pretraining for _, _, sample in members):
            notes[_AT_THE_END] = None
        if repeated:
            notes[SAME_SEED_NOTE] = None
        if further and key in further:
            notes[further[key]] = None
        detail = (details or {}).get(key, start.detail)
        external = any(run.external for run in runs)
        rows.append(
            Row(
                *(start.method, detail, metrics, n),
                notes=tuple(notes),
                runs=runs,
                external=external,
                each=each,
            )
        )
    return rows


@dataclass
class Sharing:
    """Rows that combine several initializations, one per column.

    Attributes:
        keys: of rows, by a sample's index.
        shared: those of rows that several columns may share.
        notes: footnotes of rows, by key.
    """

    keys: dict[int, str] = field(default_factory=dict)
    shared: set[str] = field(default_factory=set)
    notes: dict[str, str] = field(default_factory=dict)


def shared_rows(
    samples: Sequence[Sample],
    column_of: Mapping[int, Column],
    details: Mapping[int, str],
    told: Sequence[str],
) -> Sharing:
    """Rows that combine several initializations, one per column.

    Initializations with the same method and detail share a row if no column has two of them and
    their settings agree, apart from those that columns tell. Recipes, configurations of names of
    their own, may differ by column, as published ones do: a footnote says in what.

    Args:
        samples: any.
        column_of: the group of columns that a sample belongs to, by its index.
        details: of the row, by its index.
        told: patterns of the settings that columns tell.
    """
    named: dict[tuple[Any, ...], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, sample in enumerate(samples):
        name = sample.run.start.method, details[index], sample.results.external
        named[name][sample.run.start.key].append(index)

    def settings(indices: Sequence[int]) -> dict[str, Any]:
        own = samples[indices[0]].run.start.settings
        return {k: v for k, v in own.items() if not any(fnmatchcase(k, one) for one in told)}

    found = Sharing()
    for name, starts in named.items():
        groups = group(list(starts.values()), settings)
        recipes = [{samples[i[0]].configuration for i in one.members} for one in groups]
        apart_by_name = None not in set().union(*recipes) and sum(map(len, recipes)) == len(
            set().union(*recipes)
        )
        rows = [groups] if apart_by_name else [[one] for one in groups]
        for number, row in enumerate(rows):
            members = [indices for one in row for indices in one.members]
            columns = [{column_of[index] for index in indices} for indices in members]
            alone = sum(map(len, columns)) == len(set().union(*columns))
            key = repr((*name, number))
            for indices in members:
                own = samples[indices[0]].run.start.key
                found.keys |= dict.fromkeys(indices, key if alone else f"{key} {own}")
            if alone:
                found.shared.add(key)
                if len(row) > 1:
                    found.notes[key] = _differing_note(row, column_of)
    return found


def _differing_note(groups: Sequence[Group[list[int]]], column_of: Mapping[int, Column]) -> str:
    """The footnote of a row whose pretrainings differ by column in more than columns tell."""
    known = [{k: v for k, v in one.differing.items() if k != "weights"} for one in groups]
    if not any(known):
        return _NOT_COMPARED
    parts = []
    for one, words in zip(groups, apart(known), strict=True):
        columns = dict.fromkeys(column_of[index] for i in one.members for index in i)
        parts.append(f"{', '.join(metric or task for task, metric in columns)}: {words}")
    return f"{_RECIPES}: {'; '.join(parts)}"
