"""Selects and sorts rows and columns of tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.results.rows import Column, Row, Table, with_notes
from intl_transfer.runs.aliases import ALIASES

_ROW_KEYS: dict[str, Callable[[Row], str]] = {
    "method": lambda row: row.name,
    "pretraining": lambda row: row.detail,
    "source": lambda row: (
        "published" if row.published else "external" if row.external else "measured"
    ),
}
_TABLE_KEYS: dict[str, Callable[[Table], str]] = {
    "dataset": lambda table: table.dataset,
    "detector": lambda table: table.architecture,
    "schedule": lambda table: table.schedule,
}
_KEYS = (*_ROW_KEYS, *_TABLE_KEYS)
_TEXT_KEYS = ("method", "pretraining")
# Maximum number of values listed.
_MOST_VALUES = 20


_SOURCES = ("measured", "external", "published")


@dataclass(frozen=True)
class Condition:
    """A condition on a row, or on its table.

    Attributes:
        key: of the row (method, pretraining, source) or of its table (dataset, detector, schedule).
        positive: False for a negated condition.
        patterns: shell patterns, of which one must match.
        text: as the user wrote it.
        names: values, of which one may be equal instead.
    """

    key: str
    positive: bool
    patterns: tuple[str, ...]
    text: str
    names: tuple[str, ...] = ()

    def holds(self, value: str) -> bool:
        """Whether a value matches."""
        return (
            value in self.names or any(fnmatchcase(value, pattern) for pattern in self.patterns)
        ) == self.positive

    def among(self, values: Collection[str]) -> Condition:
        """The condition with what is one of some values as a name, not as patterns.

        Names contain commas, which separate patterns, and brackets, which patterns have for sets
        of characters.

        Args:
            values: all that there are.
        """
        words = self.text.partition("=")[2].split(",")
        names: list[str] = []
        patterns: list[str] = []
        at = 0
        while at < len(words):
            whole = [
                end for end in range(at + 1, len(words) + 1) if _joined(words[at:end]) in values
            ]
            end = max(whole, default=at + 1)
            (names if whole else patterns).append(_joined(words[at:end]))
            at = end
        if self.key == "source":
            patterns = [ALIASES.get(word, word) for word in patterns]
        return dataclasses.replace(self, names=tuple(names), patterns=tuple(patterns))

    def unmatched(self, values: Collection[str]) -> list[str]:
        """The patterns that fit none of some values."""
        return [one for one in self.patterns if not any(fnmatchcase(v, one) for v in values)]


def _joined(words: Sequence[str]) -> str:
    return ",".join(words).strip()


def conditions_of(selected: Sequence[str], tables: Sequence[Table] = ()) -> list[Condition]:
    """Conditions from ``KEY=PATTERN[,PATTERN...]`` or ``KEY!=PATTERN[,...]``.

    Args:
        selected: as the user wrote them.
        tables: all, whose values are names.

    Raises:
        UserError: for an invalid condition, or an unknown key.
    """
    return [_among(tables, _condition(text)) for text in selected]


def _among(tables: Sequence[Table], condition: Condition) -> Condition:
    return condition.among(_values(tables, condition.key))


def _values(tables: Sequence[Table], key: str) -> list[str]:
    """All values of a key, sorted."""
    found: set[str] = set()
    for table in tables:
        if key in _TABLE_KEYS:
            found |= set(_TABLE_KEYS[key](table).split(" + "))
        else:
            found |= {_ROW_KEYS[key](row) for row in table.rows}
    return sorted(found - {""})


def fits(table: Table, conditions: Sequence[Condition]) -> bool:
    """Whether a table of one data set and protocol matches all conditions on tables."""
    return all(c.holds(_TABLE_KEYS[c.key](table)) for c in conditions if c.key in _TABLE_KEYS)


def choose_tasks(table: Table, conditions: Sequence[Condition]) -> Table:
    """Selects the matching column groups (data sets) of a table; no rows if none matches.

    Args:
        table: of classification.
        conditions: those on tables are used.
    """
    datasets = table.dataset.split(" + ")
    if set(table.tasks) != set(datasets):
        return table if fits(table, conditions) else dataclasses.replace(table, rows=[])
    kept = [
        task for task in table.tasks if fits(dataclasses.replace(table, dataset=task), conditions)
    ]
    rows = [row for row in table.rows if any(task in kept for task, _ in row.metrics)]
    of_kept = dataclasses.replace(table, tasks=tuple(kept), dataset=" + ".join(kept), rows=rows)
    return with_notes(of_kept)


def choose_rows(tables: Sequence[Table], conditions: Sequence[Condition]) -> list[Table]:
    """Selects rows that match all conditions on rows; tables without rows are dropped.

    Args:
        tables: any.
        conditions: those on tables are ignored.
    """
    conditions = [_among(tables, one) for one in conditions if one.key in _ROW_KEYS]
    chosen = []
    for table in tables:
        rows = [
            row for row in table.rows if all(c.holds(_ROW_KEYS[c.key](row)) for c in conditions)
        ]
        if rows:
            left_out = sum(row.compared for row in table.rows) - sum(row.compared for row in rows)
            chosen.append(dataclasses.replace(table, rows=rows, hidden=left_out))
    return chosen


def nothing_fits(tables: Sequence[Table], conditions: Sequence[Condition]) -> UserError:
    """The error message if no row matches: lists the existing values.

    Args:
        tables: all, before selection.
        conditions: that match nothing.
    """
    lines = []
    for condition in conditions:
        known = _values(tables, condition.key)
        if not any(map(condition.among(known).holds, known)):
            lines.append(f"--rows {condition.text}: no row fits.{_known(condition, known)}")
    if not lines:
        texts = " ".join(f"--rows {condition.text}" for condition in conditions)
        lines = [f"{texts}: each fits some rows, but no row fits all of them"]
    return UserError("; ".join(lines))


def excluding_nothing(tables: Sequence[Table], conditions: Sequence[Condition]) -> str:
    """The error message of negated conditions with words that fit no value; "" if all fit one.

    Args:
        tables: any.
        conditions: any.
    """
    lines = []
    for condition in conditions:
        known = _values(tables, condition.key)
        # A source need not be there: these three are all that can be.
        every = [*known, *(_SOURCES if condition.key == "source" else ())]
        unmatched = [] if condition.positive else condition.among(every).unmatched(every)
        if unmatched:
            lines.append(
                f"--rows {condition.text}: no row fits '{', '.join(unmatched)}', so nothing is "
                f"excluded by it.{_known(condition, known)}"
            )
    return "; ".join(lines)


def _known(condition: Condition, values: Sequence[str]) -> str:
    """What is near a condition's words, and the values that there are, for messages."""
    whole = condition.text.partition("=")[2].strip()
    hint = did_you_mean(whole, values) or did_you_mean(whole.split(",")[0], values)
    listed = ", ".join(values[:_MOST_VALUES]) or "none"
    more = f" and {len(values) - _MOST_VALUES} more" if len(values) > _MOST_VALUES else ""
    return f"{hint} Values of {condition.key} here: {listed}{more}"


