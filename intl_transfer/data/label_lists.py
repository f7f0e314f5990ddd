"""Few labels: a fixed subset of training images whose annotations are used.

The subset depends only on the ids: the first images in the order of the SHA-256 of ``SEED:ID``. So
it is the same on every machine with any library version, and 1 % is a subset of 10 %.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intl_transfer.data.roots import data_root
from intl_transfer.errors import UserError
from intl_transfer.files.texts import lines_of


def drawn(ids: Sequence[Any], fraction: float, seed: int) -> list[str]:
    """The subset of a data set for a fraction and a seed.

    Args:
        ids: of all images.
        fraction: above 0, up to 1.
        seed: another one draws another list.

    Returns:
        Ids as text, sorted; of ``N`` images ``fraction * N``, rounded half up, at least one.
    """
    count = max(1, int(fraction * len(ids) + 0.5))
    ranked = sorted(
        map(str, ids), key=lambda one: hashlib.sha256(f"{seed}:{one}".encode()).digest()
    )
    return sorted(ranked[:count])


def lists(
    fraction: Any, seed: Any, place: Any, sets: Mapping[str, Sequence[Any]]
) -> dict[str, list[str]]:
    """The images of each training set whose labels are used.

    Args:
        fraction: ``DATASETS.LABELS.FRACTION``.
        seed: ``DATASETS.LABELS.SEED``.
        place: ``DATASETS.LABELS.LIST``.
        sets: ids of all images, by the name of the training set.

    Returns:
        By name the ids as text, sorted.

    Raises:
        UserError: for a fraction that is none, and for a list that cannot be read, names other
            images, none, or one that several sets have.
    """
    if place:
        if fraction != 1.0:
            raise UserError(
                f"DATASETS.LABELS: LIST and FRACTION {fraction} are both given; omit one"
            )
        return _listed(place, sets)
    if not (isinstance(fraction, (int, float)) and 0 < fraction <= 1):
        raise UserError(
            f"DATASETS.LABELS.FRACTION is {fraction}; expected a fraction above 0, up to 1 "
            "(0.1 for 10 %)"
        )
    if not (isinstance(seed, int) and seed >= 0):
        raise UserError(f"DATASETS.LABELS.SEED is {seed}; expected 0 or more")
    return {name: drawn(ids, fraction, seed) for name, ids in sets.items()}


def _listed(place: str, sets: Mapping[str, Sequence[Any]]) -> dict[str, list[str]]:
    file = data_root() / Path(place).expanduser()
    try:
        wanted = set(lines_of(file, "image ids, one per line"))
    except UserError as error:
        raise UserError(f"DATASETS.LABELS.LIST: {error}") from None
    known = {name: {str(one) for one in ids} for name, ids in sets.items()}
    images = {line: _images_of(line, known) for line in wanted}
    unknown = [line for line, found in images.items() if not found]
    if unknown or not wanted:
        first = f", the first: {min(unknown)}" if unknown else ""
        raise UserError(
            f"DATASETS.LABELS.LIST: {file} names {len(unknown) or 'no'} image(s)"
            f"{' that are not in ' + ', '.join(sets) if unknown else ''}{first}. Expected image "
            "ids of the training sets, one per line"
        )
    shared = [line for line, found in images.items() if len(found) > 1]
    if shared:
        names = [name for name, _ in images[min(shared)]]
        raise UserError(
            f"DATASETS.LABELS.LIST: {file} names {len(shared)} image(s) of several training sets, "
            f"the first: {min(shared)}, of {', '.join(names)}. Expected SET:ID for each of them, "
            f"such as {names[0]}:{min(shared)}"
        )
    chosen: dict[str, set[str]] = {name: set() for name in sets}
    for ((name, one),) in images.values():
        chosen[name].add(one)
    return {name: sorted(ids) for name, ids in chosen.items()}


def _images_of(line: str, known: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """The images that a line can mean: set and id. A line that names the set means its image."""
    named = [(name, line.removeprefix(f"{name}:")) for name in known if line.startswith(f"{name}:")]
    stated = [(name, one) for name, one in named if one in known[name]]
    return stated or [(name, line) for name, ids in known.items() if line in ids]


def lines_for(lists: Mapping[str, Sequence[str]]) -> list[str]:
    """The lines of a file for ``DATASETS.LABELS.LIST``.

    Args:
        lists: by the name of each training set the ids.

    Returns:
        Ids, or ``SET:ID`` if there are several sets, which may share ids.
    """
    if len(lists) > 1:
        return [f"{name}:{one}" for name, ids in lists.items() for one in ids]
    return [one for ids in lists.values() for one in ids]
