"""Draws every picture of docs/results, with its data, from the corpus: `make results`.

    python scripts/draw_results.py [STEM ...]

docs/results/corpus/figures.yaml names each picture and the arguments of `intl-transfer figure`
that make it: from run records in the corpus, or from formulas and a seed. Pictures that have no
records are computed anew, the toy's in some minutes.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

from intl_transfer import cli
from intl_transfer.boundary import Boundary
from intl_transfer.command_line import parse
from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.files.yamls import read_yaml

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path("docs/results")  # below ROOT, as commands in the pictures name it


def main() -> int:
    """Draws; returns 1 if a claim of a picture does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stems", nargs="*", metavar="STEM", help="default: all of them")
    stems = parse(parser).stems
    with Boundary() as boundary:
        boundary.status = draw(stems)
    return boundary.status


def recipes() -> dict[str, str]:
    """The arguments of ``intl-transfer figure`` by the picture's name."""
    return read_yaml(ROOT / RESULTS / "corpus/figures.yaml")


def draw(stems: list[str]) -> int:
    """Draws the pictures named, or all.

    Raises:
        UserError: for a name that the corpus has not.
    """
    known = recipes()
    for stem in stems:
        if stem not in known:
            raise UserError(f"no picture '{stem}'.{did_you_mean(stem, known)} {', '.join(known)}")
    os.chdir(ROOT)
    failed = []
    for stem in stems or known:
        print(f"== {stem}", flush=True)
        words = ["figure", *shlex.split(known[stem]), "--as", stem, "--format", "png"]
        if cli.main([*words, "--out", str(RESULTS)]):
            failed.append(stem)
    if failed:
        print(f"claims that do not hold, or pictures not made: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
