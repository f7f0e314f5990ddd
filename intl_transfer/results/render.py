"""Tables as Markdown, LaTeX, CSV, JSON, or on the console."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

from tabulate import tabulate

from intl_transfer.errors import UserError
from intl_transfer.results.collect import METRICS, TASKS
from intl_transfer.results.statistics import Summary
from intl_transfer.results.tables import Row, Table

_HEADINGS = {"box": "box", "mask": "mask", "voc": "VOC"}


def render(tables: Sequence[Table], form: str = "md", precision: int = 1) -> str:
    """Writes tables in one of the known forms.

    Args:
        tables: from :func:`intl_transfer.results.tables.build_tables`.
        form: ``md``, ``latex``, ``csv``, ``json`` or ``console``.
        precision: digits after the point (CSV and JSON keep all).

    Returns:
        The text, ending in a newline.

    Raises:
        UserError: for an unknown form.
    """
    forms: dict[str, Callable[[Sequence[Table], int], str]] = {
        "md": _markdown,
        "latex": _latex,
        "csv": _csv,
        "json": _json,
        "console": _console,
    }
    if form not in forms:
        raise UserError(f"no format '{form}'; expected one of {', '.join(forms)}")
    return forms[form](tables, precision).rstrip("\n") + "\n"


def figure(value: Summary | None, precision: int, sign: str = "±") -> str:
    """``38.2 ± 0.1``, without spread for a single run; blank where there is no figure."""
    if value is None:
        return ""
    text = f"{value.mean:.{precision}f}"
    return text if value.std is None else f"{text} {sign} {value.std:.{precision}f}"


def _cells(table: Table, row: Row, precision: int, sign: str = "±") -> list[str]:
    n = str(row.n) if row.n else ""
    return [n, *(figure(row.figures.get(key), precision, sign) for key in table.columns())]


def _headings(table: Table) -> list[str]:
    names = [f"{_HEADINGS[task]} {metric}" for task, metric in table.columns()]
    return ["initialisation", "pretraining", "n", *names]


def _footnotes(table: Table) -> tuple[list[str], dict[int, str]]:
    """Every distinct footnote, and for each row the numbers of its own."""
    notes: list[str] = []
    marks = {}
    for index, row in enumerate(table.rows):
        for note in row.notes:
            if note not in notes:
                notes.append(note)
        marks[index] = ",".join(str(notes.index(note) + 1) for note in row.notes)
    return notes, marks


def _markdown(tables: Sequence[Table], precision: int) -> str:
    def safe(text: str) -> str:
        for character in "\\`*_[]<>|":
            text = text.replace(character, f"\\{character}")
        return text

    parts = []
    for table in tables:
        notes, marks = _footnotes(table)
        rows = []
        for index, row in enumerate(table.rows):
            name = safe(row.method) + (f" [{marks[index]}]" if marks[index] else "")
            name = f"_{name}_" if row.published else name
            rows.append([name, safe(row.detail), *_cells(table, row, precision)])
        body = tabulate(rows, _headings(table), tablefmt="pipe", disable_numparse=True)
        footer = [f"[{number}] {safe(note)}" for number, note in enumerate(notes, 1)]
        if any(row.published for row in table.rows):
            footer.insert(0, "_In italics: published._")
        parts.append("\n".join([f"### {safe(table.title)}", "", body, "", *_spaced(footer)]))
    return "\n\n".join(part.rstrip() for part in parts)


def _spaced(lines: Sequence[str]) -> list[str]:
    """Two blanks at the end keep Markdown's lines apart."""
    return [f"{line}  " for line in lines]


