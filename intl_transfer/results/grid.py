"""A table as text in cells, common to Markdown, LaTeX, the console and templates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from intl_transfer.results.rounding import rounded
from intl_transfer.results.rows import Mark, Row, Table, with_kind
from intl_transfer.results.statistics import Comparison, Summary

Spread = Literal["std", "t", "bootstrap", "difference", "none"]
HIDEABLE = ("pretraining", "n")

#: Legends of what stands beside a mean, by kind; of published rows, whatever it is.
SPREADS = {
    "std": "±: sample standard deviation over n repetitions.",
    "t": "[ ]: 95 % t interval of the mean over n repetitions.",
    "bootstrap": "[ ]: 95 % bootstrap interval of the mean over n repetitions (percentiles).",
    "published": "± of published rows: as their source prints it.",
    "difference": "+, −: difference to the baseline with its 95 % interval, which is of this one "
    "comparison; elsewhere ±: sample standard deviation over n repetitions.",
}


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        mean: as text; "" if missing.
        spread: ``± 0.1`` or ``[38.1, 38.3]``; "" for a single run.
        best: the highest of a primary column.
        arrow: ``↑`` or ``↓`` where significantly above or below the baseline.
        n: ``n = 2`` if this metric has fewer runs than others of the row.
        alone: ``†`` for a single run ranked above means of several.
    """

    mean: str
    spread: str = ""
    best: bool = False
    arrow: str = ""
    n: str = ""
    alone: str = ""

    @property
    def text(self) -> str:
        """Mean and spread, with marks as characters."""
        count = f"({self.n})" if self.n else ""
        mean = f"{self.mean}{self.alone}"
        return " ".join(part for part in (mean, self.spread, count, self.arrow) if part)


@dataclass(frozen=True)
class Line:
    """One row.

    Attributes:
        method: its name.
        detail: of the pretraining.
        n: number of runs, as text.
        cells: one per metric column.
        published: from the literature.
        external: from external Detectron2 folders.
        baseline: the row that others are tested against.
        notes: numbers of its footnotes.
        source: of a published row, and ``cite``, its key in published.bib.
        cite: see ``source``.
        source_note: number of the footnote with its source; 0 without one.
        group: the heading above it, or "".
        rule: whether a rule is above it.
    """

    method: str
    detail: str
    n: str
    cells: tuple[Cell, ...]
    published: bool = False
    external: bool = False
    baseline: bool = False
    notes: tuple[int, ...] = ()
    source: str = ""
    cite: str = ""
    source_note: int = 0
    group: str = ""
    rule: bool = False

    @property
    def name(self) -> str:
        """The method, with its kind unless it is an ordinary measured row."""
        return with_kind(self.method, self.external, self.baseline)


@dataclass(frozen=True)
class Grid:
    """One table as text, without escaping.

    Attributes:
        title: of the table.
        groups: (heading, number of columns) of each column group.
        metrics: the heading of each metric column, within its group.
        lines: measured rows, then published ones.
        notes: footnotes; number 1 is the first.
        legend: explanations of marks and spreads, one sentence each.
        hide: columns to omit, of ``pretraining`` and ``n``.
        slug: short name of the content, for labels.
        key: of the table on the report's page.
    """

    title: str
    groups: list[tuple[str, int]]
    metrics: list[str]
    lines: list[Line]
    notes: list[str] = field(default_factory=list)
    legend: list[str] = field(default_factory=list)
    hide: tuple[str, ...] = ()
    slug: str = ""
    key: str = ""

    @property
    def leading(self) -> list[str]:
        """Headings of the columns before the metrics."""
        return [name for name in ("initialization", "pretraining", "n") if name not in self.hide]

    @property
    def headings(self) -> list[str]:
        """Of all columns, in one line."""
        names = [name for name, span in self.groups for _ in range(span)]
        headings = [f"{name} {m}" for name, m in zip(names, self.metrics, strict=True)]
        return [*self.leading, *headings]


