"""Rows become tables: one block for each set of runs that may be compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from intl_transfer.results.collect import METRICS, TASKS, Collection, Run
from intl_transfer.results.published import published_detection
from intl_transfer.results.statistics import Summary, summarise

Figures = dict[tuple[str, str], Summary]


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
    """

    method: str
    detail: str
    figures: Figures
    n: int
    published: bool = False
    notes: tuple[str, ...] = ()
    runs: tuple[Run, ...] = ()


@dataclass
class Table:
    """A block of comparable rows.

    Attributes:
        title: data set, detector, schedule.
        tasks: the column groups: ``box``, ``mask``, ``voc``.
        rows: measured rows, best first, then published ones.
        dataset: name of the data set.
        architecture: of the detector.
        schedule: its name.
    """

    title: str
    tasks: tuple[str, ...]
    rows: list[Row] = field(default_factory=list)
    dataset: str = ""
    architecture: str = ""
    schedule: str = ""

    def columns(self) -> list[tuple[str, str]]:
        """(task, metric) of each figure column, in order."""
        return [(task, metric) for task in self.tasks for metric in METRICS]


def build_tables(collection: Collection, published: bool = False) -> list[Table]:
    """Groups runs into tables, and sets published rows beside those they may be compared with.

    Runs share a table only if data set, detector, schedule, batch size and learning rate agree.
    Published rows join a COCO 1x, COCO 2x or VOC 24k table of Mask or Faster R-CNN R50-C4; those
    whose partner was not run, or whose schedule is not known, get a table of their own.

    Args:
        collection: from :func:`intl_transfer.results.collect`.
        published: also show published rows.

    Returns:
        Tables sorted by data set and schedule.
    """
    blocks: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in collection.runs:
        blocks[run.comparable].append(run)
    tables = [_measured(key, runs) for key, runs in sorted(blocks.items())]
    return _with_published(tables) if published else tables


def _measured(key: tuple[str, ...], runs: Sequence[Run]) -> Table:
    name, architecture, schedule, iterations, batch, lr = key
    tasks = tuple(task for task in TASKS if any(task in run.results["metrics"] for run in runs))
    table = Table(
        f"{name}, {architecture}, schedule {schedule} ({iterations} iterations, batch {batch}, "
        f"lr {lr})",
        tasks,
        dataset=name,
        architecture=architecture,
        schedule=schedule,
    )
    groups: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.initialisation].append(run)
    for (kind, method, detail), members in groups.items():
        figures = {
            (task, metric): summary
            for task, metric in table.columns()
            if (summary := summarise([run.figure(task, metric) for run in members])) is not None
        }
        table.rows.append(
            Row(method, detail, figures, len(members), False, _notes(kind, members), tuple(members))
        )
    table.rows.sort(key=lambda row: -_rank(row, tasks))
    return table


def _notes(kind: str, members: Sequence[Run]) -> tuple[str, ...]:
    if kind == "random" or all(run.parent for run in members):
        return ()
    if any(run.parent_known and run.parent is None for run in members):
        return ("the pretraining run was not among the folders read",)
    return ("weights without a pretraining run of this project",)


def _rank(row: Row, tasks: Sequence[str]) -> float:
    figure = row.figures.get((tasks[0], "AP")) if tasks else None
    return figure.mean if figure else -1.0


def _with_published(tables: list[Table]) -> list[Table]:
    blocks = (
        ("COCO 2017", ("box", "mask"), "coco_2017_val", ("1x", "2x", "unknown")),
        # SimSiam's VOC column stands in rows marked with their COCO schedule; whether it was
        # trained for 24 k iterations is not said there, so it is kept apart.
        ("VOC 2007", ("voc",), "voc_2007_test", ("24k", "1x", "unknown")),
    )
    for family, tasks, dataset, schedules in blocks:
        for schedule in schedules:
            rows = [
                Row(
                    entry.method,
                    f"{entry.epochs} ep" if entry.epochs else "",
                    {k: v for k, v in entry.figures.items() if k[0] in tasks},
                    max((v.n for v in entry.figures.values()), default=0),
                    True,
                    (f"published: {entry.source}", *([entry.note] if entry.note else [])),
                )
                for entry in published_detection()
                if entry.schedule == schedule and any(k[0] in tasks for k in entry.figures)
            ]
            partners = [
                table
                for table in tables
                if table.dataset == dataset
                and table.schedule == schedule
                and table.architecture.endswith("resnet50-C4")
            ]
            for table in partners:
                table.rows.extend(rows)
            if rows and not partners:
                named = {
                    "unknown": "schedule not stated",
                    "1x": "schedule 1x" if family == "COCO 2017" else "rows with COCO schedule 1x",
                }.get(schedule, f"schedule {schedule}")
                tables.append(Table(f"{family}, published only, R50-C4, {named}", tasks, rows))
    return tables
