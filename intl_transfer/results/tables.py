"""Makes tables of comparable runs from a collection; selects, sorts and marks rows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import get_args

from intl_transfer.errors import UserError, require_choice
from intl_transfer.results.classification import classification_tables
from intl_transfer.results.collect import Collection, paused_collector
from intl_transfer.results.filters import (
    choose_columns,
    choose_rows,
    choose_tasks,
    conditions_of,
    excluding_nothing,
    fits,
    nothing_fits,
    sort_rows,
)
from intl_transfer.results.grouping import LrSelection, measured_tables
from intl_transfer.results.layout import Layout, join, most_standard_first, with_published
from intl_transfer.results.names import Naming, arrange_rows, name_rows
from intl_transfer.results.rows import Column, Mark, Metrics, Part, Row, Table
from intl_transfer.results.run import Start
from intl_transfer.results.significance import compare_with_baseline, mark_best
from intl_transfer.results.starts import distinctions
from intl_transfer.results.statistics import TestMethod

__all__ = ["Column", "Mark", "Metrics", "Part", "Row", "Table", "TableOptions", "build_tables"]


@dataclass(frozen=True)
class TableOptions:
    """Options for tables.

    Attributes:
        layout: ``paper``, one row per method across data sets; ``dataset``, one table per data set.
        lr_selection: ``separate``, one table per learning rate; ``best``, each row at its best.
        baseline: the row to test the others against.
        test: ``auto``, ``paired`` or ``welch``.
        kinds: ``detection``, ``classification``; which tables to make.
        columns: ``TASK``, ``TASK.METRIC`` or ``METRIC``; all of the layout if empty.
        rows: ``KEY=PATTERN`` or ``KEY!=PATTERN``, all of which a row must match.
        sort: ``method``, ``pretraining``, ``n`` or a column; best first if None.
        reverse: reverse the order.
        names: names, order and groups of rows.
    """

    layout: Layout = "paper"
    lr_selection: LrSelection = "separate"
    baseline: str | None = None
    test: TestMethod = "auto"
    kinds: tuple[str, ...] = ("detection", "classification")
    columns: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    sort: str | None = None
    reverse: bool = False
    names: tuple[Naming, ...] = ()

    def __post_init__(self) -> None:
        """Checks the choices.

        Raises:
            UserError: for an unknown one.
        """
        require_choice("layout", self.layout, get_args(Layout))
        require_choice("lr_selection", self.lr_selection, get_args(LrSelection))
        require_choice("test", self.test, get_args(TestMethod))
        for kind in self.kinds:
            require_choice("kind", kind, ("detection", "classification"))


def build_tables(
    collection: Collection, published: bool = False, options: TableOptions | None = None
) -> list[Table]:
    """Groups runs into tables, and adds comparable published rows.

    Runs share a table only if data set, detector, schedule, batch size, learning rate and all other
    deciding settings agree; differences are stated in the titles. Published rows join a COCO 1x,
    COCO 2x or VOC 24k table of Mask or Faster R-CNN R50-C4; those without a matching table, or with
    an unknown schedule, get separate tables.

    Args:
        collection: from :func:`intl_transfer.results.collect`.
        published: include published rows.
        options: layout, selection, sorting and tests.

    Returns:
        Detection first, then classification; of detection, the most standard protocol first.

    Raises:
        UserError: if a requested column, row or baseline does not exist, or no row matches.
    """
    with paused_collector():
        return _build_tables(collection, published, options or TableOptions())


def _build_tables(collection: Collection, published: bool, options: TableOptions) -> list[Table]:
    tables, more = [], []
    if "detection" in options.kinds:
        tables = measured_tables(collection.runs, options.lr_selection)
    if "classification" in options.kinds:
        more = classification_tables(collection, published)
    conditions = conditions_of(options.rows, (*tables, *more))
    # By data set and protocol, before joining: `schedule=1x` refers only to COCO's columns.
    tables = [table for table in tables if fits(table, conditions)]
    more = [choose_tasks(table, conditions) for table in more]
    if options.layout == "paper":
        tables = join(tables)
    tables = most_standard_first(tables)
    if published and "detection" in options.kinds:
        tables = with_published(tables, options.layout, lambda table: fits(table, conditions))
    tables = [with_words(table) for table in (*tables, *more)]
    if options.baseline is not None:
        # By the names that are shown, before the selection of rows and columns, which must not
        # affect the claims; those on one column do not depend on what is beside it.
        tables = compare_with_baseline(tables, options.baseline, options.test)
    has_unmatched = bool(excluding_nothing(tables, conditions))
    tables = choose_rows(tables, conditions)
    if conditions and (has_unmatched or not tables):
        everything = dataclasses.replace(options, rows=(), columns=(), sort=None, baseline=None)
        if all_tables := _build_tables(collection, published, everything):
            if message := excluding_nothing(all_tables, conditions):
                raise UserError(message)
            if not tables:
                raise nothing_fits(all_tables, conditions)
    tables = choose_columns(tables, options.columns)
    if options.names:
        tables = name_rows(tables, options.names)
    tables = [arrange_rows(table) for table in sort_rows(tables, options.sort, options.reverse)]
    return mark_best(tables, options.baseline)


def with_words(table: Table) -> Table:
    """Adds distinguishing words to rows of one method: ``INTL, iterations 8``."""
    starts: dict[str, dict[str, Start]] = {}
    for row in table.rows:
        for run in row.runs[:1]:
            # Of a row over several columns, the detail is not that of its first run.
            start = dataclasses.replace(run.start, detail=row.detail)
            starts.setdefault(row.method, {})[start.key] = start
    words: dict[str, str] = {}
    for found in starts.values():
        words |= distinctions(list(found.values()))
    rows = [
        dataclasses.replace(row, words=words.get(row.runs[0].start.key, "")) if row.runs else row
        for row in table.rows
    ]
    return dataclasses.replace(table, rows=rows)
