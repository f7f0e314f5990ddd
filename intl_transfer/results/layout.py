"""Joins tables to one row per method across data sets, and adds comparable published rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

from intl_transfer.results.grouping import NORM, deviations, norm_of, rank
from intl_transfer.results.power import primary_columns
from intl_transfer.results.published import (
    PublishedRow,
    published_detection,
    published_row,
)
from intl_transfer.results.rows import CHOSEN, Metrics, Part, Row, Table, head, with_notes
from intl_transfer.results.run import Run
from intl_transfer.runs.architectures import RCNN

Layout = Literal["paper", "dataset"]

_COCO, _VOC = "coco_2017_val", "voc_2007_test"
# SimSiam's VOC column is in rows labeled with their COCO schedule; whether it was trained for 24 k
# iterations is not stated, so it is kept separate.
_NOT_STATED = "schedule not stated"


def join(tables: Sequence[Table]) -> list[Table]:
    """Joins COCO-layout and VOC-layout tables of one detector and kind of data.

    A VOC table joins the COCO table of its family (``coco_2017_val`` and ``voc_2007_test``;
    ``shapes_coco_val`` and ``shapes_voc_test``) with the same backbone and head, if each has one
    protocol. If there are several (for example learning rates), those with the same batch size and
    rate are paired; tables without a unique partner stay separate: results of one protocol are
    never shown twice. So do tables with a task in common, such as one's own evaluator's.

    Args:
        tables: each of one data set.

    Returns:
        The tables of the paper's layout.
    """
    boxes = [table for table in tables if "voc" not in table.tasks]
    vocs = [table for table in tables if "voc" in table.tasks]
    joined, used = [], set()
    for table in boxes:
        partner = _partner(table, vocs)
        if partner is not None and _partner(partner, boxes) is table:
            used.add(id(partner))
            joined.append(_side_by_side(table, partner))
        else:
            joined.append(_headed(table))
    return [*joined, *(_headed(table) for table in vocs if id(table) not in used)]


def _partner(table: Table, others: Sequence[Table]) -> Table | None:
    """The unique table of the other layout that can be joined with a table; None otherwise."""
    family = [
        other
        for other in others
        # A task of both data sets (an evaluator of one's own) has a column group of each.
        if _family(other) == _family(table)
        and _norm_agrees(other, table)
        and not set(other.tasks) & set(table.tasks)
    ]
    if len(family) > 1:
        part = table.parts[0]
        plan = (part.batch, part.lr)
        family = [other for other in family if (other.parts[0].batch, other.parts[0].lr) == plan]
    return family[0] if len(family) == 1 else None


def most_standard_first(tables: Sequence[Table]) -> list[Table]:
    """Sorts tables by closeness of their protocol to a published one, then by number of runs.

    Args:
        tables: measured ones, in their final layout.
    """

    def standing(table: Table) -> tuple[object, ...]:
        runs = _runs(table)
        published = [_is_published(part) for part in table.parts]
        against = len(deviations(runs))
        standard = all(part.standard for part in table.parts)
        return not all(published), not any(published), not standard, against, -len(runs)

    return sorted(tables, key=standing)


def _family(table: Table) -> tuple[object, ...]:
    """The key on which joined tables must agree.

    The data set's name without layout, year and split; backbone and head; and deviations from the
    protocol: a detector with a frozen backbone or a tenth of the labels is not joined with one that
    was fully trained on all.
    """
    words = table.dataset.lower().split("_")
    known = ("coco", "voc", "val", "test", "minival", "test-dev")
    kept = [word for word in words if word not in known and not word.isdigit()]
    meta, _, built = table.architecture.rpartition(" ")
    # R-CNNs with and without masks can be joined; a RetinaNet is another detector.
    built = built if meta in RCNN or not meta else table.architecture
    return "_".join(kept), built, table.parts[0].standard, deviations(_runs(table))


def _norm_agrees(one: Table, other: Table) -> bool:
    """Whether two tables have one batch norm, as far as their runs state it."""
    return len({norm_of(_runs(table)) for table in (one, other)} - {""}) < 2


def _runs(table: Table) -> list[Run]:
    return [run for row in table.rows for run in row.runs]


def _headed(table: Table) -> Table:
    (part,) = table.parts
    meta = part.architecture.rpartition(" ")[0]
    further = "" if meta in RCNN else meta
    name = " ".join(text for text in (head(part.dataset), part.labels, further) if text)
    names = {"box": f"{name} det.", "mask": f"{name} seg.", "voc": name}
    headings = {task: names.get(task, f"{name} {task}") for task in table.tasks}
    return dataclasses.replace(table, headings=headings)


def _side_by_side(left: Table, right: Table) -> Table:
    tables = [_headed(left), _headed(right)]
    rows: dict[str, Row] = {}
    for table in tables:
        for found in table.rows:
            row = dataclasses.replace(found, notes_of={table.tasks: found.notes})
            key = row.runs[0].start.key
            other = rows.get(key)
            rows[key] = row if other is None else _merged(other, row)
    tasks = left.tasks + right.tasks
    ranked = [column for table in tables for column in primary_columns(table)]
    parts = left.parts + right.parts
    backbones = [part.architecture for part in parts]
    joined = Table(
        "; ".join(part.title for part in parts),
        tasks,
        sorted(rows.values(), key=lambda row: -rank(row, ranked)),
        " + ".join(part.dataset for part in parts),
        " + ".join(dict.fromkeys(backbones)),
        " + ".join(dict.fromkeys(part.schedule for part in parts)),
        parts=parts,
        headings=tables[0].headings | tables[1].headings,
        metrics=left.metrics | right.metrics,
    )
    return with_notes(joined)


def _merged(one: Row, other: Row) -> Row:
    return dataclasses.replace(
        one,
        metrics=one.metrics | other.metrics,
        n=max(one.n, other.n),
        notes_of=one.notes_of | other.notes_of,
        runs=one.runs + other.runs,
        external=one.external or other.external,
        baseline=one.baseline or other.baseline,
        marks=one.marks | other.marks,
        each=one.each | other.each,
        chosen_over=one.chosen_over | other.chosen_over,
        tried=one.tried | other.tried,
    )


def with_published(
    tables: list[Table], layout: Layout, fits: Callable[[Table], bool] = lambda table: True
) -> list[Table]:
    """Adds published rows to COCO 1x, COCO 2x and VOC 24 k of R50-C4, otherwise as new tables.

    Args:
        tables: of measured rows.
        layout: whether published rows without a measured table share one across data sets.
        fits: whether to show a table of one data set and protocol.
    """
    published = published_detection()
    result = list(tables)
    for schedule in ("1x", "2x", "unknown", "24k"):
        rows = [entry for entry in published if entry.schedule == schedule]
        for tasks, dataset in ((("box", "mask"), _COCO), (("voc",), _VOC)):
            here = [entry for entry in rows if any(k[0] in tasks for k in entry.metrics)]
            partners = [t for t in tables if _takes(t, dataset, schedule)]
            for table in partners:
                measured = _norms(table, tasks)
                table.rows.extend(_row(entry, tasks, measured) for entry in here)
            if partners:
                # Rows already added are not shown again.
                rows = [dataclasses.replace(e, metrics=_others(e, tasks)) for e in rows]
        rows = [entry for entry in rows if entry.metrics]
        result += _published_only(rows, schedule, layout, fits)
    return result


# By data set, the detector of its published rows: training with masks changes box AP.
_PUBLISHED_WITH = {_COCO: "Mask R-CNN resnet50-C4", _VOC: "Faster R-CNN resnet50-C4"}
_SCHEDULES = {_COCO: ("1x", "2x"), _VOC: ("24k",)}


def _takes(table: Table, dataset: str, schedule: str) -> bool:
    """Whether a measured table can include rows published under the standard protocol."""
    return any(
        (part.dataset, part.schedule) == (dataset, schedule) and _is_published(part)
        for part in table.parts
    )


def _is_published(part: Part) -> bool:
    """Whether there are published rows with the protocol of some columns."""
    usual = part.standard and part.lr in ("0.02", CHOSEN)
    known = part.schedule in _SCHEDULES.get(part.dataset, ())
    return usual and known and part.architecture == _PUBLISHED_WITH[part.dataset]


def _norms(table: Table, tasks: Sequence[str]) -> tuple[str, ...]:
    """The batch norms of the measured rows of some columns; "" for not stated."""
    part = next(part for part in table.parts if set(part.tasks) & set(tasks))
    here = [run for run in _runs(table) if run.results.dataset.name == part.dataset]
    return tuple(sorted({str(run.protocol.get(NORM, "")) for run in here}))


def _norm_note(theirs: str, measured: Sequence[str]) -> str:
    """The footnote of a published row among measured ones; "" if both have the same norm."""
    if theirs and tuple(measured) == (theirs,):
        return ""
    known = ", ".join(norm for norm in measured if norm)
    which = "the measured rows that state it" if "" in measured else "the measured rows"
    ours = f"{which} have {known}" if known else ""
    if theirs:
        norm_note = f"its authors' fine-tuning files have {theirs}"
        return (
            f"{norm_note}, {ours}"
            if ours
            else f"{norm_note}; the measured rows do not state theirs"
        )
    norm_note = "the batch norm of its fine-tuning is not stated"
    return f"{norm_note}; {ours}" if ours else norm_note


def _others(entry: PublishedRow, tasks: Sequence[str]) -> Metrics:
    return {key: value for key, value in entry.metrics.items() if key[0] not in tasks}


def _row(entry: PublishedRow, tasks: Sequence[str], measured: Sequence[str] | None = None) -> Row:
    """A published row, given the batch norms of measured rows in its table (None: no such rows)."""
    alone = f"its authors' fine-tuning files have {entry.norm}" if entry.norm else ""
    beside = alone if measured is None else _norm_note(entry.norm, measured)
    metrics = {key: value for key, value in entry.metrics.items() if key[0] in tasks}
    missing = [
        *(["schedule"] if entry.schedule == "unknown" else []),
        *(["number of runs"] if not any(value.n for value in metrics.values()) else []),
        *(["batch norm of the fine-tuning"] if measured is None and not entry.norm else []),
    ]
    detail = f"{entry.epochs} ep" if entry.epochs else ""
    return published_row(entry.method, detail, metrics, entry.source, (beside, entry.note), missing)


def _published_only(
    rows: Sequence[PublishedRow], schedule: str, layout: Layout, fits: Callable[[Table], bool]
) -> list[Table]:
    """Published rows that fit no measured table."""
    known = {"unknown": "not stated"}.get(schedule, schedule)
    coco = {"unknown": _NOT_STATED}.get(schedule, f"schedule {schedule}")
    voc = {"24k": "schedule 24k", "1x": "rows with COCO schedule 1x"}.get(schedule, _NOT_STATED)
    groups = [
        (f"COCO 2017, published only, R50-C4, {coco}", ("box", "mask"), _COCO, known),
        (
            *(f"VOC 2007, published only, R50-C4, {voc}", ("voc",), _VOC),
            "24k" if schedule == "24k" else "not stated",
        ),
    ]
    tables = []
    for title, tasks, dataset, plan in groups:
        here = [_row(e, tasks) for e in rows if any(key[0] in tasks for key in e.metrics)]
        table = Table(title, tasks, here, dataset, _PUBLISHED_WITH[dataset], plan)
        if here and fits(table):
            tables.append(table)
    if layout == "paper" and len(tables) == 2:
        tasks = ("box", "mask", "voc")
        title = f"COCO 2017, {coco}, and VOC 2007, {_NOT_STATED}; published only, R50-C4"
        here = [_row(e, tasks) for e in rows]
        dataset, architecture, plan = (
            " + ".join(dict.fromkeys(getattr(table, name) for table in tables))
            for name in ("dataset", "architecture", "schedule")
        )
        tables = [Table(title, tasks, here, dataset, architecture, plan)]
    if layout == "paper":
        for table in tables:
            table.headings = {"box": "COCO det.", "mask": "COCO seg.", "voc": "VOC"}
    return tables
