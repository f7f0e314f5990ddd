"""Images that cannot be read: named, counted over all ranks, and limited."""

from __future__ import annotations

import sys

from intl_transfer.data.datasets import TRIES, Batch, ViewsDataset
from intl_transfer.errors import UserError
from intl_transfer.runs.distributed import Ranks

_NAMED = 20  # unreadable images that are named; the rest are counted


class Unreadable:
    """Counts images that cannot be read, over all ranks, and ends the run where they are many.

    Args:
        dataset: whose images they are.
        limit: largest share of them that may be unreadable.
        ranks: this process's place.
    """

    def __init__(self, dataset: ViewsDataset, limit: float, ranks: Ranks) -> None:
        self._dataset, self._limit, self._ranks = dataset, limit, ranks
        self._own: set[int] = set()
        self._untold: list[int] = []
        self._everyones: set[int] = set()

    def note(self, batch: Batch) -> None:
        """Takes up what one batch says; names each image once.

        Raises:
            UserError: if so many in a row could not be read that the data set must have gone.
        """
        for index, reason in batch.unreadable:
            if index not in self._own:
                self._own.add(index)
                self._untold.append(index)
                if len(self._own) <= _NAMED:
                    print(f"warning: {reason}; another image takes its place", file=sys.stderr)
        if batch.gone:
            raise UserError(
                f"{TRIES} images in a row cannot be read, the last: {batch.unreadable[-1][1]}. "
                "Is the data set still there?"
            )

    def check(self, figures: dict[str, float]) -> None:
        """Compares with the limit; to be called by all ranks at the same step.

        Args:
            figures: where ``unreadable_images`` is kept, the most that a session has found.

        Raises:
            UserError: if too many images are unreadable.
        """
        self._everyones.update(self._ranks.gather_numbers(self._untold))
        self._untold = []
        count = len(self._everyones)
        figures["unreadable_images"] = max(count, figures.get("unreadable_images", 0))
        allowed = self._limit * len(self._dataset)
        if count > allowed:
            raise UserError(
                f"{count} of {len(self._dataset)} images cannot be read, over the limit of "
                f"data.max_unreadable={self._limit:g} ({allowed:g} images); the first of them are "
                "named above. The last checkpoint is whole"
            )
