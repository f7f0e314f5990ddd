"""Reproduces a figure of the paper: its data as CSV and JSON, pictures as PNG, SVG and PDF.

    intl-transfer figure maps
    intl-transfer figure toy --quick
    intl-transfer figure dynamics RUN [RUN ...]
    intl-transfer figure toy --out FOLDER steps=2000

Settings are in `configs/analysis/NAME.yaml`, those of the quick form in `NAME_quick.yaml`; any is
changed by `key=value`. What a figure is there to show is said at the end, and where it does not
hold, the exit status is 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import time
from pathlib import Path

from intl_transfer.places import config_folder

CONFIGS = config_folder("analysis")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``intl-transfer figure``."""
    from intl_transfer.analysis.registry import FIGURES, FORMATS

    names = "\n".join(f"  {name:12s} {entry.help}" for name, entry in FIGURES.items())
    parser.epilog = f"figures:\n{names}"
    parser.add_argument("name", metavar="NAME", help="one of the figures below")
    parser.add_argument("--quick", action="store_true", help="small, in two minutes at most")
    parser.add_argument("--config", help="name in configs/analysis/, or a path; NAME by default")
    parser.add_argument("--out", type=Path, metavar="DIR", help="by default runs/analysis/NAME")
    parser.add_argument("--as", dest="stem", metavar="STEM", help="of the files' names, not NAME")
    parser.add_argument(
        "--format",
        action="append",
        choices=FORMATS,
        help="of the pictures, may be repeated; by default all of them",
    )
    parser.add_argument(
        "inputs", nargs="*", metavar="RUN | key=value", help="run directories, and settings"
    )


def run(arguments: argparse.Namespace) -> int:
    """Makes a figure; returns 1 if a claim of its does not hold."""
    from intl_transfer.analysis import style
    from intl_transfer.analysis.outcome import write
    from intl_transfer.analysis.registry import FORMATS, entry_of
    from intl_transfer.errors import UserError
    from intl_transfer.runs.config import config_name, load_config

    name, entry = arguments.name, entry_of(arguments.name)
    overrides = [text for text in arguments.inputs if "=" in text and not Path(text).exists()]
    runs = [Path(text) for text in arguments.inputs if text not in overrides]
    if runs and entry.runs == "refused":
        raise UserError(f"{name} takes no run directories, and '{runs[0]}' is no key=value")
    if not runs and entry.runs == "needed":
        raise UserError(f"{name} is drawn from run directories: give at least one")
    for path in runs:
        if not path.is_dir():
            raise UserError(f"{path} is not a folder; expected a run directory, or key=value")
    function, schema = entry.load()
    shown = arguments.config or (f"{name}_quick" if arguments.quick else name)
    if name == "sweep" and arguments.config is None:  # its settings lie beside its runs
        shown = str(runs[0] / "sweep.yaml")
    config = load_config(schema, shown, overrides, CONFIGS)
    out = arguments.out or Path("runs") / "analysis" / config_name(shown)
    words = ["intl-transfer", "figure", name, *(["--quick"] * arguments.quick)]
    words += ["--config", arguments.config] if arguments.config else []
    words += ["--as", arguments.stem] if arguments.stem else []
    command = shlex.join([*words, *arguments.inputs])
    start = time.monotonic()
    with style.paper_style():
        outcome = function(config, runs)
        seconds = time.monotonic() - start
        settings, stem = dataclasses.asdict(config), arguments.stem or name
        formats = tuple(arguments.format or FORMATS)
        files = write(outcome, out, stem, command, settings, seconds, formats)
    for claim in outcome.claims:
        print(claim)
    print(f"{out}: {', '.join(file.name for file in files)} ({seconds:.1f} s)")
    return 0 if outcome.holds else 1
