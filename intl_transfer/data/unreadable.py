"""Unreadable images: reported, counted over all ranks, and limited."""

from __future__ import annotations

import sys

from intl_transfer.data.datasets import TRIES, Batch, ViewsDataset
from intl_transfer.errors import UserError
from intl_transfer.runs.distributed import Ranks

_NAMED = 20  # unreadable images that are named; the others are only counted


class Unreadable:
    """Counts unreadable images over all ranks, and ends the run if there are too many.

    Args:
        dataset: whose images they are.
        limit: maximum fraction that may be unreadable.
        ranks: this process's place.
    """

    def __init__(self, dataset: ViewsDataset, limit: float, ranks: Ranks) -> None:
        self._dataset, self._limit, self._ranks = dataset, limit, ranks
        self._own: set[int] = set()
        self._untold: list[int] = []
        self._everyones: set[int] = set()

    def note(self, batch: Batch) -> None:
        """Records a batch's unreadable images; reports each once.

        Raises:
            UserError: if so many consecutive images were unreadable that the data set must be
                unavailable.
        """
        for index, reason in batch.unreadable:
            if index not in self._own:
                self._own.add(index)
                self._untold.append(index)
                if len(self._own) <= _NAMED:
                    print(f"warning: {reason}; replaced by another image", file=sys.stderr)
        if batch.gone:
            raise UserError(
                f"{TRIES} consecutive images cannot be read, the last: {batch.unreadable[-1][1]}. "
                "Is the data set still available?"
            )

    def check(self, metrics: dict[str, float]) -> None:
        """Checks the limit; must be called by all ranks at the same step.

        Args:
            metrics: ``unreadable_images`` is updated in it, to the maximum over sessions.

        Raises:
            UserError: if too many images are unreadable.
        """
        self._everyones.update(self._ranks.gather_numbers(self._untold))
        self._untold = []
        count = len(self._everyones)
        metrics["unreadable_images"] = max(count, metrics.get("unreadable_images", 0))
        allowed = self._limit * len(self._dataset)
        if count > allowed:
            raise UserError(
                f"{count} of {len(self._dataset)} images cannot be read, over the limit of "
                f"data.max_unreadable={self._limit:g} ({allowed:g} images); the first are named "
                "above. The last checkpoint is intact"
            )
