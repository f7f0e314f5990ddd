"""What tables are made of: rows, their figures and marks, and what the columns were measured on."""

from __future__ import annotations

from dataclasses import dataclass, field

from intl_transfer.results.run import METRICS, Run
from intl_transfer.results.statistics import Comparison, Summary

Column = tuple[str, str]
Figures = dict[Column, Summary]


@dataclass(frozen=True)
class Mark:
    """What the statistics say of one figure.

    Attributes:
        best: the highest mean of its column, among measured rows.
        comparison: with the baseline, where there is one and it can be tested.
    """

    best: bool = False
    comparison: Comparison | None = None


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        method: the initialisation.
        detail: of its pretraining.
        words: what tells it from other rows of the method, or "".
        figures: by (task, metric), in %.
        n: number of repetitions; 0 where a published row does not say.
        published: True for a row from the literature.
        notes: footnotes.
        runs: the runs behind a measured row.
        foreign: True for a row from Detectron2 folders that others' scripts wrote.
        baseline: True for the row that the others are tested against.
        marks: by (task, metric), where there is something to mark.
    """

    method: str
    detail: str
    figures: Figures
    n: int
    published: bool = False
    notes: tuple[str, ...] = ()
    runs: tuple[Run, ...] = ()
    foreign: bool = False
    baseline: bool = False
    marks: dict[Column, Mark] = field(default_factory=dict)
    words: str = ""

    @property
    def name(self) -> str:
        """Method, and what tells it from others of the method: ``INTL, iterations 8``."""
        return f"{self.method}, {self.words}" if self.words else self.method

    @property
    def control(self) -> bool:
        """Whether something was taken from its runs: it competes with no row."""
        return any(run.start.control for run in self.runs)

    @property
    def label(self) -> str:
        """Name and detail: ``INTL (shapes_r18, 20 ep, shapes)``."""
        return f"{self.name} ({self.detail})" if self.detail else self.name


@dataclass(frozen=True)
class Part:
    """What some of a table's columns were measured on.

    Attributes:
        dataset: its name.
        architecture: of the detector or classifier.
        schedule: its name.
        tasks: the column groups measured on it.
        iterations: of the schedule.
        batch: size.
        lr: base learning rate, or ``chosen for each row``.
        further: settings beyond these in which it differs from its neighbours, or "".
        standard: False where these are known not to be those of the MoCo protocol.
        labels: the share of the training images whose labels were used (``10 %``); "" for all.
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
        dataset: name of the data set; of several, joined by `` + ``.
        architecture: of the detector.
        schedule: its name.
        family: ``detection`` or ``classification``.
        parts: what the column groups were measured on; empty for published rows alone.
        metrics: the columns of a group, where they are not AP50, AP, AP75.
        headings: of groups, where they are not the tasks' names.
        shown: the columns to show; all if None.
        legend: what the marks and spreads of this table mean, a line each.
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

    def columns(self) -> list[Column]:
        """(task, metric) of each figure column, in order."""
        if self.shown is not None:
            return list(self.shown)
        return [(task, m) for task in self.tasks for m in self.metrics.get(task, METRICS)]

    def heading(self, task: str) -> str:
        """Of a column group."""
        return self.headings.get(task, {"voc": "VOC"}.get(task, task))

    def count(self, row: Row) -> str:
        """Repetitions behind a row, for each part where they differ: ``3`` or ``1, 5``."""
        counts = [self._count(row, tasks) for tasks in self._groups()]
        different = list(dict.fromkeys(count for count in counts if count))
        if len(different) <= 1:
            return different[0] if different else ""
        return ", ".join(count or "-" for count in counts)

    def fewer(self, row: Row, column: Column) -> str:
        """Repetitions behind one figure where that is not its part's number; else ""."""
        summary = row.figures.get(column)
        tasks = next((tasks for tasks in self._groups() if column[0] in tasks), (column[0],))
        if summary is None or row.published or summary.count == self._count(row, tasks):
            return ""
        return summary.short_count

    def _groups(self) -> list[tuple[str, ...]]:
        return [part.tasks for part in self.parts] or [(task,) for task in self.tasks]

    def _count(self, row: Row, tasks: tuple[str, ...]) -> str:
        found = [summary for (task, _), summary in row.figures.items() if task in tasks]
        most = max(found, key=lambda summary: (summary.n, summary.runs), default=None)
        return "" if most is None else most.count
