"""Tables as LaTeX with booktabs and siunitx, to include in a paper or compile directly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from intl_transfer.results.grid import Cell, Grid, Line, separated
from intl_transfer.results.latex_text import escape_latex

__all__ = ["LatexOptions", "escape_latex", "latex"]

Float = Literal["auto", "table", "table*"]

#: Packages that the tables need.
PACKAGES = "booktabs,graphicx,siunitx"
_PREAMBLE = rf"""\documentclass[twocolumn]{{article}}
\usepackage[a4paper,margin=18mm]{{geometry}}
\usepackage{{{PACKAGES}}}
\begin{{document}}
"""
# Points of a letter in \footnotesize and between columns, and of a column of the usual two-column
# classes: wider tables span the page; even wider ones are scaled to it.
_LETTER, _GAP, _COLUMN_WIDTH = 3.9, 6.0, 240.0
_SMALL = 0.85


@dataclass(frozen=True)
class LatexOptions:
    """Options for LaTeX tables.

    Attributes:
        standalone: a complete document instead of tables to include.
        captions: of the tables in order; default: their titles.
        labels: of the tables in order; default: from their content.
        link: URL of the report, which explains all marks.
        float: ``table`` (one column), ``table*`` (across the page), or ``auto``, by the width.
    """

    standalone: bool = False
    captions: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    float: Float = "auto"
    link: str = ""


def latex(grids: Sequence[Grid], options: LatexOptions | None = None) -> str:
    """Tables with rules of booktabs, and numbers aligned at the decimal point by siunitx.

    Args:
        grids: from :func:`intl_transfer.results.grid.make_grid`.
        options: captions, labels, floats.

    Returns:
        The text, ending in a newline.
    """
    options = options or LatexOptions()
    labels = _labels(grids, options.labels)
    tables = [
        _explained(grid, options.link)
        + _table(
            grid, label, options.captions[i] if i < len(options.captions) else "", options.float
        )
        for i, (grid, label) in enumerate(zip(grids, labels, strict=True))
    ]
    body = "\n\n".join(tables)
    cited = dict.fromkeys(line.cite for grid in grids for line in grid.lines if line.cite)
    if options.standalone:
        # LaTeX can hold only a limited number of unplaced floats.
        pages = re.sub(r"(\\end\{table\*?\}\n)", r"\1\\clearpage\n", body)
        return f"{_PREAMBLE}{pages}\n{_bibliography(grids)}\\end{{document}}\n"
    lines = [f"% needs \\usepackage{{{PACKAGES}}}"]
    if cited:
        lines.append("% and the entries of published.bib, which is in the same folder")
    return "\n".join([*lines, f"{body}\n"])


def _explained(grid: Grid, link: str) -> str:
    """A comment with the report's URL; a footnote would appear in the paper."""
    # A line's end would end the comment.
    address = " ".join(f"{link}#table-{grid.key}".split())
    return f"% every mark is explained at {address}\n" if link else ""


def _labels(grids: Sequence[Grid], given: Sequence[str]) -> list[str]:
    """A unique label for each table."""
    labels: list[str] = []
    for index, grid in enumerate(grids):
        words = re.sub(r"[^a-z0-9*]+", "-", grid.slug.lower()).strip("-") or "results"
        label = given[index] if index < len(given) else f"tab:{words}"
        unique, number = label, 1
        while unique in labels:
            number += 1
            unique = f"{label}-{number}"
        labels.append(unique)
    return labels


def _bibliography(grids: Sequence[Grid]) -> str:
    """The sources of published rows, for a document without a .bib."""
    sources = {line.cite: line.source for grid in grids for line in grid.lines if line.cite}
    if not sources:
        return ""
    items = [rf"\bibitem{{{key}}} {escape_latex(text)}" for key, text in sources.items()]
    return "\n".join([r"\begin{thebibliography}{99}", *items, r"\end{thebibliography}", ""])


def _table(grid: Grid, label: str, caption: str, float_: Float) -> str:
    beside = [any(_beside(line.cells[i]) for line in grid.lines) for i in range(len(grid.metrics))]
    kept = _notes_kept(grid)
    width = _width(grid, beside)
    name = float_ if float_ != "auto" else "table" if width <= _COLUMN_WIDTH else "table*"
    lines = [
        rf"\begin{{{name}}}",
        r"  \centering",
        # A user's caption is LaTeX; a title is plain text.
        rf"  \caption{{{caption or escape_latex(grid.title)}}}",
        rf"  \label{{{label}}}",
        r"  \footnotesize\setlength{\tabcolsep}{3pt}\sisetup{detect-weight=true}%",
        r"  \sbox0{%",
        rf"  \begin{{tabular}}{{{_alignment(grid, beside)}}}",
        r"    \toprule",
        *_head(grid, beside),
        *_body(grid, beside, kept),
        r"    \bottomrule",
        r"  \end{tabular}}%",
        r"  \ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi",
    ]
    notes = [escape_latex(text) for text in grid.legend]
    notes = [re.sub(r"^Bold:", r"\\textbf{Bold}:", text) for text in notes]
    notes += [rf"\textsuperscript{{{n}}}{escape_latex(grid.notes[i - 1])}" for i, n in kept.items()]
    if notes:
        joined = " \\par\n    ".join(notes)
        lines.append(r"  \par\smallskip\begin{minipage}{\linewidth}\scriptsize\raggedright")
        lines += [f"    {joined}", r"  \end{minipage}"]
    return "\n".join([*lines, rf"\end{{{name}}}", ""])


