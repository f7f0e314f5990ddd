"""Ids in COCO's json: usually integers; also text, floats and gaps, as some tools write them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from intl_transfer.data.segmentations import is_whole


class KnownIds:
    """Ids of a list, found also where one place has a number and the other its digits.

    Zeros before digits (``000001`` for 1) count for nothing, but where two ids differ in them.

    Args:
        known: the ids as the list has them.
    """

    def __init__(self, known: Iterable[Any]) -> None:
        self._known = set(known)
        spelled: dict[str, list[Any]] = {}
        for number in self._known:
            spelled.setdefault(_without_zeros(number), []).append(number)
        self._spelled = {text: found[0] for text, found in spelled.items() if len(found) == 1}

    def find(self, value: Any) -> Any:
        """The id as the list has it, or None."""
        number = usable_id(value)
        if number is None or number in self._known:
            return number
        return self._spelled.get(_without_zeros(number))


def _without_zeros(number: int | str) -> str:
    text = str(number)
    return text.lstrip("0") or "0" if text.isdecimal() else text


def usable_id(value: Any) -> int | str | None:
    """A usable id: a whole number of any size, or text; None for anything else."""
    if isinstance(value, str):
        return value.strip() or None
    if type(value) is int:
        return value
    return int(value) if is_whole(value) else None


def are_kept(numbers: Iterable[Any]) -> bool:
    """Whether categories keep the ids that they have, since all are numbers from 0 on."""
    return all(type(number) is int and 0 <= number < 2**31 for number in numbers)


def category_ids(classes: tuple[str, ...], numbers: dict[str, Any]) -> tuple[int, ...]:
    """By label, the ids of the file, where these are numbers from 0 on; else from 1 on."""
    if not are_kept(numbers.values()):
        return tuple(range(1, len(classes) + 1))
    free, ids = max(numbers.values(), default=0), []
    for name in classes:
        free += name not in numbers
        ids.append(numbers.get(name, free))
    return tuple(ids)
