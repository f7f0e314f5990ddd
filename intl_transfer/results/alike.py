"""What was measured alike: the protocols of a table's columns, and the runs of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from intl_transfer.results.rows import Column, Row, Table
from intl_transfer.results.run import Run


@dataclass(frozen=True)
class Alike:
    """Columns of one table in which the same runs have figures.

    Figures are compared, and averaged, only within them.

    Attributes:
        key: begins with the table's.
        name: its headings, unique in the table.
        title: its protocol in words, which no other has.
        columns: also those that are not shown.
    """

    key: str
    name: str
    title: str
    columns: frozenset[Column]

    def shown(self, table: Table) -> list[int]:
        """The indices of its columns that a table shows."""
        return [i for i, column in enumerate(table.columns()) if column in self.columns]

    def runs(self, row: Row) -> list[Run]:
        """The runs of a row that have figures in its columns."""
        return [run for run in row.runs if self.columns & _columns_of(row, run)]

    def count(self, row: Row) -> str:
        """The repetitions that a row's means are over; of several counts, the highest."""
        found = [row.metrics[column] for column in self.columns if column in row.metrics]
        most = max(found, key=lambda summary: (summary.n, summary.runs), default=None)
        return most.count if most is not None else ""


def alike(table: Table, key: str) -> list[Alike]:
    """The columns of a table, by the runs that have figures in them.

    Columns belong together if a run has figures in both: box and mask AP do; shares of labels,
    lengths of pretraining and joined data sets do not.

    Args:
        table: of any layout.
        key: of the table, unique among tables.
    """
    groups: list[frozenset[Column]] = []
    for row in table.rows:
        for run in row.runs:
            if mine := _columns_of(row, run):
                joined = [group for group in groups if group & mine]
                groups = [group for group in groups if not group & mine]
                groups.append(mine.union(*joined))
    places = {column: index for index, column in enumerate(table.columns())}
    ordered = [
        sorted(group, key=lambda column: (places.get(column, len(places)), column))
        for group in groups
    ]
    ordered.sort(key=lambda columns: (places.get(columns[0], len(places)), columns))
    names = _names(table, ordered)
    titles = [table.protocol_of(columns[0][0]) for columns in ordered]
    return [
        Alike(
            f"{key}.{index}",
            name,
            title if titles.count(title) == 1 else f"{title}: {name}",
            frozenset(columns),
        )
        for index, (columns, name, title) in enumerate(zip(ordered, names, titles, strict=True))
    ]


def protocols(table: Table) -> dict[Column, str]:
    """By column, its protocol in words; where runs have no figure in it, that of its part.

    Args:
        table: any.
    """
    stated = {column: table.protocol_of(column[0]) for row in table.rows for column in row.metrics}
    return stated | {column: one.title for one in alike(table, "") for column in one.columns}


def _columns_of(row: Row, run: Run) -> frozenset[Column]:
    return frozenset(column for column, values in row.each.items() if run.path in values)


def _names(table: Table, groups: Sequence[Sequence[Column]]) -> list[str]:
    """The headings of columns, with their metrics where headings alone do not differ."""
    short = [_listed(table.heading(task) for task, _ in columns) for columns in groups]
    long = [_listed(f"{table.heading(task)} {m}" for task, m in columns) for columns in groups]
    return [
        whole if short.count(name) > 1 else name for name, whole in zip(short, long, strict=True)
    ]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def short_names(tables: Sequence[Table]) -> list[dict[Column, str]]:
    """For each table, the short unique name of what a column was measured alike with.

    Args:
        tables: all, among which names are unique.
    """
    found = [(table, one) for i, table in enumerate(tables) for one in alike(table, str(i))]
    short = [_short(table, one) for table, one in found]
    names = unique_names(short, [one.title for _, one in found], [one.key for _, one in found])
    by_table: dict[int, dict[Column, str]] = {id(table): {} for table in tables}
    for (table, one), name in zip(found, names, strict=True):
        by_table[id(table)] |= dict.fromkeys(one.columns, name)
    return [by_table[id(table)] for table in tables]


def _short(table: Table, one: Alike) -> str:
    task = min(one.columns)[0]
    part = table.part_of(task)
    if part is not None:
        return f"{part.dataset}, schedule {part.schedule}"
    dataset = table.dataset_of(task)
    return one.name if one.name.startswith(dataset) else f"{dataset}, {one.name}"


def unique_names(short: Sequence[str], titles: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Short names, with the words of titles that tell them apart where they are the same.

    Args:
        short: names.
        titles: as long as it takes.
        keys: for titles that do not differ.
    """
    names = list(short)
    for name in [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        places = [index for index, other in enumerate(names) if other == name]
        words = [set(re.split(r"[,;()] *", titles[index])) for index in places]
        shared = set.intersection(*words)
        for index in places:
            title = re.split(r"[,;()] *", titles[index])
            own = [word for word in title if word and word not in shared]
            names[index] = f"{name}: {', '.join(own) or keys[index]}"
    return names