def _notes_kept(grid: Grid) -> dict[int, int]:
    """Footnotes with new numbers, without sources that are cited."""
    used = dict.fromkeys(
        number
        for line in grid.lines
        for number in line.notes
        if not (line.cite and number == line.source_note)
    )
    return {number: index for index, number in enumerate(used, 1)}


def _width(grid: Grid, beside: Sequence[bool]) -> float:
    """The approximate width of a table, in points."""
    texts = {
        "initialization": [f"{line.name} [9]{',' * len(line.notes)}" for line in grid.lines],
        "pretraining": [line.detail for line in grid.lines],
        "n": [line.n for line in grid.lines],
    }
    letters = 0.0
    for name in grid.leading:
        letters += max(map(len, (name, *texts[name])))
    for i, metric in enumerate(grid.metrics):
        cells = [line.cells[i] for line in grid.lines]
        digits = max((len(cell.mean) for cell in cells), default=0)
        further = max((len(_plain(cell)) for cell in cells), default=0) if beside[i] else 0
        letters += max(len(metric), digits + _SMALL * further)
    return letters * _LETTER + _GAP * (len(grid.leading) + len(grid.metrics))


def _alignment(grid: Grid, beside: Sequence[bool]) -> str:
    """Alignment: means at the decimal point, each followed by a column for its spread."""
    columns = ["c" if name == "n" else "l" for name in grid.leading]
    for i, further in enumerate(beside):
        means = [line.cells[i].mean for line in grid.lines if line.cells[i].mean]
        before = max((len(text.partition(".")[0]) for text in means), default=1)
        after = max((len(text.partition(".")[2]) for text in means), default=0)
        columns.append(f"S[table-format={before}.{after}]" + ("@{}l" if further else ""))
    return "".join(columns)


def _head(grid: Grid, beside: Sequence[bool]) -> list[str]:
    """Two header lines: groups with a rule below each, then the metrics."""
    leading = len(grid.leading)
    spans = [2 if further else 1 for further in beside]
    groups, rules, start, first = [], [], leading + 1, 0
    for name, count in grid.groups:
        width = sum(spans[first : first + count])
        groups.append(rf"\multicolumn{{{width}}}{{c}}{{{escape_latex(name)}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start, first = start + width, first + count
    names = ["$n$" if name == "n" else name for name in grid.leading]
    metrics = [
        rf"\multicolumn{{{span}}}{{c}}{{{escape_latex(name)}}}"
        for name, span in zip(grid.metrics, spans, strict=True)
    ]
    return [
        "    " + " & ".join([*[""] * leading, *groups]).strip() + r" \\",
        f"    {' '.join(rules)}",
        "    " + " & ".join([*names, *metrics]) + r" \\",
        r"    \midrule",
    ]


def _body(grid: Grid, beside: Sequence[bool], kept: dict[int, int]) -> list[str]:
    """The rows, with rules before published ones, groups, and rows with their own rule."""
    columns = list(accumulate([2 if further else 1 for further in beside], initial=0))[-1]
    columns += len(grid.leading)
    lines: list[str] = []
    published = False
    for line, heading, rule in separated(grid.lines):
        if line.published and not published:
            heading = heading or "published"
        are_measured_again = published and not line.published
        if lines and (heading or rule or are_measured_again):
            lines.append(r"    \midrule")
        if heading:
            text = rf"\textit{{{escape_latex(heading)}}}"
            lines.append(rf"    \multicolumn{{{columns}}}{{l}}{{{text}}} \\")
        published = line.published
        lines.append("    " + _row(grid, line, beside, kept) + r" \\")
    return lines


def _row(grid: Grid, line: Line, beside: Sequence[bool], kept: dict[int, int]) -> str:
    name = escape_latex(line.name)
    name = rf"\textit{{{name}}}" if line.published else name
    if line.cite:
        name += rf"~\cite{{{line.cite}}}"
    if numbers := [str(n) for n in sorted(kept[k] for k in line.notes if k in kept)]:
        name += rf"\textsuperscript{{{','.join(numbers)}}}"
    leading = {
        "initialization": name,
        "pretraining": escape_latex(line.detail),
        "n": escape_latex(line.n),
    }
    # A row that starts with a bracket would be read as an argument of the preceding \\.
    first = f"{{}}{name}" if name.startswith(("[", "*")) else name
    leading["initialization"] = first
    cells = [
        text
        for cell, further in zip(line.cells, beside, strict=True)
        for text in (_mean(cell), *([_beside(cell)] if further else []))
    ]
    return " & ".join([*(leading[key] for key in grid.leading), *cells])


def _mean(cell: Cell) -> str:
    return rf"\bfseries {cell.mean}" if cell.best and cell.mean else cell.mean


def _plain(cell: Cell) -> str:
    """The text after a mean: marks, spread, number of runs."""
    count = f"({cell.n})" if cell.n else ""
    return " ".join(part for part in (cell.alone, cell.spread, count, cell.arrow) if part)


def _beside(cell: Cell) -> str:
    text = escape_latex(_plain(cell))
    return rf"{{\scriptsize\,{text.replace('$ ', '$' + chr(92) + ',')}}}" if text else ""
