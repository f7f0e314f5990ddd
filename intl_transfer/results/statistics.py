"""Figures over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Mean and spread of one figure over runs.

    Attributes:
        mean: arithmetic mean.
        std: sample standard deviation (divisor n - 1); None for a single run.
        n: number of runs.
    """

    mean: float
    std: float | None
    n: int


def summarise(values: Sequence[float | None]) -> Summary | None:
    """Mean, sample standard deviation and number of the values that exist.

    Args:
        values: one a run; None where a run has no such figure.

    Returns:
        The summary, or None if no run has the figure.

    Raises:
        ValueError: if a value is NaN or infinite.
    """
    present = [float(value) for value in values if value is not None]
    if not present:
        return None
    if not all(map(math.isfinite, present)):
        raise ValueError(f"figures must be finite, found {present}")
    mean = math.fsum(present) / len(present)
    if len(present) == 1:
        return Summary(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in present) / (len(present) - 1)
    return Summary(mean, math.sqrt(variance), len(present))
