"""Tables as Markdown, LaTeX, CSV, JSON, or on the console."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Sequence
from typing import Literal, get_args

from tabulate import tabulate

from intl_transfer.errors import UserError, require_choice
from intl_transfer.results.grid import HIDEABLE, Grid, Line, Spread, make_grid, separated
from intl_transfer.results.latex import Float, LatexOptions, latex
from intl_transfer.results.longform import as_long_csv
from intl_transfer.results.machine_readable import as_csv, as_json
from intl_transfer.results.rows import Table

#: Formats, and the file extension of each.
FORMS = {
    "console": "txt",
    "md": "md",
    "latex": "tex",
    "csv": "csv",
    "json": "json",
    "long": "long.csv",
}

_WIDEST = 1000


def render(
    tables: Sequence[Table],
    form: str = "md",
    precision: int = 1,
    *,
    spread: Spread = "std",
    hide: tuple[str, ...] = (),
    standalone: bool = False,
    captions: Sequence[str] = (),
    labels: Sequence[str] = (),
    placement: Float = "auto",
    link: str = "",
) -> str:
    """Renders tables in one of the known formats.

    Args:
        tables: from :func:`intl_transfer.results.tables.build_tables`.
        form: ``md``, ``latex``, ``csv``, ``long`` (CSV, one line per run and metric), ``json`` or
            ``console``.
        precision: number of decimals (CSV and JSON keep all digits).
        spread: shown with a mean: the standard deviation, a 95 % interval, nothing.
        hide: of ``pretraining`` and ``n``, the columns not to show.
        standalone: a complete LaTeX document instead of tables to include.
        captions: of LaTeX's tables in order, in LaTeX; default: titles.
        labels: of LaTeX's tables in order; default: from their content.
        link: the report's page, where every mark of a table is explained.
        placement: the float of LaTeX's tables: ``table``, ``table*``, ``auto`` by their width.

    Returns:
        The text, ending in a newline.

    Raises:
        UserError: for an unknown format, spread, column to hide or placement, or a negative
            precision.
    """
    require_choice("format", form, FORMS)
    require_choice("spread", spread, get_args(Spread))
    require_choice("placement", placement, get_args(Float))
    for name in hide:
        require_choice("column to hide", name, HIDEABLE)
    if precision < 0:
        raise UserError(f"precision is {precision}; expected a number of decimals, 0 or more")
    if form == "long":
        return as_long_csv(tables)
    if form == "csv":
        return as_csv(tables)
    if form == "json":
        return as_json(tables) + "\n"
    grids = [make_grid(table, precision, spread, hide) for table in tables]
    if form == "latex":
        words = (standalone, tuple(captions), tuple(labels), placement)
        return latex(grids, LatexOptions(*words, link))
    text = _markdown(grids, link) if form == "md" else _console(grids)
    return text.rstrip("\n") + "\n"


def escape_markdown(text: str) -> str:
    """Escapes text for Markdown."""
    for character in "\\`*_[]<>|":
        text = text.replace(character, f"\\{character}")
    return text


def _cells(grid: Grid, line: Line, name: str, values: Sequence[str], detail: str) -> list[str]:
    leading = {"initialization": name, "pretraining": detail, "n": line.n}
    return [*(leading[key] for key in grid.leading), *values]


def _numbers(line: Line) -> str:
    return f" [{','.join(map(str, line.notes))}]" if line.notes else ""


def _markdown(grids: Sequence[Grid], link: str = "") -> str:
    safe = escape_markdown
    parts = []
    for grid in grids:
        rows = []
        for line, heading, rule in separated(grid.lines):
            if heading or rule:  # a rule is a row, too: Markdown has no others
                blank = [""] * (len(grid.leading) + len(grid.metrics) - 1)
                rows.append([f"_{safe(heading)}_" if heading else "—", *blank])
            name = safe(line.name) + _numbers(line)
            name = f"_{name}_" if line.published else name
            values = [
                f"**{cell.text}**" if cell.best and cell.text else cell.text.replace("[", "\\[")
                for cell in line.cells
            ]
            rows.append(_cells(grid, line, name, values, safe(line.detail)))
        headings = [safe(name) for name in grid.headings]
        body = tabulate(rows, headings, tablefmt="pipe", disable_numparse=True)
        footer = [
            *map(safe, grid.legend),
            *(f"[{i}] {safe(note)}" for i, note in enumerate(grid.notes, 1)),
        ]
        if any(line.published for line in grid.lines):
            footer.insert(0, "_In italics: published._")
        if link:
            footer.append(f"[Every mark explained]({link}#table-{grid.key})")
        # Two trailing spaces are a line break in Markdown.
        spaced = [f"{text}  " for text in footer]
        parts.append("\n".join([f"### {safe(grid.title)}", "", body, "", *spaced]))
    return "\n\n".join(part.rstrip() for part in parts)


def _console(grids: Sequence[Grid]) -> str:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    out = io.StringIO()
    terminal = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    console = Console(file=out, width=_WIDEST)
    for grid in grids:
        drawn = RichTable(title=Text(grid.title), title_justify="left")
        groups = [name for name, span in grid.groups for _ in range(span)]
        for name in grid.leading:
            justify: Literal["left", "right"] = "right" if name == "n" else "left"
            drawn.add_column(Text(name), justify=justify, min_width=min(len(name), 10))
        for group, metric in zip(groups, grid.metrics, strict=True):
            drawn.add_column(Text(f"{group}\n{metric}"), justify="right")
        ruled = [rule or line.published for line, _, rule in separated(grid.lines)]
        for index, (line, heading, _) in enumerate(separated(grid.lines)):
            if heading:
                drawn.add_row(Text(heading, "italic"))
            values = [cell.text + (" *" if cell.best else "") for cell in line.cells]
            cells = _cells(grid, line, line.name + _numbers(line), values, line.detail)
            last = index + 1 == len(ruled) or ruled[index + 1]
            style = "dim italic" if line.published else ""
            drawn.add_row(
                *(Text(cell, style) for cell in cells), end_section=last and not line.published
            )
        natural = console.measure(drawn).maximum
        # A title must be wrapped to its table's width.
        console.width = max(80, min(natural, terminal or natural))
        console.print(drawn)
        console.width = max(console.width, 120) if terminal is None else console.width
        for text in grid.legend:
            # On a terminal, a star stands for bold.
            console.print(Text(f"*:{text[5:]}" if text.startswith("Bold:") else text))
        for number, note in enumerate(grid.notes, 1):
            console.print(Text(f"[{number}] {note}"))
        console.print()
        console.width = _WIDEST
    return out.getvalue()
