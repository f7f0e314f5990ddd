"""Tables as LaTeX with booktabs, to be included or to be compiled as they are."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import accumulate

from intl_transfer.results.grid import Cell, Grid, Line

_SPECIALS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$",
    "−": r"$-$", "≤": r"$\leq$", "≥": r"$\geq$", "×": r"$\times$", "→": r"$\rightarrow$",
    "†": r"\textsuperscript{\dag}",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "β": r"$\beta$", "λ": r"$\lambda$",
    "α": r"$\alpha$", "μ": r"$\mu$", "σ": r"$\sigma$", "τ": r"$\tau$", "–": "--", "—": "---",
    "“": "``", "”": "''", "‘": "`", "’": "'", "…": r"\dots{}", '"': "''",
    "ß": r"\ss{}", "ø": r"\o{}", "Ø": r"\O{}", "ł": r"\l{}", "Ł": r"\L{}", "æ": r"\ae{}",
    "Æ": r"\AE{}",
}  # fmt: skip
# Commands, which need no font or input encoding: the usual Type 1 fonts of every TeX have them.
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u",
    "\u0307": ".", "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c",
}  # fmt: skip
_PREAMBLE = r"""\documentclass{article}
\usepackage[a4paper,landscape,margin=10mm]{geometry}
\usepackage{booktabs}
\begin{document}
"""
# More figure columns than these do not fit a page at the usual size.
_MANY_COLUMNS = 6


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it is; what pdflatex has no letters for becomes its code point."""
    return "".join(map(_character, text))


def _character(character: str) -> str:
    if character in _SPECIALS:
        return _SPECIALS[character]
    if character < "\x7f":
        return character
    parts = unicodedata.normalize("NFD", character)
    if len(parts) == 2 and parts[0].isascii() and parts[1] in _ACCENTS:
        base = {"i": r"\i", "j": r"\j"}.get(parts[0], parts[0])
        return rf"\{_ACCENTS[parts[1]]}{{{base}}}"
    plain = [c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c)]
    if plain and all(c.isascii() for c in plain):
        return "".join(map(_character, plain))
    return f"[U+{ord(character):04X}]"


def latex(grids: Sequence[Grid], standalone: bool = False) -> str:
    """Tables with booktabs.

    Args:
        grids: from :func:`intl_transfer.results.grid.make_grid`.
        standalone: a whole document, in place of tables to be included.

    Returns:
        The text, ending in a newline.
    """
    body = "\n\n".join(map(_table, grids))
    if standalone:
        # A float that finds no page of its own waits for the next; many must not pile up.
        pages = body.replace("\\end{table}\n", "\\end{table}\n\\clearpage\n")
        return f"{_PREAMBLE}{pages}\n\\end{{document}}\n"
    return f"% needs \\usepackage{{booktabs}}\n{body}\n"


def _table(grid: Grid) -> str:
    leading = len(grid.leading)
    columns = leading + len(grid.metrics)
    alignment = "".join("c" if name == "n" else "l" for name in grid.leading)
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{escape_latex(grid.title)}}}",
    ]
    if len(grid.metrics) > _MANY_COLUMNS:
        lines.append(r"  \small\setlength{\tabcolsep}{3pt}")
    lines += [
        rf"  \begin{{tabular}}{{{alignment}{'r' * len(grid.metrics)}}}",
        r"    \toprule",
        *_head(grid),
        r"    \midrule",
    ]
    published = False
    for line in grid.lines:
        if line.published and not published:
            if line is not grid.lines[0]:
                lines.append(r"    \midrule")
            lines.append(rf"    \multicolumn{{{columns}}}{{l}}{{\textit{{published}}}} \\")
        published = line.published
        lines.append("    " + _row(grid, line) + r" \\")
    lines += [r"    \bottomrule", r"  \end{tabular}"]
    notes = [escape_latex(text) for text in grid.legend]
    if any(cell.best for line in grid.lines for cell in line.cells):
        notes.insert(0, r"\textbf{Bold}: best measured mean of its column.")
    notes += [rf"\textsuperscript{{{i}}}{escape_latex(t)}" for i, t in enumerate(grid.notes, 1)]
    if notes:
        joined = " \\par\n    ".join(notes)
        lines.append(r"  \par\smallskip\begin{minipage}{\linewidth}\footnotesize\raggedright")
        lines += [f"    {joined}", r"  \end{minipage}"]
    return "\n".join([*lines, r"\end{table}", ""])


def _head(grid: Grid) -> list[str]:
    """Two lines: groups with a rule below each, then the metrics."""
    leading = len(grid.leading)
    groups = [rf"\multicolumn{{{span}}}{{c}}{{{escape_latex(name)}}}" for name, span in grid.groups]
    ends = list(accumulate(span for _, span in grid.groups))
    rules = " ".join(
        rf"\cmidrule(lr){{{leading + end - span + 1}-{leading + end}}}"
        for (_, span), end in zip(grid.groups, ends, strict=True)
    )
    names = ["$n$" if name == "n" else name for name in grid.leading]
    return [
        "    " + " & ".join([*[""] * leading, *groups]).strip() + r" \\",
        f"    {rules}",
        "    " + " & ".join([*names, *map(escape_latex, grid.metrics)]) + r" \\",
    ]


def _row(grid: Grid, line: Line) -> str:
    name = escape_latex(line.name)
    name = rf"\textit{{{name}}}" if line.published else name
    if line.notes:
        name += rf"\textsuperscript{{{','.join(map(str, line.notes))}}}"
    leading = {
        "initialisation": name,
        "pretraining": escape_latex(line.detail),
        "n": escape_latex(line.n),
    }
    # A row that begins with a bracket would be read as an argument of the \\ before it.
    first = f"{{}}{name}" if name.startswith(("[", "*")) else name
    leading["initialisation"] = first
    return " & ".join([*(leading[key] for key in grid.leading), *map(_cell, line.cells)])


def _cell(cell: Cell) -> str:
    text = escape_latex(cell.text)
    return rf"\textbf{{{text}}}" if cell.best and text else text
