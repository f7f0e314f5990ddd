"""Errors that a user can act on."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from typing import NoReturn

_LONGEST = 100


class UserError(Exception):
    """An error that the user can fix: a wrong name, a missing file, a damaged checkpoint.

    The message states what was expected, what was found, and what to do. Command-line entry points
    print it without a traceback and exit with status 2.
    """


def did_you_mean(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Suggests known names close to a misspelled one.

    Args:
        name: given by the user.
        known: all valid names.
        limit: maximum number of suggestions.

    Returns:
        ``" Did you mean 'a' or 'b'?"`` with a leading space, or ``""`` without near matches.
    """
    # A key in a file may not be text, or may be too long to compare.
    near = difflib.get_close_matches(str(name)[:_LONGEST], list(known), n=limit, cutoff=0.55)
    if not near:
        return ""
    return " Did you mean " + " or ".join(f"'{word}'" for word in near) + "?"


def unrecognized(parser: argparse.ArgumentParser, words: Sequence[str]) -> NoReturn:
    """Ends a command whose line has words that mean nothing, as argparse does, with near matches.

    Args:
        parser: the command's.
        words: the unknown ones.
    """
    known = [name for action in parser._actions for name in action.option_strings]
    hint = did_you_mean(words[0].partition("=")[0], known)
    parser.error(f"unrecognized arguments: {' '.join(words)}.{hint}")


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's text, shortened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."


def require_choice(what: str, value: object, known: Iterable[str]) -> None:
    """Checks a choice.

    Args:
        what: is chosen, for the message.
        value: the choice.
        known: what there is.

    Raises:
        UserError: if it is none of them.
    """
    names = tuple(known)
    if value not in names:
        hint = did_you_mean(str(value), names)
        raise UserError(f"no {what} {value!r}.{hint} Expected one of {', '.join(names)}")
