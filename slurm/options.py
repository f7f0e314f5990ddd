"""Command lines of the launchers: no abbreviations, and near matches of what is misspelled."""

from __future__ import annotations

import argparse
from collections.abc import Collection

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


def parsed(
    parser: argparse.ArgumentParser, passed_on: Collection[str] = ()
) -> tuple[argparse.Namespace, list[str]]:
    """The command line, with options and other words in any order.

    Args:
        parser: from :func:`make_parser`.
        passed_on: options that are not the launcher's own.

    Returns:
        The launcher's arguments, and the words of ``passed_on`` with their values.
    """
    arguments, further = parser.parse_known_intermixed_args()
    options = [word.partition("=")[0] for word in further if word.startswith("-")]
    unknown = [name for name in options if name not in passed_on]
    if "--seed" in unknown and "--seeds" in parser.format_usage():
        parser.error("no option --seed; for the seed 3 alone give --seeds 3, (with the comma)")
    if unknown or (further and not options):
        unrecognized(parser, unknown or further)
    return arguments, further
