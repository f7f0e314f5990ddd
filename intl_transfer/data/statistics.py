"""Mean and standard deviation for normalizing images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from intl_transfer.errors import UserError, did_you_mean

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation per channel.

    Attributes:
        mean: of red, green and blue, for values from 0 to 1.
        std: likewise.
    """

    mean: Triple
    std: Triple

    def as_dict(self) -> dict[str, list[float]]:
        """As lists of numbers, for configurations and files."""
        return {"mean": list(self.mean), "std": list(self.std)}

    @property
    def name(self) -> str | None:
        """Their name in :data:`STATISTICS`; None for other numbers."""
        return next((name for name, known in STATISTICS.items() if known == self), None)

    def __str__(self) -> str:
        mean, std = (
            ", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std)
        )
        name = f"{self.name}'s " if self.name else ""
        return f"{name}mean ({mean}) and standard deviation ({std})"


#: Of the training images, as published.
STATISTICS: dict[str, Statistics] = {
    "imagenet": Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": Statistics((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Statistics((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def statistics_of(value: Any, key: str = "data.normalize") -> Statistics:
    """The statistics that a setting names or spells out.

    Args:
        value: a name in :data:`STATISTICS`, or ``{"mean": [r, g, b], "std": [r, g, b]}`` for
            channels from 0 to 1.
        key: the setting, for messages.

    Raises:
        UserError: if it is neither.
    """
    if isinstance(value, str) and value in STATISTICS:
        return STATISTICS[value]
    known = ", ".join(STATISTICS)
    numbers = "numbers: '{mean: [r, g, b], std: [r, g, b]}', for channels from 0 to 1"
    if isinstance(value, Mapping) and value.keys() == {"mean", "std"}:
        mean, std = _triple(value["mean"]), _triple(value["std"])
        if mean and std and all(0 <= m <= 1 for m in mean) and all(0 < s <= 1 for s in std):
            return Statistics(mean, std)
    hint = did_you_mean(value, STATISTICS) if isinstance(value, str) else ""
    raise UserError(f"{key} is {value}; expected {known}, or {numbers}.{hint}")


def _triple(values: Any) -> Triple | None:
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != 3:
        return None
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return None
    first, second, third = (float(v) for v in values)
    return (first, second, third) if all(map(math.isfinite, (first, second, third))) else None
