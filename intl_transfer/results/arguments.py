"""The options of ``intl-transfer collect``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from intl_transfer.errors import did_you_mean

FORMS = ("console", "md", "latex", "csv", "json", "long", "parquet")
_TABLES = ("detection", "classification")


def one_of(*known: str) -> Callable[[str], str]:
    """A type for argparse that names the nearest word."""

    def check(text: str) -> str:
        if text not in known:
            hint = did_you_mean(text, known)
            message = f"no '{text}'.{hint} Expected one of {', '.join(known)}"
            raise argparse.ArgumentTypeError(message)
        return text

    return check


def some_of(*known: str) -> Callable[[str], tuple[str, ...]]:
    """The same for several words with commas between them."""
    check = one_of(*known)
    return lambda text: tuple(check(word) for word in _words(text))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _digits(text: str) -> int:
    if not text.isdecimal() or int(text) > 10:
        raise argparse.ArgumentTypeError(f"'{text}': expected digits after the point, 0 to 10")
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
    add("--out", metavar="FILE|FOLDER/", help="a table's file, or a folder for a whole report")
    add("--watch", action="store_true", help="rebuild the report when runs change, until Ctrl-C")
    text = "default: by the name of --out; without that, console on a terminal and md elsewhere"
    _choice(add, "--format", FORMS, text, None)
    add(
        "--disclose",
        action="store_true",
        help="also write the runs' absolute paths, hosts, users and command lines",
    )
    add(
        "--anonymous",
        action="store_true",
        help="for double-blind review: also without addresses, e-mail, revisions and times",
    )
    _shown(parser.add_argument_group("what is shown").add_argument)
    _statistics(parser.add_argument_group("statistics").add_argument)
    _forms(parser.add_argument_group("form").add_argument)
    _reading(parser.add_argument_group("reading").add_argument)


def _shown(add: Callable[..., object]) -> None:
    add("--published", action="store_true", help="also show published rows")
    add(
        "--tables",
        type=some_of(*_TABLES),
        default=_TABLES,
        metavar=",".join(_TABLES),
        help="which tables; default: both",
    )
    text = "paper (default): one row per method across data sets; dataset: a table for each"
    _choice(add, "--layout", ("paper", "dataset"), text, "paper")
    add(
        "--columns",
        type=_words,
        default=(),
        metavar="COLUMN,...",
        help="TASK.METRIC, TASK or METRIC, as box.AP,voc or AP,APs",
    )
    add(
        "--hide",
        type=some_of("pretraining", "n"),
        default=(),
        metavar="pretraining,n",
        help="columns to leave out",
    )
    add(
        "--rows",
        action="append",
        default=[],
        metavar="KEY=PATTERN",
        help="only matching rows; also KEY!=PATTERN; keys: method, pretraining, dataset, detector, "
        "schedule, source (measured, external, published); may be repeated",
    )
    add("--sort", metavar="COLUMN", help="method, pretraining, n, or a column; default: best first")
    add("--reverse", action="store_true", help="the other way round")
    add("--precision", type=_digits, default=1, help="digits after the point (default: 1)")


def _statistics(add: Callable[..., object]) -> None:
    text = (
        "beside a mean: the sample standard deviation (default), a 95 %% interval of the mean by "
        "Student's t or by bootstrap, the difference to --baseline with its interval, or nothing"
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
        help="instead of tables: what the seeds resolve, and how many a difference needs",
    )
    text = "auto (default): paired where both rows have the same seeds, else Welch's"
    _choice(add, "--test", ("auto", "paired", "welch"), text, "auto")
    text = (
        "learning rates in tables of their own (default), or each row at the one with the highest "
        "mean AP, which a footnote says"
    )
    _choice(add, "--lr-selection", ("separate", "best"), text, "separate")


def _forms(add: Callable[..., object]) -> None:
    add("--standalone", action="store_true", help="LaTeX that compiles on its own")
    each = "of LaTeX's first table; again for the second, and so on; default: "
    add("--caption", action="append", default=[], metavar="LATEX", help=f"{each}its title")
    add(
        "--tex-label",
        action="append",
        default=[],
        metavar="NAME",
        help=f"{each}tab: and what it shows",
    )
    text = "of LaTeX: table (one column), table* (across the page), auto (default): by the width"
    _choice(add, "--float", ("auto", "table", "table*"), text, "auto")
    add(
        "--link",
        default="",
        metavar="ADDRESS",
        help="of the report's page, to which tables link; in a folder: its index.html",
    )
    add(
        "--names",
        metavar="FILE",
        help="YAML: by run, weights hash or row, the name to show, order, group, rule",
    )
    add("--template", metavar="FILE", help="fill this Jinja2 template instead of a format")
    add(
        "--export",
        action="append",
        default=[],
        metavar="KIND=TARGET",
        help="also to mlflow=FOLDER, wandb=FOLDER (offline) or card=README.md of a backbone",
    )
    add("--figures", type=Path, metavar="FOLDER", help="also draw curves and bars for papers")
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
        help="method name of a Detectron2 folder that other scripts wrote",
    )
    add(
        "--stalled-after",
        type=_minutes,
        default=60.0,
        metavar="MINUTES",
        help="without output, after which a run counts as stalled (default: 60)",
    )
    add("--no-cache", action="store_true", help="read everything again, and cache nothing")
