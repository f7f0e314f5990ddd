"""Command lines of the launchers: no abbreviations, and near matches of what is misspelled."""

from __future__ import annotations

import argparse
import sys

from intl_transfer.command_line import parse


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that takes every option by its whole name.

    argparse's abbreviations would take SLURM's ``--gpus 8`` (in all) for ``--gpus-per-node``, and
    the stages' ``--seed 3`` for ``--seeds 3``, which is three seeds.
    """
    return argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line, with options and other words in any order.

    Args:
        parser: from :func:`make_parser`.
    """
    seed = next((i for i, word in enumerate(sys.argv) if word.partition("=")[0] == "--seed"), None)
    if seed is not None and "--seeds" in parser.format_usage():
        value = sys.argv[seed].partition("=")[2] or next(iter(sys.argv[seed + 1 :]), "")
        given = value if value.isdecimal() else "3"
        parser.error(
            f"no option --seed; for the seed {given} alone give --seeds {given}, (with the comma)"
        )
    return parse(parser)
