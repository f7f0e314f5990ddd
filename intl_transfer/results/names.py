"""Names files: names, order and groups of rows for a paper."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.files.yamls import read_yaml
from intl_transfer.results.rows import Row, Table

_FIELDS = ("name", "order", "group", "rule")
_DIGEST = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True)
class Naming:
    """The entry of a names file for one row.

    Attributes:
        key: a run's id or folder, the hash of weights (8 digits or more), or a row's name.
        name: to show; "" keeps the row's own.
        order: rows with smaller numbers come first; rows without one come last.
        group: rows of a group are adjacent.
        rule: whether a rule is above the row.
    """

    key: str
    name: str = ""
    order: float | None = None
    group: str = ""
    rule: bool = False

    def fits(self, row: Row) -> bool:
        """Whether the entry refers to a row."""
        if self.key in (row.method, row.name, row.label):
            return True
        return any(
            self.key == one or (_DIGEST.fullmatch(self.key) and one.startswith(self.key))
            for one in _identities(row)
        )


def _identities(row: Row) -> set[str]:
    """Ids, folders and hashes that identify a row: of its runs, weights and pretrainings."""
    found: set[str] = set()
    for run in row.runs:
        start = run.results.initialization
        origin = start.provenance and start.provenance.pretrain_run
        found |= {
            run.manifest.id,
            run.path.name,
            start.weights_sha256 or "",
            (start.provenance and start.provenance.source_sha256) or "",
            (origin and origin.id) or "",
            run.parent.name if run.parent else "",
        }
    return found - {""}


def read_names(file: str | Path) -> list[Naming]:
    """Reads a names file: by key, a name, or a mapping of name, order, group and rule.

    Args:
        file: YAML, as ``{"moco_v2_seed0": "MoCo v2", "6f0c2b1e": {name: INTL, order: 1}}``.

    Raises:
        UserError: if it cannot be read or is invalid.
    """
    content = read_yaml(Path(file))
    if not content:
        raise UserError(f"{file}: expected names by run, weights hash or row, found nothing")
    return [_naming(file, str(key), value) for key, value in content.items()]


def _naming(file: str | Path, key: str, value: Any) -> Naming:
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        found = type(value).__name__
        raise UserError(
            f"{file}, {key}: expected a name, or a mapping of {', '.join(_FIELDS)}; found {found}"
        )
    for field in value:
        if field not in _FIELDS:
            hint = did_you_mean(str(field), _FIELDS)
            raise UserError(f"{file}, {key}: no '{field}'.{hint} Known: {', '.join(_FIELDS)}")
    kinds: dict[str, Any] = {"name": str, "group": str, "rule": bool, "order": (int, float)}
    for field, kind in kinds.items():
        stated = value.get(field)
        good = isinstance(stated, kind) and (field == "rule" or not isinstance(stated, bool))
        good = good and stated == stated  # not NaN, which cannot be sorted
        if field in value and not good:
            expected = {"rule": "true or false", "order": "a number"}.get(field, "text")
            raise UserError(f"{file}, {key}: {field} is {value[field]!r}, expected {expected}")
    return Naming(key, **value)


def name_rows(
    tables: Sequence[Table], namings: Sequence[Naming], file: str = "--names"
) -> list[Table]:
    """Gives rows the user's names, and the order and groups for :func:`arrange_rows`.

    Args:
        tables: any.
        namings: from :func:`read_names`.
        file: their source, for errors.

    Raises:
        UserError: if two entries refer to one row, a name is given to several rows of a table, or
            an entry refers to no row.
    """
    used: set[str] = set()
    named = [_named(table, namings, file, used) for table in tables]
    for naming in namings:
        if naming.key not in used:
            known = sorted({row.name for table in tables for row in table.rows})
            hint = did_you_mean(naming.key, known)
            raise UserError(
                f"{file}: no row for '{naming.key}'.{hint} Expected the id or folder of a run, 8 "
                f"or more digits of a hash of weights, or a row's name: {', '.join(known[:20])}"
            )
    return named


def _named(table: Table, namings: Sequence[Naming], file: str, used: set[str]) -> Table:
    rows = []
    owners: dict[tuple[str, str, bool], Row] = {}
    for row in table.rows:
        fitting = [naming for naming in namings if naming.fits(row)]
        exact = [naming for naming in fitting if naming.key == row.label]
        fitting = exact if len(exact) == 1 else fitting
        if len(fitting) > 1:
            keys = ", ".join(naming.key for naming in fitting)
            raise UserError(f"{file}: the row {row.label} has {len(fitting)} entries: {keys}")
        if fitting:
            (naming,) = fitting
            used.add(naming.key)
            row = dataclasses.replace(
                row,
                shown=naming.name,
                group=naming.group,
                rule=naming.rule,
                order=math.inf if naming.order is None else naming.order,
            )
        label = (row.name, row.detail, row.published)
        if label in owners and (fitting or owners[label].shown):
            raise UserError(
                f"{file}: '{row.name}' would name two rows of the table '{table.title}': "
                f"{_own(owners[label])} and {_own(row)}"
            )
        owners[label] = row
        rows.append(row)
    return dataclasses.replace(table, rows=rows)


def arrange_rows(table: Table) -> Table:
    """Moves rows to the user's order and groups, controls below the others, then published ones.

    Args:
        table: sorted; what the user does not order keeps its place.
    """

    def standing(row: Row) -> tuple[bool, bool, float]:
        return row.published, row.control, row.order

    first = dict.fromkeys(row.group for row in sorted(table.rows, key=standing))
    groups = {group: index for index, group in enumerate(first)}
    rows = sorted(
        table.rows, key=lambda row: (row.published, row.control, groups[row.group], row.order)
    )
    return dataclasses.replace(table, rows=rows)


def _own(row: Row) -> str:
    return dataclasses.replace(row, shown="").label
