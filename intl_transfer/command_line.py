"""Command lines of all commands: paths below the home, and near matches of what is misspelled."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from intl_transfer.errors import unrecognized
from intl_transfer.places import expanded

_HOME = re.compile(r"([^~=\s]*=)?(~.*)", re.DOTALL)


def parse(
    parser: argparse.ArgumentParser, words: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parses a command line, with options and other words in any order.

    ``~`` is the home also where shells leave it, as in ``--out=~/results``.

    Args:
        parser: the command's.
        words: without the program's name; ``sys.argv[1:]`` by default.
    """
    given = [_at_home(word) for word in (sys.argv[1:] if words is None else words)]
    arguments, unknown = parser.parse_known_intermixed_args(given)
    if unknown:
        unrecognized(parser, unknown)
    return arguments


def _at_home(word: str) -> str:
    found = _HOME.fullmatch(word)
    return word if found is None else f"{found[1] or ''}{expanded(found[2])}"
