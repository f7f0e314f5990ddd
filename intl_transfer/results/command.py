"""Collects run directories into results tables, figures and a report.

intl-transfer collect runs/ --published
intl-transfer collect runs/ --out table.tex --standalone --baseline "MoCo v2"
intl-transfer collect runs/ --out report/ --figures figures/
intl-transfer collect runs/ --out report/ --watch
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.results.arguments import add_arguments
from intl_transfer.results.terminal import print_timed

if TYPE_CHECKING:
    from intl_transfer.results import Collection, Table
    from intl_transfer.results.names import Naming
    from intl_transfer.results.report.details import Cache
    from intl_transfer.runs.private import Privacy

__all__ = ["add_arguments", "build", "rendering_of", "run", "tables_of", "tell"]

_SUFFIXES = {
    ".md": "md",
    ".tex": "latex",
    ".csv": "csv",
    ".json": "json",
    ".txt": "console",
    ".parquet": "parquet",
}
# At most this many lines per reason.
_MOST_LINES = 40


def run(arguments: argparse.Namespace) -> int:
    """Collects; returns 0, or 1 if there are no results."""
    form = _form(arguments)
    if arguments.spread == "difference" and arguments.baseline is None:
        raise UserError("--spread difference needs --baseline METHOD, to which rows are compared")
    if arguments.watch:
        return _watch(arguments, form)
    return build(arguments, form)


def _watch(arguments: argparse.Namespace, form: str | None) -> int:
    """Rebuilds the report while jobs run; prints the findings the first time and at the end."""
    from intl_transfer.results.report import watch

    if arguments.export:
        raise UserError("--export is for finished results; use it without --watch")
    if form is not None:
        raise UserError("--watch needs a folder for the report: --out report/")
    cache: Cache = {}
    builds = 0

    def rebuild(refresh: int | None) -> None:
        nonlocal builds
        builds += 1
        build(arguments, form, refresh, cache, builds == 1 or refresh is None)
        print_timed(f"report {builds} built")

    print_timed("watching; Ctrl-C ends it")
    watch(arguments.runs, rebuild)
    return 0


def build(
    arguments: argparse.Namespace,
    form: str | None,
    refresh: int | None = None,
    cache: Cache | None = None,
    verbose: bool = True,
) -> int:
    """Collects once and writes the requested output.

    Args:
        arguments: of the command line.
        form: format of the table; None for a folder with all formats and the report.
        refresh: seconds after which an open report reloads.
        cache: of the report, kept between builds.
        verbose: print what was omitted.

    Returns:
        The exit status.
    """
    from intl_transfer.results import collect

    labels = dict(map(_label, arguments.label))
    minutes = arguments.stalled_after
    found = collect(arguments.runs, labels, not arguments.no_cache, 60 * minutes)
    if verbose:
        tell(found)
    elif cache is not None:
        tell_counts(found)
    tables = tables_of(found, arguments)
    if arguments.power:
        from intl_transfer.results.power import power_report

        print(power_report(tables))
        return 0
    if arguments.figures:
        from intl_transfer.results.figures import draw_figures

        for file in draw_figures(found, tables, arguments.figures, arguments.figure_format):
            print_timed(f"wrote {file}")
    _export(tables, arguments, found)
    if form is None:
        from intl_transfer.results.outputs import write_folder

        privacy = _privacy(found, arguments)
        rendering = rendering_of(arguments)
        write_folder(found, tables, Path(arguments.out), rendering, refresh, cache, privacy)
        return 0
    if not tables:
        print(
            "no finished detection run found, and no evaluation or k-NN accuracy", file=sys.stderr
        )
        return 1
    _write(tables, form, arguments, _privacy(found, arguments))
    return 0


def _export(tables: Sequence[Table], arguments: argparse.Namespace, found: Collection) -> None:
    if not arguments.export:
        return
    from intl_transfer.results.exports import export

    privacy = _privacy(found, arguments)
    for where in arguments.export:
        done = export(tables, where, privacy.text) if privacy else export(tables, where)
        print_timed(done)


def _privacy(found: Collection, arguments: argparse.Namespace) -> Privacy | None:
    """Removes information on machines and people from tables and report."""
    from intl_transfer.results.outputs import privacy_of

    if arguments.disclose and arguments.anonymous:
        raise UserError("--disclose and --anonymous exclude each other")
    if arguments.disclose:
        return None
    return privacy_of(found, arguments.runs, arguments.anonymous)


def tell(found: Collection) -> None:
    """Prints to stderr the number of directories in each state, and what is omitted and why."""
    from intl_transfer.results.grid import clean

    lines = [clean(problem) for problem in found.problems]
    lines += [clean(f"not in the table: {path} is {status}") for path, status in found.unfinished]
    for line in lines[:_MOST_LINES]:
        print(line, file=sys.stderr)
    if len(lines) > _MOST_LINES:
        print(f"... and {len(lines) - _MOST_LINES} more", file=sys.stderr)
    tell_counts(found)


def tell_counts(found: Collection) -> None:
    """Prints to stderr, with the time of day, the number of directories in each state."""
    states = Counter(entry.status for entry in found.entries)
    if states:
        text = ", ".join(f"{count} {status}" for status, count in states.most_common())
        line = f"{sum(states.values())} run directories: {text}"
        print_timed(line)


def tables_of(found: Collection, arguments: argparse.Namespace) -> list[Table]:
    """The tables that the arguments of ``intl-transfer collect`` ask for."""
    from intl_transfer.results import TableOptions, build_tables

    options = TableOptions(
        layout=arguments.layout,
        lr_selection=arguments.lr_selection,
        baseline=arguments.baseline,
        test=arguments.test,
        kinds=arguments.tables,
        columns=arguments.columns,
        rows=tuple(arguments.rows),
        sort=arguments.sort,
        reverse=arguments.reverse,
        names=_names(arguments.names),
    )
    return build_tables(found, arguments.published, options)


def _names(file: str | None) -> tuple[Naming, ...]:
    from intl_transfer.results.names import read_names

    return tuple(read_names(file)) if file else ()


def rendering_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keywords of :func:`intl_transfer.results.render`."""
    return {
        "precision": arguments.precision,
        "spread": arguments.spread,
        "hide": arguments.hide,
        "standalone": arguments.standalone,
        "captions": arguments.caption,
        "labels": arguments.tex_label,
        "placement": arguments.float,
        **({"link": arguments.link} if arguments.link else {}),
    }


