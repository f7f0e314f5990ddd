"""Rows of classification: one per initialization, or per method with columns of several."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from intl_transfer.results.grouping import (
    joined_details,
    repetitions,
    same_seed_notes,
    summary_of,
)
from intl_transfer.results.notes import code_notes, provenance_notes, seen_notes
from intl_transfer.results.rows import Column, Metrics, Row
from intl_transfer.results.run import Run
from intl_transfer.results.samples import Sample
from intl_transfer.runs.settings import Group, group
from intl_transfer.runs.wording import apart

_AT_THE_END = "k-NN as measured at the end of pretraining"
_NOT_EVALUATED = "left out of the mean: {} with k-NN as measured at the end of pretraining only"
_RECIPES = "pretrained by recipes that differ by column"
_NOT_COMPARED = "whether the pretrainings of its columns differ in other settings is not stated"
#: Key of the row, column, value, sample.
Entry = tuple[str, Column, float, Sample]


@dataclass
class _OfTask:
    """What counts in the columns of one task of a row.

    Attributes:
        samples: by the run's path.
        evaluated: runs of each column with dedicated evaluations.
        notes: footnotes on what counts.
    """

    samples: dict[Path, Sample] = field(default_factory=dict)
    evaluated: dict[Column, list[Run]] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    def all_notes(self) -> tuple[str, ...]:
        """Footnotes on its samples and on what counts of them."""
        runs = [sample.run for sample in self.samples.values()]
        evaluated = [run for run in runs if run.manifest.stage == "evaluation"]
        on_the_way = [run for run in runs if run.manifest.stage == "pretrain"]
        notes = dict.fromkeys(note for sample in self.samples.values() for note in sample.notes)
        notes |= dict.fromkeys((*seen_notes(on_the_way), *code_notes(on_the_way)))
        if evaluated:
            notes |= dict.fromkeys(provenance_notes(evaluated, self.evaluated))
        return tuple(notes | self.notes)


def detail_of(samples: Sequence[Sample]) -> str:
    """The detail of one row: that of its initialization, by all of its names.

    Args:
        samples: of the row, that count.
    """
    return joined_details(sample.run.start.detail for sample in samples)


def rows_of(
    entries: Sequence[Entry],
    detail: Callable[[Sequence[Sample]], str] = detail_of,
    further: Mapping[str, str] | None = None,
) -> list[Row]:
    """Rows with the metrics of each column over runs.

    Args:
        entries: key of the row, column, value, sample.
        detail: of a row, by its samples that count.
        further: footnotes of rows, by key.
    """
    groups: dict[str, list[tuple[Column, float, Sample]]] = defaultdict(list)
    for key, column, value, sample in entries:
        groups[key].append((column, value, sample))
    rows = []
    for key, members in groups.items():
        metrics: Metrics = {}
        each: dict[Column, dict[Path, float]] = {}
        of_tasks: dict[str, _OfTask] = defaultdict(_OfTask)
        for column in dict.fromkeys(column for column, _, _ in members):
            found, words = _counted([(v, s) for c, v, s in members if c == column])
            summary = summary_of([s.run for _, s in found], [v for v, _ in found])
            assert summary is not None
            metrics[column] = summary
            each[column] = {s.run.path: v for v, s in found}
            of_task = of_tasks[column[0]]
            of_task.notes |= dict.fromkeys(words)
            of_task.samples |= {s.run.path: s for _, s in found}
            if not all(s.from_pretraining for _, s in found):
                of_task.evaluated[column] = [s.run for _, s in found]
        used = {path: s for one in of_tasks.values() for path, s in one.samples.items()}
        runs = tuple(sample.run for sample in used.values())
        more = (further[key],) if further and key in further else ()
        notes_of: dict[tuple[str, ...], tuple[str, ...]] = {
            (task,): (*of_task.all_notes(), *more) for task, of_task in of_tasks.items()
        }
        rows.append(
            Row(
                members[0][2].run.start.method,
                detail(list(used.values())),
                metrics,
                max(summary.n for summary in metrics.values()),
                notes_of=notes_of,
                runs=runs,
                external=any(run.external for run in runs),
                each=each,
            )
        )
    return rows


def _counted(
    found: Sequence[tuple[float, Sample]],
) -> tuple[list[tuple[float, Sample]], list[str]]:
    """The values of one column that count, and footnotes on them and on the others."""
    evaluated = [(v, s) for v, s in found if not s.from_pretraining]
    # A dedicated evaluation takes precedence over pretraining's own.
    given = evaluated or list(found)
    runs = [s.run for _, s in given]
    newest = repetitions(runs)
    paths = {run.path for run in newest}
    counted = [(v, s) for v, s in given if s.run.path in paths]
    notes = []
    if not evaluated:
        notes.append(_AT_THE_END)
    elif count := len({s.run.path for _, s in found if s.from_pretraining} - _parents(evaluated)):
        pretrainings = "1 further pretraining" if count == 1 else f"{count} further pretrainings"
        notes.append(_NOT_EVALUATED.format(pretrainings))
    return counted, [*notes, *same_seed_notes(runs, newest)]


def _parents(found: Sequence[tuple[float, Sample]]) -> set[Path | None]:
    """The directories of the pretrainings that were evaluated."""
    return {s.run.parent for _, s in found}


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
    named: dict[tuple[Any, ...], dict[str, list[int]]] = defaultdict(dict)
    by_start: dict[str, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        by_start[sample.run.start.key].append(index)
    for start, indices in by_start.items():
        # One initialization is one row, under whatever names its configuration had.
        known = joined_details(sorted({details[index] for index in indices}))
        first = samples[indices[0]]
        named[first.run.start.method, known, first.results.external][start] = indices

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
