"""Detects implausible boxes and areas in COCO files.

Corners given as width and height, coordinates relative to the image's size, areas that contradict
box and mask: training would run on them, with wrong metrics.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from intl_transfer.data.annotations import SLACK, are_relative
from intl_transfer.data.segmentations import Box, outline_area, pixel_area

_ROUNDING = 2.0  # pixels by which a box and its mask's extent may differ
_SMALL = 64.0  # pixels of area about which nobody argues
# Without masks, an area may be that of a mask which was left out: some part of its box, whose
# median is far above this in any set.
_SPARSE = 0.1
_FAR = 0.1  # of an image's side: no box of x, y, width, height reaches so far over the edge
_MOST = 0.8  # share of boxes that fit as corners, where some are broken otherwise
_MANY = 0.25  # share of boxes over the edge that no slip explains


class Suspicions:
    """Checks annotations one by one and reports problems at the end."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}
        self._boxes = self._fit_as_corners = self._not_corners = 0
        self._over = self._far = self._over_by_area = 0
        self._areas = self._areas_of_corners = 0
        self._filled: list[float] = []
        self._first: dict[str, str] = {}

    def see(self, at: str, box: Sequence[float], around: Box | None, size: tuple[int, int]) -> None:
        """Checks a box as written in the file.

        Args:
            at: which annotation, for messages.
            box: x, y, width and height, if correct.
            around: its mask's extent, left, top, right, bottom, if there is one.
            size: of the image, width and height.
        """
        x, y, w, h = box
        self._boxes += 1
        if _fit_as_corners(box, size):
            self._fit_as_corners += 1
            if _over_edge(box, size):
                self._over += 1
                self._far += max((x + w - size[0]) / size[0], (y + h - size[1]) / size[1]) > _FAR
                self._first.setdefault("over", f"{at}: bbox {list(box)}")
        if min(w, h) > 0 and are_relative(box, *size):
            self._add(
                "relative",
                f"{at}: bbox {list(box)}, with no number above 1: relative to the image's size; "
                "expected pixels",
            )
        if around is None:
            return
        left, top, right, bottom = around
        near = max(_ROUNDING, 0.02 * max(size))
        starts = abs(x - left) <= near and abs(y - top) <= near
        ends_as_corners = abs(w - right) <= near and abs(h - bottom) <= near
        ends = abs(x + w - right) <= near and abs(y + h - bottom) <= near
        if starts and ends and not ends_as_corners:
            self._not_corners += 1  # its mask says so
        elif starts and ends_as_corners and not ends:
            self._add(
                "corners",
                f"{at}: bbox {list(box)} holds the corners of its mask; expected x, y, width, "
                "height",
            )
        elif (
            max(x, left) > min(x + w, right) + _ROUNDING
            or max(y, top) > min(y + h, bottom) + _ROUNDING
        ):
            extent = [round(value, 1) for value in around]
            self._add(
                "apart",
                f"{at}: its box {list(box)} (x, y, width, height) and its mask, which reaches from "
                f"{extent[:2]} to {extent[2:]}, lie apart",
            )

    def see_area(
        self, at: str, area: float, box: Sequence[float], mask: Any, size: tuple[int, int]
    ) -> None:
        """Checks an area against its box and mask, if any."""
        own = box[2] * box[3]
        if mask is None:
            if _fit_as_corners(box, size):
                corners = (box[2] - box[0]) * (box[3] - box[1])
                self._areas_of_corners += abs(area - corners) <= 0.01 * corners < abs(area - own)
                self._over_by_area += _over_edge(box, size) and abs(area - own) <= 0.01 * own
            self._areas += 1
            if own > _SMALL:
                self._filled.append(area / own)
                self._first.setdefault("filled", f"{at}: area {area:g} of a box of {own:.0f}")
            if area <= 1.5 * own + _SMALL and (area >= 1 or own <= _SMALL):
                return
            expected = f"at most its box's, {own:.0f}"
        else:
            drawn = outline_area(mask)
            if _agree(area, own, drawn):
                return
            drawn = pixel_area(mask, size[1], size[0])
            if _agree(area, own, drawn):
                return
            expected = f"about its mask's, {drawn:.0f}, or its box's, {own:.0f}"
        whole = " (all of its image)" if area == size[0] * size[1] else ""
        self._add(
            "area",
            f"{at}: area {area:g}{whole} contradicts box and mask; expected {expected}. APs, "
            "APm and APl would be false: correct the areas, or leave them out",
        )

    def found(self) -> Iterator[tuple[str, str]]:
        """Kind and text of everything that is wrong."""
        all_fit = self._fit_as_corners == self._boxes
        if not self._not_corners and "corners" not in self._lines:
            if self._over and self._are_corners(all_fit):
                yield (
                    "corners",
                    f"{self._first['over']} reaches over the edge of its image, and "
                    f"{'every' if all_fit else 'nearly every'} box of the file fits as left, top, "
                    "right, bottom; expected x, y, width, height (if they are, cut the boxes at "
                    "the edges)",
                )
            elif all_fit and self._areas and self._areas == self._areas_of_corners:
                yield (
                    "corners",
                    "every area is that of its bbox read as left, top, right, bottom; expected x, "
                    "y, width, height",
                )
        if self._filled and statistics.median(self._filled) < _SPARSE and "area" not in self._lines:
            yield (
                "area",
                f"{self._first['filled']}, and most areas are as far below their boxes'. APs, APm "
                "and APl would be false: correct the areas, or leave them out",
            )
        for kind, lines in self._lines.items():
            for line in lines:
                yield kind, line

    def _are_corners(self, all_fit: bool) -> bool:
        """Whether boxes over an edge are corners, and not x, y, width, height drawn too large."""
        many = self._over >= _MANY * self._boxes
        if all_fit:
            return self._far > 0 or (many and not self._over_by_area)
        return self._fit_as_corners >= _MOST * self._boxes and many and self._far > 0

    def _add(self, kind: str, line: str) -> None:
        self._lines.setdefault(kind, []).append(line)


def _fit_as_corners(box: Sequence[float], size: tuple[int, int]) -> bool:
    left, top, right, bottom = box
    return -SLACK <= left < right <= size[0] + SLACK and -SLACK <= top < bottom <= size[1] + SLACK


def _over_edge(box: Sequence[float], size: tuple[int, int]) -> bool:
    """Whether a box of x, y, width and height reaches over its image's right or lower edge."""
    return box[0] + box[2] > size[0] + SLACK or box[1] + box[3] > size[1] + SLACK


def _agree(area: float, box: float, mask: float) -> bool:
    """Whether an area is close to the mask's or, as some tools write it, the box's."""
    return mask / 2 - _SMALL <= area <= 2 * mask + _SMALL or abs(area - box) <= 0.1 * box + _SMALL
