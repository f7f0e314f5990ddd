"""Names of classes: written in one way, and made unique."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def canonical(name: str) -> str:
    """A class name for comparison: Unicode's form NFC, runs of whitespace as one space.

    Names that look alike become equal, whichever tool wrote them.

    Args:
        name: as a file or a configuration has it.

    Returns:
        ``"traffic light"`` for ``" traffic  light "``; "" for a blank name.
    """
    return " ".join(unicodedata.normalize("NFC", name).split())


def unique_names(names: Sequence[str]) -> list[str]:
    """Makes class names unique by appending numbers to duplicates.

    Args:
        names: in the order of the classes.

    Returns:
        Unique names in the same order: ``["bird", "bird"]`` becomes ``["bird", "bird (2)"]``.
        Unique ones are unchanged.
    """
    found: list[str] = []
    reserved = set(names)
    for name in names:
        chosen, number = name, 1
        while chosen in found or (number > 1 and chosen in reserved):
            number += 1
            chosen = f"{name} ({number})"
        found.append(chosen)
    return found
