"""What tables are made of: rows, their figures and marks, and what the columns were measured on."""

from __future__ import annotations

from dataclasses import dataclass, field

from intl_transfer.results.collect import METRICS, Run
from intl_transfer.results.statistics import Comparison, Summary

Column = tuple[str, str]
Figures = dict[Column, Summary]


@dataclass(frozen=True)
class Mark:
    """What the statistics say of one figure.

    Attributes:
        best: the highest mean of its column, among measured rows.
        tied: not significantly different from the best.
        comparison: with the baseline, where there is one and it can be tested.
    """

    best: bool = False
    tied: bool = False
    comparison: Comparison | None = None


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        method: the initialisation.
        detail: of its pretraining.
        figures: by (task, metric), in %.
        n: number of runs; 0 where a published row does not say.
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

    @property
    def label(self) -> str:
        """Method and detail: ``INTL (shapes_r18, 20 ep, shapes)``."""
        return f"{self.method} ({self.detail})" if self.detail else self.method


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

    @property
    def title(self) -> str:
        """In words."""
        plan = f"{self.iterations} iterations, batch {self.batch}, lr {self.lr}"
        further = f"; {self.further}" if self.further else ""
        return f"{self.dataset}, {self.architecture}, schedule {self.schedule} ({plan}{further})"


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
        """Number of runs behind a row, for each part where they differ: ``3`` or ``1, 5``."""
        groups = [part.tasks for part in self.parts] or [(task,) for task in self.tasks]
        counts = []
        for tasks in groups:
            found = [summary.n for (task, _), summary in row.figures.items() if task in tasks]
            counts.append(max(found, default=0))
        different = sorted({count for count in counts if count})
        if len(different) <= 1:
            return str(different[0]) if different else ""
        return ", ".join(str(count) if count else "-" for count in counts)