def make_grid(
    table: Table, precision: int = 1, spread: Spread = "std", hide: tuple[str, ...] = ()
) -> Grid:
    """Formats a table as text.

    Args:
        table: any.
        precision: number of decimals.
        spread: shown with a mean.
        hide: columns to omit, of ``pretraining`` and ``n``.
    """
    columns = table.columns()
    groups: list[tuple[str, int]] = []
    for task in dict.fromkeys(task for task, _ in columns):
        span = sum(1 for name, _ in columns if name == task)
        groups.append((clean(table.heading(task)), span))
    notes: list[str] = []
    lines = [_line(table, row, notes, precision, spread) for row in table.rows]
    legend = list(table.legend)
    spreads = {line.published for line in lines for cell in line.cells if cell.spread}
    if True in spreads:
        legend.insert(0, SPREADS["published"])
    if False in spreads:
        legend.insert(0, SPREADS[spread])
    metrics = [clean(metric) for _, metric in columns]
    return Grid(
        *(clean(table.title), groups, metrics, lines, notes, legend, hide),
        slug=table.slug,
        key=table.key,
    )


def _line(table: Table, row: Row, notes: list[str], precision: int, spread: Spread) -> Line:
    numbers = []
    for note in map(clean, row.notes):
        if note not in notes:
            notes.append(note)
        numbers.append(notes.index(note) + 1)
    return Line(
        clean(row.name),
        clean(row.detail),
        table.count(row),
        tuple(_cell(table, row, column, precision, spread) for column in table.columns()),
        row.published,
        row.external,
        row.baseline,
        tuple(numbers),
        clean(row.source),
        row.cite,
        notes.index(said) + 1 if row.cite and (said := clean(row.notes[0])) in notes else 0,
        clean(row.group),
        row.rule,
    )


def _cell(table: Table, row: Row, column: tuple[str, str], precision: int, spread: Spread) -> Cell:
    summary = row.metrics.get(column)
    if summary is None:
        return Cell("")
    mark = row.marks.get(column) or Mark()
    arrow = ""
    beside = spread_text(summary, precision, spread)
    if mark.comparison is not None:
        if mark.comparison.significant():
            arrow = "↑" if mark.comparison.difference > 0 else "↓"
        if spread == "difference":
            beside = difference_text(mark.comparison, precision)
    return Cell(
        rounded(summary.mean, precision),
        beside,
        mark.best,
        arrow,
        f"n = {fewer}" if (fewer := table.fewer(row, column)) else "",
        "†" if mark.alone else "",
    )


def separated(lines: Sequence[Line]) -> Iterator[tuple[Line, str, bool]]:
    """Each line, with the heading above it, or "", and whether a rule is above both.

    Rows after a group that are not of it have a rule, and no heading.

    Args:
        lines: of one table.
    """
    group = ""
    for index, line in enumerate(lines):
        changes = line.group != group
        yield line, line.group if changes else "", index > 0 and (changes or line.rule)
        group = line.group


def spread_text(summary: Summary, precision: int, spread: Spread) -> str:
    """``± 0.1`` or ``[38.1, 38.3]``; "" if there is none."""
    if spread in ("t", "bootstrap"):
        ends = summary.interval(spread)
        if ends is not None:
            return f"[{rounded(ends[0], precision)}, {rounded(ends[1], precision)}]"
        return ""
    if spread == "none" or summary.std is None:
        return ""
    return f"± {rounded(summary.std, precision)}"


def difference_text(comparison: Comparison, precision: int) -> str:
    """``+1.2 [+0.4, +2.0]``, with a typographic minus."""
    parts = (comparison.difference, comparison.low, comparison.high)
    middle, low, high = (rounded(part, precision, sign=True).replace("-", "−") for part in parts)
    return f"{middle} [{low}, {high}]"


def clean(text: str) -> str:
    """Text from users' files in one line, without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