def _latex(tables: Sequence[Table], precision: int) -> str:
    specials = {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
        "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
        "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$",
    }  # fmt: skip

    def safe(text: str) -> str:
        return "".join(specials.get(character, character) for character in text)

    parts = []
    for table in tables:
        notes, marks = _footnotes(table)
        lines = [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{safe(table.title)}}}",
            rf"  \begin{{tabular}}{{ll{'r' * (1 + len(table.columns()))}}}",
            r"    \toprule",
        ]
        groups = "".join(
            rf" & \multicolumn{{{len(METRICS)}}}{{c}}{{{_HEADINGS[task]}}}" for task in table.tasks
        )
        lines.append(rf"    & & {groups} \\".replace("& &  &", "& & &"))
        metrics = " & ".join(metric for _, metric in table.columns())
        lines += [rf"    initialisation & pretraining & $n$ & {metrics} \\", r"    \midrule"]
        before = False
        for index, row in enumerate(table.rows):
            if row.published and not before and index:
                lines.append(r"    \midrule")
            before = row.published
            name = safe(row.method) + (
                rf"\textsuperscript{{{marks[index]}}}" if marks[index] else ""
            )
            name = rf"\textit{{{name}}}" if row.published else name
            cells = [name, safe(row.detail), *_cells(table, row, precision, r"$\pm$")]
            lines.append("    " + " & ".join(cells) + r" \\")
        lines += [r"    \bottomrule", r"  \end{tabular}"]
        lines += [
            rf"  \par\footnotesize\textsuperscript{{{number}}}{safe(note)}"
            for number, note in enumerate(notes, 1)
        ]
        parts.append("\n".join([*lines, r"\end{table}"]))
    return "% needs \\usepackage{booktabs}\n" + "\n\n".join(parts)


def _csv(tables: Sequence[Table], precision: int) -> str:
    del precision  # machines get all digits
    out = io.StringIO()
    figures = [f"{t}_{m}_{s}" for t in TASKS for m in METRICS for s in ("mean", "std")]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["table", "initialisation", "pretraining", "published", "n", *figures, "notes", "runs"]
    )
    for table in tables:
        for row in table.rows:
            values: list[Any] = []
            for task in TASKS:
                for metric in METRICS:
                    summary = row.figures.get((task, metric))
                    values += [summary.mean, summary.std] if summary else [None, None]
            runs = " ".join(str(run.path) for run in row.runs)
            notes = "; ".join(row.notes)
            head = [table.title, row.method, row.detail, int(row.published), row.n or None]
            writer.writerow([*head, *values, notes, runs])
    return out.getvalue()


def _json(tables: Sequence[Table], precision: int) -> str:
    del precision
    value = [
        {
            "title": table.title,
            "dataset": table.dataset,
            "architecture": table.architecture,
            "schedule": table.schedule,
            "rows": [_json_row(row) for row in table.rows],
        }
        for table in tables
    ]
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)


def _json_row(row: Row) -> dict[str, Any]:
    figures: dict[str, dict[str, Any]] = {}
    for (task, metric), summary in row.figures.items():
        figures.setdefault(task, {})[metric] = {"mean": summary.mean, "std": summary.std}
    return {
        "initialisation": row.method,
        "pretraining": row.detail,
        "published": row.published,
        "n": row.n or None,
        "figures": figures,
        "notes": list(row.notes),
        "runs": [
            {
                "path": str(run.path),
                "id": run.manifest["id"],
                "seed": run.results["seed"],
                "weights_sha256": run.results["initialisation"].get("weights_sha256"),
                "provenance": run.results["initialisation"].get("provenance"),
                "pretraining_run": str(run.parent) if run.parent else None,
            }
            for run in row.runs
        ],
    }


def _console(tables: Sequence[Table], precision: int) -> str:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    out = io.StringIO()
    console = Console(file=out, width=160)
    for table in tables:
        notes, marks = _footnotes(table)
        drawn = RichTable(title=Text(table.title), title_justify="left")
        for name in _headings(table):
            text = name in ("initialisation", "pretraining")
            drawn.add_column(name, justify="left" if text else "right")
        for index, row in enumerate(table.rows):
            name = row.method + (f" [{marks[index]}]" if marks[index] else "")
            cells = [name, row.detail, *_cells(table, row, precision)]
            last = index + 1 == len(table.rows) or table.rows[index + 1].published
            drawn.add_row(*map(Text, cells), end_section=last and not row.published)
        console.print(drawn)
        for number, note in enumerate(notes, 1):
            console.print(Text(f"[{number}] {note}"))
        console.print()
    return out.getvalue()
