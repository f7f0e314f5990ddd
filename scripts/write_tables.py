"""Inserts tables and code into the documentation from their source files: `make tables`.

A table is placed in a page between two comments; the first defines it:

    <!-- table results/power_summary.csv
    where: {loss.stable: "True"}
    names: {loss.trace_weight: {"": by formula}}
    columns:
      p: loss.options.p
      top-1: top1 .1
    -->
    | p | top-1 |
    ...
    <!-- end of table -->

A table of run records is what `intl-transfer collect` prints with the options in the comment;
`title` selects one of several tables by the beginning of its title, and `footnotes: false` leaves
out the notes below it:

    <!-- results results/corpus/demo
    title: shapes_coco_val
    options: --layout dataset --hide pretraining
    -->
    ...
    <!-- end of results -->

A file of code is inserted unchanged:

    <!-- code ../tests/examples/method.py -->
    ```python
    ...
    ```
    <!-- end of code -->

`top1 .1` is that column with one decimal, and its standard deviation if the file has `top1_std`;
`share .1%` is in percent; without decimals the text is unchanged. Pages are README.md and those of
docs. With `--check` nothing is written, and outdated pages are listed (status 1).
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

from intl_transfer.command_line import parse
from intl_transfer.errors import UserError
from intl_transfer.files.yamls import parse_yaml
from intl_transfer.results import collect, render
from intl_transfer.results.arguments import add_arguments
from intl_transfer.results.command import rendering_of, tables_of

DOCS = Path(__file__).resolve().parents[1] / "docs"
_TABLE = re.compile(r"(<!-- table (\S+)\n(.*?)-->\n)(.*?)(<!-- end of table -->)", re.DOTALL)
_RESULTS = re.compile(r"(<!-- results (\S+)\n(.*?)-->\n)(.*?)(<!-- end of results -->)", re.DOTALL)
_CODE = re.compile(r"(<!-- code (\S+) -->\n```python\n)(.*?)(```\n<!-- end of code -->)", re.DOTALL)

Row = Mapping[str, str]


class TableError(Exception):
    """A table cannot be made."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; compare")
    arguments = parse(parser)
    try:
        differ = {page: text for page, text in rewritten(DOCS) if page.read_text() != text}
        if not arguments.check:
            for page, text in differ.items():
                page.write_text(text)
    except (TableError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for page in differ:
        verdict = "disagrees with its data; run `make tables`" if arguments.check else "written"
        print(f"{page}: {verdict}")
    return 1 if arguments.check and differ else 0


def rewritten(docs: Path) -> Iterator[tuple[Path, str]]:
    """All pages with such tables or code, with their updated text."""
    kinds: tuple[tuple[re.Pattern[str], str, Callable[..., str]], ...] = (
        (_TABLE, "table", csv_table),
        (_RESULTS, "results", results_table),
        (_CODE, "code", Path.read_text),
    )
    for page in (*docs.parent.glob("README.md"), *sorted(docs.rglob("*.md"))):
        text = page.read_text()
        if any(pattern.search(text) for pattern, _, _ in kinds):
            for pattern, kind, make in kinds:
                text = pattern.sub(partial(_insert, page, kind, make), text)
            yield page, text


def _insert(page: Path, kind: str, make: Callable[..., str], found: re.Match[str]) -> str:
    """A place of a page with its content made anew, by its source and, if any, its layout."""
    head, source, *layout, _, end = found.groups()
    try:
        return (
            head
            + make(page.parent / source, *(parse_yaml(text, str(page)) or {} for text in layout))
            + end
        )
    except (TableError, UserError, OSError) as error:
        raise TableError(f"{page}, {kind} of {source}: {error}") from None


def csv_table(file: Path, layout: Mapping[str, Any]) -> str:
    """:func:`table` of a CSV file."""
    with open(file, newline="") as opened:
        return table(list(csv.DictReader(opened)), layout)


def results_table(records: Path, layout: Mapping[str, Any]) -> str:
    """A table of run records, as ``intl-transfer collect`` shows it, without its heading.

    Args:
        records: a folder that ``intl-transfer archive`` wrote.
        layout: ``title``, ``options``, ``footnotes``.

    Raises:
        TableError: if the title is that of no table, or of several.
        UserError: for an option that there is not, or records that cannot be read.
    """
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser)
    words = [str(records), *shlex.split(layout.get("options", ""))]
    try:
        given, unknown = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise TableError(str(error)) from None
    if unknown:
        raise TableError(f"no option {' '.join(unknown)} of `intl-transfer collect`")
    text = render(tables_of(collect([records], cache=False), given), "md", **rendering_of(given))
    parts = [part.split("\n", 1) for part in re.split(r"^### ", text, flags=re.MULTILINE)[1:]]
    titles = [title.replace("\\", "") for title, _ in parts]
    begin = layout.get("title", "")
    chosen = [index for index, title in enumerate(titles) if title.startswith(begin)]
    if len(chosen) != 1:
        raise TableError(
            f"title '{begin}' begins {len(chosen)} of the tables, expected one of: "
            + "; ".join(titles)
        )
    body = parts[chosen[0]][1].strip()
    if not layout.get("footnotes", True):  # nor marks that nothing explains
        body = re.sub(r" \[\d+(?:, ?\d+)*\](?= *\|)|\*\*", "", body.split("\n\n", 1)[0])
    return body + "\n"


def table(rows: list[dict[str, str]], layout: Mapping[str, Any]) -> str:
    """A table in Markdown.

    Args:
        rows: of the data.
        layout: ``columns`` by title, ``where``, ``names`` of values, by column.

    Raises:
        TableError: for a missing column, or without rows.
    """
    columns = {title: str(text).split() for title, text in layout["columns"].items()}
    where, names = layout.get("where", {}), layout.get("names", {})
    for name in [*(words[0] for words in columns.values()), *where, *names]:
        if not rows or name not in rows[0]:
            known = ", ".join(rows[0]) if rows else "no row at all"
            raise TableError(f"no column {name}; there are {known}")
    rows = [row for row in rows if all(row[key] == str(value) for key, value in where.items())]
    if not rows:
        raise TableError(f"no row with {where}")
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [_cell(row, words, names.get(words[0], {})) for words in columns.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: Row, words: list[str], names: Mapping[Any, str]) -> str:
    """One value: by its name, unchanged, or rounded with its standard deviation."""
    key, text = words[0], row[words[0]]
    named = {str(value): name for value, name in names.items()}
    if text in named:
        return named[text]
    if len(words) == 1 or not text:
        return text
    digits = int(words[1].strip(".%"))
    scale, unit = (100, " %") if words[1].endswith("%") else (1, "")
    mean, spread = scale * float(text), scale * float(row.get(f"{key}_std") or "nan")
    if not math.isfinite(mean):
        return str(mean).replace("-", "−")
    shown = _number(mean, digits)
    if math.isfinite(spread):
        return f"{shown} ± {_number(spread, digits)}{unit}"
    shown += unit
    # A missing deviation although others have one: a single run.
    return f"{shown} (n = 1)" if row.get("n", "1") != "1" else shown


def _number(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return (text.removeprefix("-") if float(text) == 0 else text).replace("-", "−")


if __name__ == "__main__":
    sys.exit(main())
