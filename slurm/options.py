"""Command lines of the launchers: no abbreviations, and near matches of what is misspelled."""

from __future__ import annotations

import argparse

from intl_transfer.errors import unrecognized


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
    arguments, unknown = parser.parse_known_intermixed_args()
    if "--seeds" in parser.format_usage() and any(
        word.partition("=")[0] == "--seed" for word in unknown
    ):
        parser.error("no option --seed; for the seed 3 alone give --seeds 3, (with the comma)")
    if unknown:
        unrecognized(parser, unknown)
    return arguments
