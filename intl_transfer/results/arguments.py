"""The options of ``intl-transfer collect``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from intl_transfer.errors import did_you_mean

FORMS = ("console", "md", "latex", "csv", "json", "long", "parquet")
_TABLES = ("detection", "classification")


def one_of(*known: str) -> Callable[[str], str]:
    """An argparse type for one of several words, with suggestions."""

    def check(text: str) -> str:
        if text not in known:
            hint = did_you_mean(text, known)
            message = f"no '{text}'.{hint} Expected one of {', '.join(known)}"
            raise argparse.ArgumentTypeError(message)
        return text

    return check


def some_of(*known: str) -> Callable[[str], tuple[str, ...]]:
    """The same for a comma-separated list."""
    check = one_of(*known)
    return lambda text: tuple(check(word) for word in _words(text))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _digits(text: str) -> int:
    if not text.isdecimal() or int(text) > 10:
        raise argparse.ArgumentTypeError(f"'{text}': expected a number of decimals, 0 to 10")
    return int(text)


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"'{text}': expected minutes, above 0")
    return value


def _choice(
    add: Callable[..., object], name: str, known: Sequence[str], text: str, default: str | None
) -> None:
    add(name, type=one_of(*known), default=default, metavar="|".join(known), help=text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``intl-transfer collect``."""
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUNS", help="run directories, or folders of them")
    add("--out", metavar="FILE|FOLDER/", help="a file for a table, or a folder for a report")
    add(
        "--watch", action="store_true", help="rebuild the report whenever runs change, until Ctrl-C"
    )
    text = (
        "output format (default: by the extension of --out, otherwise console on a terminal and md "
        "elsewhere)"
    )
    _choice(add, "--format", FORMS, text, None)
    add(
        "--disclose",
        action="store_true",
        help="include absolute paths, hosts, users and command lines of the runs",
    )
    add(
        "--anonymous",
        action="store_true",
        help="for double-blind review: also omit addresses, e-mail, revisions and times",
    )
    _shown(parser.add_argument_group("what is shown").add_argument)
    _statistics(parser.add_argument_group("statistics").add_argument)
    _forms(parser.add_argument_group("form").add_argument)
    _reading(parser.add_argument_group("reading").add_argument)


def _shown(add: Callable[..., object]) -> None:
    add("--published", action="store_true", help="include published results")
    add(
        "--tables",
        type=some_of(*_TABLES),
        default=_TABLES,
        metavar=",".join(_TABLES),
        help="kinds of tables (default: both)",
    )
    text = "paper (default): one row per method across data sets; dataset: one table per data set"
    _choice(add, "--layout", ("paper", "dataset"), text, "paper")
    add(
        "--columns",
        type=_words,
        default=(),
        metavar="COLUMN,...",
        help="columns to show: TASK.METRIC, TASK or METRIC, for example box.AP,voc or AP,APs",
    )
    add(
        "--hide",
        type=some_of("pretraining", "n"),
        default=(),
        metavar="pretraining,n",
        help="columns to omit",
    )
    add(
        "--rows",
        action="append",
        default=[],
        metavar="KEY=PATTERN",
        help="show only matching rows (also KEY!=PATTERN); keys: method, pretraining, dataset, "
        "detector, schedule, source (measured, external, published); may be repeated",
    )
    add(
        "--sort",
        metavar="COLUMN",
        help="sort by method, pretraining, n, or a column (default: best first)",
    )
    add("--reverse", action="store_true", help="reverse the order")
    add("--precision", type=_digits, default=1, help="number of decimals (default: 1)")


def _statistics(add: Callable[..., object]) -> None:
    text = (
        "shown with a mean: the sample standard deviation (default), a 95 %% interval of the mean "
        "by Student's t or by bootstrap, the difference to --baseline with its interval, or nothing"
    )
    _choice(add, "--spread", ("std", "t", "bootstrap", "difference", "none"), text, "std")
    add(
        "--baseline",
        metavar="METHOD",
        help="test every other row against this one, in AP or top-1 of each task",
    )
    add(
        "--power",
        action="store_true",
        help="instead of tables, print the differences that the seeds resolve, and the seeds that "
        "a difference needs",
    )
    text = "auto (default): paired if both rows have the same seeds, otherwise Welch's"
    _choice(add, "--test", ("auto", "paired", "welch"), text, "auto")
    text = (
        "separate (default): one table per learning rate; best: each row at the one with the "
        "highest mean AP, stated in a footnote"
    )
    _choice(add, "--lr-selection", ("separate", "best"), text, "separate")


def _forms(add: Callable[..., object]) -> None:
    add("--standalone", action="store_true", help="LaTeX: write a complete document")
    each = "of LaTeX's first table; repeat for further ones; default: "
    add("--caption", action="append", default=[], metavar="LATEX", help=f"caption {each}its title")
    add(
        "--tex-label",
        action="append",
        default=[],
        metavar="NAME",
        help=f"label {each}tab: and its content",
    )
    text = "LaTeX: table (one column), table* (full width), auto (default): by the width"
    _choice(add, "--float", ("auto", "table", "table*"), text, "auto")
    add(
        "--link",
        default="",
        metavar="ADDRESS",
        help="URL of the report, to which tables link (default in a folder: its index.html)",
    )
    add(
        "--names",
        metavar="FILE",
        help="YAML file with names, order, groups and rules of rows, by run, weights hash or row",
    )
    add("--template", metavar="FILE", help="render this Jinja2 template instead of --format")
    add(
        "--export",
        action="append",
        default=[],
        metavar="KIND=TARGET",
        help="export to mlflow=FOLDER, wandb=FOLDER (offline) or card=README.md of a backbone",
    )
    add(
        "--figures",
        type=Path,
        metavar="FOLDER",
        help="also draw figures (curves and bars) for papers",
    )
    add(
        "--figure-format",
        type=some_of("pdf", "svg", "png"),
        default=("pdf",),
        metavar="pdf,svg,png",
        help="default: pdf",
    )


def _reading(add: Callable[..., object]) -> None:
    add(
        "--label",
        action="append",
        default=[],
        metavar="PATH=NAME",
        help="method name for an output folder of Detectron2",
    )
    add(
        "--stalled-after",
        type=_minutes,
        default=60.0,
        metavar="MINUTES",
        help="minutes without output after which a run counts as stalled (default: 60)",
    )
    add("--no-cache", action="store_true", help="do not use the cache")
