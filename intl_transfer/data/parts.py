"""Folders that are parts of a data set, such as ``train/`` and ``val2017/``, and not classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping

# The name of a part of a data set: its word alone or before anything but a letter (val2017,
# train_set, train.X1).
_PART = re.compile(
    r"(train|training|trainval|val|valid|validation|dev|eval|evaluation|test|testing)"
    r"((?:[\W\d_].*)?)",
    re.IGNORECASE | re.DOTALL,
)


def part_among(
    names: Collection[str], has_folders: Callable[[str], bool], are_classes: bool = True
) -> str | None:
    """The part of a data set to give instead, where two folders or more are parts.

    Args:
        names: of the folders.
        has_folders: whether one has folders in it: without, a class may be called "test".
        are_classes: whether the names would be classes; else the plain words are parts anyway.
    """
    matches = [match for name in sorted(names) if (match := _PART.fullmatch(name))]
    if len(matches) < 2:
        return None
    parts = [match[0] for match in matches]
    inner = [name for name in parts if has_folders(name)]
    # Of train_interior/ and train_station/platform/, which are classes, one has folders.
    is_deep = len(inner) > 1 or bool(inner and len({match[1].lower() for match in matches}) > 1)
    plain = [match for match in matches if not match[2] or match[2].isdecimal()]
    differ = len({match[1].lower() for match in plain}) > 1
    is_plain = differ and (not are_classes or any(match[2] for match in plain))
    if not is_deep and not is_plain:
        return None
    given = inner or parts
    return next((name for name in given if name.lower().startswith("train")), given[0])


def part_below(classes: Mapping[str, Iterable[str]]) -> tuple[str, list[str], str] | None:
    """The first class folder that holds parts of a data set, what it holds, and the part to give.

    Args:
        classes: the paths of the folders below each class folder, relative to it.
    """
    for name, paths in classes.items():
        split = [path.split("/") for path in paths if path not in ("", ".")]
        deep = {parts[0] for parts in split if len(parts) > 1}
        inside = sorted({parts[0] for parts in split})
        given = part_among(inside, deep.__contains__, are_classes=False)
        if given is not None:
            return name, inside, given
    return None


def some_of(names: Iterable[str]) -> str:
    """The first names, for messages."""
    known = sorted(names)
    return ", ".join(known[:6]) + (f" and {len(known) - 6} more" if len(known) > 6 else "")
