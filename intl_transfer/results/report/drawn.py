"""Tables as figures that a reader of the page can save."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence

from intl_transfer.results.machine_readable import as_json
from intl_transfer.results.rows import Table
from intl_transfer.runs.private import Privacy

#: Maximum number of tables with a figure, and of rows, beyond which the table is clearer.
_DRAWN, _MOST_ROWS = 8, 60
# Figures of earlier builds, reused while a page is rebuilt as jobs run.
_drawn: dict[tuple[str, str], dict[str, str]] = {}


def pictures_of(tables: Sequence[Table], privacy: Privacy | None = None) -> list[dict[str, str]]:
    """Measured tables as SVG and PDF, in base64; empty for those without a figure.

    Args:
        tables: of the page.
        privacy: applied to the names of rows. It must not be applied to the figures themselves:
            base64 may look like a path.
    """
    found = []
    for index, table in enumerate(tables):
        measured = any(row.metrics for row in table.rows if not row.published)
        drawable = measured and index < _DRAWN and len(table.rows) <= _MOST_ROWS
        found.append(_picture(_private(table, privacy)) if drawable else {})
    return found


def _private(table: Table, privacy: Privacy | None) -> Table:
    if privacy is None:
        return table
    rows = [
        dataclasses.replace(
            row,
            method=privacy.text(row.method),
            detail=privacy.text(row.detail),
            words=privacy.text(row.words),
            shown=privacy.text(row.shown),
        )
        for row in table.rows
    ]
    return dataclasses.replace(table, rows=rows)


def _picture(table: Table) -> dict[str, str]:
    from intl_transfer.results.figures import draw_table

    shown = (table.key, as_json([table]))
    if shown not in _drawn:
        if len(_drawn) >= 4 * _DRAWN:
            _drawn.clear()
        files = draw_table(table)
        _drawn[shown] = {form: base64.b64encode(one).decode() for form, one in files.items()}
    return _drawn[shown]
