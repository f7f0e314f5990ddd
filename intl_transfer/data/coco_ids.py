"""Ids in COCO's json: usually integers; also text, floats and gaps, as some tools write them."""

from __future__ import annotations

from typing import Any

from intl_transfer.data.annotations import AnnotatedImage
from intl_transfer.data.segmentations import is_whole


class ImagesById:
    """Images by id; a number also matches the same number as text."""

    def __init__(self, known: dict[Any, AnnotatedImage]) -> None:
        self.known = known
        self._texts = {str(number): number for number in known}

    def find(self, value: Any) -> Any:
        """The id as the image has it, or None."""
        number = usable_id(value)
        if number is None or number in self.known:
            return number
        return self._texts.get(str(number))


def usable_id(value: Any) -> int | str | None:
    """A usable id: a whole number, or text; None for anything else."""
    if isinstance(value, str):
        return value.strip() or None
    return int(value) if is_whole(value) else None


def find_category(names: dict[Any, str], value: Any) -> str | None:
    """The name of a category's id, a number or its digits."""
    number = usable_id(value)
    if number is None or number in names:
        return names.get(number)
    other: Any = str(number) if isinstance(number, int) else None
    if isinstance(number, str) and number.isdecimal() and len(number) < 19:
        other = int(number)
    return names.get(other)


def category_ids(classes: tuple[str, ...], numbers: dict[str, Any]) -> tuple[int, ...]:
    """By label, the ids of the file, where these are numbers from 0 on; else from 1 on."""
    if not all(type(number) is int and 0 <= number < 2**31 for number in numbers.values()):
        return tuple(range(1, len(classes) + 1))
    free, ids = max(numbers.values(), default=0), []
    for name in classes:
        free += name not in numbers
        ids.append(numbers.get(name, free))
    return tuple(ids)
