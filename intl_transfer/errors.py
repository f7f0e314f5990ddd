"""Errors that a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 100


class UserError(Exception):
    """Something the user can put right: a wrong name, a missing file, a damaged checkpoint.

    The message is the whole story: what was expected, what was found, what to do. Command-line
    entry points print it without a traceback and exit with status 2.
    """


def did_you_mean(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Names the known words nearest to a misspelled one.

    Args:
        name: what the user wrote.
        known: every word that would have been right.
        limit: how many to name at most.

    Returns:
        ``" Did you mean 'a' or 'b'?"`` with a leading space, or ``""`` where nothing is near.
    """
    # A key in a file may be no text, or one that takes long to compare.
    near = difflib.get_close_matches(str(name)[:_LONGEST], list(known), n=limit, cutoff=0.55)
    if not near:
        return ""
    return " Did you mean " + " or ".join(f"'{word}'" for word in near) + "?"


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says something, cut where it is long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."
