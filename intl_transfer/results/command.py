"""Collects run directories into results tables: mean and standard deviation over seeds.

intl-transfer collect runs/ --published
intl-transfer collect runs/ --format latex --out table.tex
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_FORMS = ("console", "md", "latex", "csv", "json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``intl-transfer collect``."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="run directories")
    parser.add_argument("--format", choices=_FORMS, help="default: console on a terminal, else md")
    parser.add_argument("--published", action="store_true", help="also show published rows")
    parser.add_argument("--precision", type=int, default=1, help="digits after the point")
    parser.add_argument("--out", type=Path, help="write to a file instead")


def run(arguments: argparse.Namespace) -> int:
    """Collects; returns 0, or 1 if there is nothing to show."""
    from intl_transfer.results import build_tables, collect, render
    from intl_transfer.runs import write_atomically

    found = collect(arguments.runs)
    for problem in found.problems:
        print(problem, file=sys.stderr)
    for folder, status in found.unfinished:
        print(f"not in the table: {folder} is {status}", file=sys.stderr)
    tables = build_tables(found, arguments.published)
    if not tables:
        print("no finished detection run found", file=sys.stderr)
        return 1
    form = arguments.format or ("console" if sys.stdout.isatty() and not arguments.out else "md")
    text = render(tables, form, arguments.precision)
    if arguments.out:
        write_atomically(arguments.out, lambda file: file.write(text.encode()))
        print(f"wrote {arguments.out}", file=sys.stderr)
    else:
        print(text, end="")
    return 0