def _condition(text: str) -> Condition:
    key, sign, patterns = text.partition("=")
    positive = not key.endswith("!")
    key = key.removesuffix("!").strip()
    if not sign or not patterns:
        raise UserError(f"--rows {text}: expected KEY=PATTERN or KEY!=PATTERN, as method=INTL*")
    if key not in _KEYS:
        hint = did_you_mean(key, _KEYS)
        raise UserError(f"--rows {text}: no key '{key}'.{hint} Known: {', '.join(_KEYS)}")
    return Condition(key, positive, (), text).among(())


def choose_columns(tables: Sequence[Table], selected: Sequence[str]) -> list[Table]:
    """Selects columns, in the given order; tables without any of them are dropped.

    Args:
        tables: any.
        selected: ``TASK.METRIC``, ``TASK`` (its usual columns) or ``METRIC`` (of all tasks).

    Raises:
        UserError: for a column that no table has.
    """
    if not selected:
        return list(tables)
    for text in selected:
        if not any(_fitting(table, text) for table in tables):
            names = _names(tables)
            hint = did_you_mean(text, names)
            raise UserError(
                f"--columns: no column '{text}'.{hint} Known: {', '.join(names) or 'none'}"
            )
    chosen = []
    for table in tables:
        shown: list[Column] = []
        for text in selected:
            shown += [column for column in _fitting(table, text) if column not in shown]
        # Columns of a group are adjacent.
        order = list(dict.fromkeys(task for task, _ in shown))
        shown.sort(key=lambda column: order.index(column[0]))
        rows = [row for row in table.rows if any(column in row.metrics for column in shown)]
        if shown and rows:
            tasks = tuple(order)
            of_shown = dataclasses.replace(table, rows=rows, shown=tuple(shown), tasks=tasks)
            chosen.append(with_notes(of_shown))
    return chosen


def _fitting(table: Table, text: str) -> list[Column]:
    """The columns of a table that a name selects."""
    present = {column for row in table.rows for column in row.metrics}
    if text in table.tasks:
        return [column for column in table.columns() if column[0] == text]
    # Tasks and metrics may contain dots themselves (mAP@0.5), so names are compared, not parsed.
    whole = sorted(column for column in present if ".".join(column) == text)
    return whole or [(task, text) for task in table.tasks if (task, text) in present]


def _names(tables: Sequence[Table]) -> list[str]:
    columns = {column for table in tables for row in table.rows for column in row.metrics}
    tasks = {task for table in tables for task in table.tasks}
    metrics = {metric for _, metric in columns}
    return [*sorted(tasks), *sorted(f"{t}.{m}" for t, m in columns), *sorted(metrics)]


def sort_rows(tables: Sequence[Table], by: str | None, reverse: bool = False) -> list[Table]:
    """Sorts rows; published rows follow measured ones.

    Args:
        tables: any.
        by: ``method`` or ``pretraining`` (alphabetical), ``n``, or a column (highest first; missing
            values last); None keeps the order.
        reverse: reverse the order.

    Raises:
        UserError: for a column that no table has.
    """
    if by is None:
        if not reverse:
            return list(tables)
        return [
            dataclasses.replace(
                table,
                rows=[
                    *reversed([row for row in table.rows if not row.published]),
                    *reversed([row for row in table.rows if row.published]),
                ],
            )
            for table in tables
        ]
    if by not in (*_TEXT_KEYS, "n") and not any(_fitting(table, by) for table in tables):
        names = [*_TEXT_KEYS, "n", *_names(tables)]
        raise UserError(f"--sort: no column '{by}'.{did_you_mean(by, names)} Known: {names}")
    return [dataclasses.replace(table, rows=_sorted(table, by, reverse)) for table in tables]


def _sorted(table: Table, by: str, reverse: bool) -> list[Row]:
    if by in _TEXT_KEYS:

        def text(row: Row) -> str:
            return _ROW_KEYS[by](row).casefold()

        rows = sorted(table.rows, key=text, reverse=reverse)
    else:
        column = next(iter(_fitting(table, by)), None)

        def highest_first(row: Row) -> tuple[bool, float]:
            if by == "n":
                return False, (row.n if reverse else -row.n)
            summary = row.metrics.get(column) if column else None
            mean = summary.mean if summary else 0.0
            return summary is None, (mean if reverse else -mean)

        rows = sorted(table.rows, key=highest_first)
    return sorted(rows, key=lambda row: row.published)
