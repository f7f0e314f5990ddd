"""Names of classes: written in one way, and made unique."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def canonical(name: str) -> str:
    """A class's name as it is compared: accents in Unicode's form NFC, spaces and breaks as one.

    What looks alike is then the same, whichever tool wrote it.

    Args:
        name: as a file or a configuration has it.

    Returns:
        ``"traffic light"`` for ``" traffic  light "``; "" for a blank name.
    """
    return " ".join(unicodedata.normalize("NFC", name).split())


def told_apart(names: Sequence[str]) -> list[str]:
    """Names of classes with a number behind those that stand twice, so that none is lost.

    Args:
        names: in the order of the classes.

    Returns:
        As many, in the same order, all different: ``["bird", "bird"]`` becomes
        ``["bird", "bird (2)"]``. Names that stand once stay as they are.
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
