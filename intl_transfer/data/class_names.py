"""Names of classes, made unique."""

from __future__ import annotations

from collections.abc import Sequence


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