def _form(arguments: argparse.Namespace) -> str | None:
    """The table's format, or None if ``--out`` is a folder."""
    out, form = arguments.out, arguments.format
    if out is None:
        return form or ("console" if sys.stdout.isatty() else "md")
    suffix = Path(out).suffix.lower()
    if out.endswith(("/", "\\")) or Path(out).is_dir() or not suffix:
        for option, name in ((arguments.template, "--template"), (form, "--format")):
            if option:
                raise UserError(f"--out {out} is a folder, for all formats; {name} needs a file")
        return None
    if form or arguments.template:
        return form or "md"
    if out.lower().endswith(".long.csv"):
        return "long"
    if suffix not in _SUFFIXES:
        raise UserError(
            f"--out {out}: no format for '{suffix}'.{did_you_mean(suffix, _SUFFIXES)} Expected one "
            f"of {', '.join(_SUFFIXES)}, or --format; a folder's name ends in /"
        )
    return _SUFFIXES[suffix]


def _write(
    tables: Sequence[Table], form: str, arguments: argparse.Namespace, privacy: Privacy | None
) -> None:
    from intl_transfer.results import render
    from intl_transfer.results.grid import clean
    from intl_transfer.results.longform import as_parquet
    from intl_transfer.results.outputs import write_bibliography
    from intl_transfer.results.templates import render_template
    from intl_transfer.runs import write_atomically

    content = None
    if arguments.template:
        words = (arguments.precision, arguments.spread, arguments.hide)
        text = render_template(tables, arguments.template, *words)
    elif form == "parquet":
        if arguments.out is None:
            raise UserError("--format parquet needs a file: --out runs.parquet")
        text, hidden = "", privacy.text if privacy else str
        content = as_parquet(tables, lambda value: clean(hidden(value)))
    else:
        # The parser has checked the format.
        text = render(tables, form, **rendering_of(arguments))
    text = privacy.text(text) if privacy else text
    if arguments.out is None:
        print(text, end="")
        return
    try:
        written_text = text.encode() if content is None else content
        write_atomically(arguments.out, lambda file: file.write(written_text))
        beside = write_bibliography(tables, Path(arguments.out).parent) if form == "latex" else []
    except OSError as error:
        raise UserError(f"--out {arguments.out} cannot be written: {error.strerror}") from None
    for written in (arguments.out, *beside):
        print_timed(f"wrote {written}")


def _label(text: str) -> tuple[str, str]:
    path, sign, name = text.rpartition("=")
    if not (sign and path and name):
        raise UserError(f"--label {text}: expected PATH=NAME")
    return path, name
