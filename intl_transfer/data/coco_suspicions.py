"""Detects implausible boxes and areas in COCO files.

Corners given as width and height, coordinates relative to the image's size, areas that contradict
box and mask: training would run on them, with wrong metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from intl_transfer.data.annotations import SLACK
from intl_transfer.data.segmentations import Box, outline_area, pixel_area

_ROUNDING = 2.0  # pixels by which a box and its mask's extent may differ
_SMALL = 64.0  # tolerated difference of areas, in pixels


class Suspicions:
    """Checks annotations one by one and reports problems at the end."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}
        self._boxes = self._relative = self._over = 0
        self._areas = self._areas_of_corners = 0
        self._all_fit_as_corners = True
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
        as_corners = _fit_as_corners(box, size)
        self._all_fit_as_corners &= as_corners
        if as_corners and (x + w > size[0] + SLACK or y + h > size[1] + SLACK):
            self._over += 1
            self._first.setdefault("over", f"{at}: bbox {list(box)}")
        if max(box) <= 1 and min(size) > 2:
            self._relative += 1
            self._first.setdefault("relative", f"{at}: bbox {list(box)}")
        if around is None:
            return
        left, top, right, bottom = around
        near = max(_ROUNDING, 0.02 * max(size))
        starts = abs(x - left) <= near and abs(y - top) <= near
        ends_as_corners = abs(w - right) <= near and abs(h - bottom) <= near
        ends = abs(x + w - right) <= near and abs(y + h - bottom) <= near
        if starts and ends and not ends_as_corners:
            self._all_fit_as_corners = False  # its mask shows that it is not one
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
            self._areas += 1
            if area <= 1.5 * own + _SMALL:
                return
            expected = f"at most its box's, {own:.0f}"
        else:
            drawn = outline_area(mask)
            if _agree(area, own, drawn):
                return
            drawn = pixel_area(mask, size[1], size[0])
            if _agree(area, own, drawn):
                return
            expected = f"its mask's, {drawn:.0f}, or its box's, {own:.0f}"
        whole = " (all of its image)" if area == size[0] * size[1] else ""
        self._add(
            "area",
            f"{at}: area {area:g}{whole} contradicts box and mask; expected about {expected}. APs, "
            "APm and APl would be false: correct the areas, or leave them out",
        )

    def found(self) -> Iterator[tuple[str, str]]:
        """Kind and text of each problem."""
        if self._boxes and self._relative == self._boxes:
            yield (
                "relative",
                f"{self._first['relative']}, and no number of any box is above 1: relative to the "
                "image's size; expected pixels",
            )
        elif self._all_fit_as_corners and "corners" not in self._lines:
            if self._over:
                yield (
                    "corners",
                    f"{self._first['over']} reaches over the edge of its image, and every box of "
                    "the file fits as left, top, right, bottom; expected x, y, width, height",
                )
            elif self._areas and self._areas == self._areas_of_corners:
                yield (
                    "corners",
                    "every area is that of its bbox read as left, top, right, bottom; expected x, "
                    "y, width, height",
                )
        for kind, lines in self._lines.items():
            for line in lines:
                yield kind, line

    def _add(self, kind: str, line: str) -> None:
        self._lines.setdefault(kind, []).append(line)


def _fit_as_corners(box: Sequence[float], size: tuple[int, int]) -> bool:
    left, top, right, bottom = box
    return -SLACK <= left < right <= size[0] + SLACK and -SLACK <= top < bottom <= size[1] + SLACK


def _agree(area: float, box: float, mask: float) -> bool:
    """Whether an area is close to the mask's or, as some tools write it, the box's."""
    return mask / 2 - _SMALL <= area <= 2 * mask + _SMALL or abs(area - box) <= 0.1 * box + _SMALL
