"""The parts of tables: rows with metrics and marks, and columns."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from intl_transfer.results.run import METRICS, Run
from intl_transfer.results.statistics import Comparison, Summary

#: Instead of a learning rate, if each row has its own.
CHOSEN = "chosen for each row"
Column = tuple[str, str]
Metrics = dict[Column, Summary]


def with_kind(name: str, external: bool, baseline: bool) -> str:
    """The name of a row with its kind, unless it is an ordinary measured one.

    Args:
        name: of the row.
        external: whether it was not measured by this project.
        baseline: whether the others are tested against it.
    """
    kinds = (["external"] if external else []) + (["baseline"] if baseline else [])
    return f"{name} ({', '.join(kinds)})" if kinds else name


@dataclass(frozen=True)
class Mark:
    """Statistical marks of one cell.

    Attributes:
        best: the highest mean of a primary column, among measured rows.
        comparison: with the baseline, if there is one and it can be tested.
        alone: a single run that is the highest, or was chosen, above means of several.
    """

    best: bool = False
    comparison: Comparison | None = None
    alone: bool = False


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        method: the initialization.
        detail: of its pretraining.
        metrics: by (task, metric), in %.
        n: number of repetitions; 0 if a published row does not state it.
        published: True for a row from the literature.
        notes: footnotes.
        notes_of: those of each part of a table, by its tasks, if it has several.
        runs: the runs behind a measured row.
        external: True for a row from external Detectron2 folders.
        baseline: True for the row that the others are tested against.
        marks: by (task, metric), if there are any.
        words: distinguishes it from other rows of the method, or "".
        chosen_over: by (task, metric), if its learning rate was chosen, the maximum number of runs
            at another rate.
        tried: by (task, metric), the number of learning rates of which its own was chosen.
        source: of a published row.
        cite: its key in ``published.bib``.
        shown: the user's name for it, instead of method and words.
        group: rows of a group are adjacent, below its name.
        rule: whether a rule is above it.
        order: the user's, rows with smaller numbers first.
        each: by (task, metric), the value of each run that has one, by its path.
    """

    method: str
    detail: str
    metrics: Metrics
    n: int
    published: bool = False
    notes: tuple[str, ...] = ()
    runs: tuple[Run, ...] = ()
    external: bool = False
    baseline: bool = False
    marks: dict[Column, Mark] = field(default_factory=dict)
    words: str = ""
    chosen_over: dict[Column, int] = field(default_factory=dict)
    tried: dict[Column, int] = field(default_factory=dict)
    notes_of: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)
    source: str = ""
    cite: str = ""
    shown: str = ""
    group: str = ""
    rule: bool = False
    order: float = math.inf
    each: dict[Column, dict[Path, float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Method with its distinguishing words: ``INTL, iterations 8``."""
        if self.shown:
            return self.shown
        return f"{self.method}, {self.words}" if self.words else self.method

    @property
    def control(self) -> bool:
        """Whether it is a control, which is not compared with other rows."""
        return any(run.start.control for run in self.runs)

    @property
    def start_key(self) -> str:
        """Equal for rows of one initialization; "" for published rows."""
        return self.runs[0].start.key if self.runs else ""

    @property
    def compared(self) -> bool:
        """Whether it is compared with other rows: measured, and no control."""
        return not (self.published or self.control)

    @property
    def label(self) -> str:
        """Name and detail: ``INTL (shapes_r18, 20 ep, shapes)``."""
        return f"{self.name} ({self.detail})" if self.detail else self.name

    @property
    def title(self) -> str:
        """The name with its kind, as tables show it: ``INTL (external)``."""
        return with_kind(self.name, self.external, self.baseline)

    @property
    def full_title(self) -> str:
        """Title and detail, which no other measured row of the table has."""
        return f"{self.title} ({self.detail})" if self.detail else self.title


@dataclass(frozen=True)
class Part:
    """Data set and protocol of some of a table's columns.

    Attributes:
        dataset: its name.
        architecture: of the detector or classifier.
        schedule: its name.
        tasks: the column groups measured on it.
        iterations: of the schedule.
        batch: size.
        lr: base learning rate, or ``chosen for each row``.
        further: other settings that distinguish it from its neighbors, or "".
        standard: False if the settings are known to differ from the MoCo protocol.
        labels: the fraction of training images whose labels were used (``10 %``); "" for all.
    """

    dataset: str
    architecture: str
    schedule: str
    tasks: tuple[str, ...]
    iterations: str = ""
    batch: str = ""
    lr: str = ""
    further: str = ""
    standard: bool = True
    labels: str = ""

    @property
    def title(self) -> str:
        """In words."""
        parts = [
            f"{self.iterations} iterations" if self.iterations else "",
            f"batch {self.batch}" if self.batch else "",
            f"lr {self.lr}" if self.lr else "",
        ]
        words = [", ".join(part for part in parts if part), self.further]
        plan = "; ".join(part for part in words if part)
        title = f"{self.dataset}, {self.architecture}, schedule {self.schedule}"
        return f"{title} ({plan})" if plan else title


@dataclass
class Table:
    """A block of comparable rows.

    Attributes:
        title: data set, detector, schedule.
        tasks: the column groups: ``box``, ``mask``, ``voc``, or those of a classification.
        rows: measured rows, best first, then published ones.
        dataset: name of the data set; several are joined by `` + ``.
        architecture: of the detector.
        schedule: its name.
        family: ``detection`` or ``classification``.
        parts: data sets and protocols of the column groups; empty for only published rows.
        metrics: the columns of a group, if not AP50, AP, AP75.
        headings: of groups, if not the tasks' names.
        shown: the columns to show; all if None.
        legend: explanations of this table's marks and spreads, one line each.
        baseline: the label of the row that others were tested against, shown or not; "" if none.
        hidden: the number of compared rows that are not shown.
    """

    title: str
    tasks: tuple[str, ...]
    rows: list[Row] = field(default_factory=list)
    dataset: str = ""
    architecture: str = ""
    schedule: str = ""
    family: str = "detection"
    parts: tuple[Part, ...] = ()
    metrics: dict[str, tuple[str, ...]] = field(default_factory=dict)
    headings: dict[str, str] = field(default_factory=dict)
    shown: tuple[Column, ...] | None = None
    legend: tuple[str, ...] = ()
    baseline: str = ""
    hidden: int = 0

    @property
    def key(self) -> str:
        """Its key on the report's page, stable as long as its content is the same."""
        return hashlib.sha256(json.dumps(self.title).encode()).hexdigest()[:12]

    @property
    def slug(self) -> str:
        """A short name of its content: ``coco 1x voc 24k AP vs baseline``."""
        if self.parts:
            words = [f"{_short(part.dataset)} {part.schedule}" for part in self.parts]
            words += [part.lr for part in self.parts[:1] if not part.standard or part.lr == CHOSEN]
        else:
            words = [_short(self.dataset), self.schedule if self.family == "detection" else ""]
            words += [] if self.family == "detection" else self.tasks
        measured = any(not row.published for row in self.rows)
        words += [] if measured else ["published"]
        if self.shown is not None:
            words += dict.fromkeys(metric for _, metric in self.shown)
        words += ["vs baseline"] if self.baseline else []
        return " ".join(word for word in words if word)

    def columns(self) -> list[Column]:
        """(task, metric) of each metric column, in order."""
        if self.shown is not None:
            return list(self.shown)
        return [(task, m) for task in self.tasks for m in self.metrics.get(task, METRICS)]

    def heading(self, task: str) -> str:
        """Of a column group."""
        return self.headings.get(task, {"voc": "VOC"}.get(task, task))

    def part_of(self, task: str) -> Part | None:
        """The part that a column group is of; None in a table without parts."""
        return next((part for part in self.parts if task in part.tasks), None)

    def protocol_of(self, task: str) -> str:
        """Data set and protocol of a column group in words, which tell it from other tables'."""
        part = self.part_of(task)
        return part.title if part else self.title

    def dataset_of(self, task: str) -> str:
        """The data set of a column group."""
        part = self.part_of(task)
        if part is not None:
            return part.dataset
        return task if task in self.dataset.split(" + ") else self.dataset

    def count(self, row: Row) -> str:
        """Repetitions of a row in the columns shown, per part if they differ: ``3``, ``1, 5``."""
        counts = [self._count(row, tasks) for tasks in self._groups()]
        different = list(dict.fromkeys(count for count in counts if count))
        if len(different) <= 1:
            return different[0] if different else ""
        return ", ".join(count or "-" for count in counts)

    def fewer(self, row: Row, column: Column) -> str:
        """Repetitions of one cell if different from its part's; otherwise ""."""
        summary = row.metrics.get(column)
        tasks = next((tasks for tasks in self._groups() if column[0] in tasks), (column[0],))
        if summary is None or row.published or summary.count == self._count(row, tasks):
            return ""
        return summary.short_count

    def _groups(self) -> list[tuple[str, ...]]:
        groups = [part.tasks for part in self.parts] or [(task,) for task in self.tasks]
        return [tasks for tasks in groups if not set(tasks).isdisjoint(self.tasks)]

    def _count(self, row: Row, tasks: tuple[str, ...]) -> str:
        shown = [column for column in self.columns() if column[0] in tasks]
        found = [row.metrics[column] for column in shown if column in row.metrics]
        most = max(found, key=lambda summary: (summary.n, summary.runs), default=None)
        return "" if most is None else most.count


def with_notes(table: Table) -> Table:
    """The footnotes of rows over several parts: of those shown, named if they are not of all.

    Args:
        table: whose rows may have :attr:`Row.notes_of`.
    """
    rows = [
        dataclasses.replace(row, notes=_notes(table, row)) if row.notes_of else row
        for row in table.rows
    ]
    return dataclasses.replace(table, rows=rows)


def _notes(table: Table, row: Row) -> tuple[str, ...]:
    shown = {task for task, _ in table.columns() if any(task == other for other, _ in row.metrics)}
    names = {part.tasks: head(part.dataset) for part in table.parts}
    found = {tasks: notes for tasks, notes in row.notes_of.items() if not shown.isdisjoint(tasks)}
    words = [
        note
        if all(note in theirs for theirs in found.values())
        else f"{names.get(tasks, ', '.join(tasks))}: {note}"
        for tasks, notes in found.items()
        for note in notes
    ]
    return tuple(dict.fromkeys(words))


_HEADS = {"coco_2017_val": "COCO", "voc_2007_test": "VOC"}


def head(dataset: str) -> str:
    """A data set's short name for column headings."""
    return _HEADS.get(dataset) or without_split(dataset)


# At the end of a data set's name, of several joined by `` + ``, too.
_SPLIT = r"_(?:val|test|minival|test-dev)(?![\w-])"


def without_split(dataset: str) -> str:
    """``coco_2017`` for ``coco_2017_test-dev``; for several, each."""
    return re.sub(_SPLIT, "", dataset)


def _short(dataset: str) -> str:
    """``coco`` for ``coco_2017_val``; for several, each."""
    return re.sub(rf"(?:_\d{{4}})?{_SPLIT}", "", dataset)
