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
            images, or none.
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
    unknown = wanted.difference(*known.values())
    if unknown or not wanted:
        first = f", the first: {min(unknown)}" if unknown else ""
        raise UserError(
            f"DATASETS.LABELS.LIST: {file} names {len(unknown) or 'no'} image(s)"
            f"{' that are not in ' + ', '.join(sets) if unknown else ''}{first}. Expected image "
            "ids of the training sets, one per line"
        )
    return {name: sorted(wanted & ids) for name, ids in known.items()}
