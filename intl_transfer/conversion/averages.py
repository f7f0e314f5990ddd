"""Moving averages in a file that cannot be read as a network, which its reader is told of."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from intl_transfer.conversion.adapters.base import is_averaged, is_of_optimizer
from intl_transfer.conversion.reading import Content

# A ResNet's tensor as the name of a buffer, which cannot have dots: mmcv 1.x writes `_` for them,
# others nothing.
_FLAT = re.compile(r"layer[1-4]_?\d+_?conv[123]_?weight$")
_DEEPEST = 8


def unread_average(content: Content) -> str | None:
    """What a file holds as a moving average without a network's names, in words; None for none.

    Args:
        content: of the file.
    """
    place = next(_lists(content.values), None)
    if place is not None:
        how = "as a list of tensors without names"
    else:
        place = next((n for n in content.tensors if is_averaged(n) and _FLAT.search(n)), None)
        how = "in buffers whose names are not a network's"
    if place is None:
        return None
    return (
        f"it holds what looks like a moving average, {how} ('{place}'), which is not read. If you "
        "mean that one, copy it into the network where you trained it, and save its state_dict()"
    )


def _lists(values: Mapping[Any, Any], place: str = "", depth: int = 0) -> Iterator[str]:
    """The places of lists of tensors that are named like a moving average."""
    for key, value in values.items():
        where = f"{place}{key}"
        if isinstance(value, Mapping) and depth < _DEEPEST:
            yield from _lists(value, f"{where}/", depth + 1)
        elif (
            isinstance(value, (list, tuple))
            and is_averaged(where)
            and not is_of_optimizer(f"{where}/")  # such as its momentum
            and any(isinstance(tensor, Tensor) for tensor in value)
        ):
            yield where
