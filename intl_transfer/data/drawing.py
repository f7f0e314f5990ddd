"""Draws boxes, masks and class names on an image, for all places that show detections."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from PIL import Image, ImageDraw

from intl_transfer.data.fonts import draw_text, text_box

# Distinguishable for most kinds of color blindness; further classes continue with shifted hues.
_COLORS = (
    *((230, 97, 0), (0, 114, 210), (0, 158, 96), (204, 51, 163), (240, 190, 20)),
    *((86, 180, 233), (150, 80, 30), (120, 94, 240), (200, 30, 50), (110, 170, 30)),
)
_FINER = 2  # supersampling factor, for smooth lines


@dataclass(frozen=True)
class DrawnObject:
    """One object or detection.

    Attributes:
        label: the class's number.
        box: x0, y0, x1, y1 in pixels of the image.
        polygons: outlines of its mask, each x, y, x, y ...
        score: of a detection.
        is_match: whether the object was found, or the detection is correct; None if it does not
            count.
    """

    label: int
    box: tuple[float, float, float, float]
    polygons: Sequence[Sequence[float]] = ()
    score: float | None = None
    is_match: bool | None = True

    def scaled(self, factor: float) -> DrawnObject:
        """The same, scaled to an image of another size."""
        x0, y0, x1, y1 = self.box
        return DrawnObject(
            self.label,
            (factor * x0, factor * y0, factor * x1, factor * y1),
            [[factor * value for value in outline] for outline in self.polygons],
            self.score,
            self.is_match,
        )


def color(label: int) -> tuple[int, int, int]:
    """The color of a class."""
    if label < len(_COLORS):
        return _COLORS[label]
    hue, light = (label * 0.381966) % 1.0, (0.42, 0.58, 0.5)[label % 3]
    red, green, blue = (round(255 * v) for v in colorsys.hls_to_rgb(hue, light, 0.75))
    return red, green, blue


def draw_objects(
    image: Image.Image, objects: Sequence[DrawnObject], classes: Sequence[str], text: int = 11
) -> Image.Image:
    """Draws objects on a copy of an image.

    Solid boxes are correct, dashed ones wrong (missed or false), thin ones do not count. Large
    objects are drawn first, so that small ones stay visible.

    Args:
        image: in RGB.
        objects: what to draw.
        classes: names, by label.
        text: height of the names in pixels.
    """
    layer = Image.new("RGBA", (image.width * _FINER, image.height * _FINER), (0, 0, 0, 0))
    # Drawn opaque, so that each mask keeps its color.
    pen = ImageDraw.Draw(layer)
    ordered = sorted(objects, key=lambda object_: -_area(object_.box))
    for object_ in ordered:
        for outline in object_.polygons:
            if len(outline) >= 6:
                points = [_FINER * value for value in outline]
                pen.polygon(points, fill=(*color(object_.label), 95))
                pen.line(points + points[:2], fill=(*color(object_.label), 255), width=_FINER)
    for object_ in ordered:
        _draw_box(pen, object_, image.size)
    layer = layer.resize(image.size, Image.Resampling.BOX)
    drawn = Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")
    _draw_names(drawn, objects, classes, text)
    return drawn


def mask_outlines(mask: np.ndarray) -> list[list[float]]:
    """Outlines of a mask's parts; holes are filled.

    Args:
        mask: (H, W), uint8 or bool.
    """
    found, _ = cv2.findContours(
        mask.astype(np.uint8, copy=False), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    # From pixels to the corners between them, as COCO's polygons have it.
    return [(c.reshape(-1).astype(float) + 0.5).tolist() for c in found if len(c) >= 3]


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _draw_box(pen: ImageDraw.ImageDraw, object_: DrawnObject, size: tuple[int, int]) -> None:
    limits = (size[0] - 1, size[1] - 1) * 2
    x0, y0, x1, y1 = (
        _FINER * min(max(value, 0), limit) for value, limit in zip(object_.box, limits, strict=True)
    )
    width = _FINER * (1 if object_.is_match is None else 2)
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
    for start, end in pairwise(corners):
        parts = [(0.0, 1.0)] if object_.is_match is not False else _dashes(start, end)
        for first, last in parts:
            ends = [
                tuple(a + at * (b - a) for a, b in zip(start, end, strict=True))
                for at in (first, last)
            ]
            pen.line(ends, fill=(*color(object_.label), 255), width=width)


def _dashes(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float]]:
    length = max(1.0, float(np.hypot(end[0] - start[0], end[1] - start[1])))
    on, period = 5 * _FINER, 9 * _FINER
    return [(at / length, min(1.0, (at + on) / length)) for at in np.arange(0.0, length, period)]


def _draw_names(
    image: Image.Image, objects: Sequence[DrawnObject], classes: Sequence[str], text: int
) -> None:
    """Writes each name at the first corner of its box that is still free."""
    pen = ImageDraw.Draw(image)
    taken: list[tuple[float, float, float, float]] = []
    for object_ in objects:
        score = "" if object_.score is None else f" {object_.score:.2f}"
        name = f"{classes[object_.label]}{score}"
        left, top, is_match, bottom = text_box(name, text)
        width, height = is_match - left + 4, bottom - top + 3
        x0, y0, x1, y1 = object_.box
        places = [(x0, y0 - height), (x0, y1), (x0, y0), (x1 - width, y0 - height)]
        spots = [
            (
                min(max(x, 0), max(0, image.width - width)),
                min(max(y, 0), max(0, image.height - height)),
            )
            for x, y in places
        ]
        x, y = next((s for s in spots if not _meets(s, width, height, taken)), spots[0])
        taken.append((x, y, x + width, y + height))
        shade = color(object_.label)
        pen.rectangle((x, y, x + width - 1, y + height - 1), fill=shade)
        bright = 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2] > 140
        place = (x + 2 - left, y + 1 - top)
        draw_text(pen, place, name, text, "black" if bright else "white")


def _meets(
    spot: tuple[float, float],
    width: float,
    height: float,
    taken: Sequence[tuple[float, float, float, float]],
) -> bool:
    x, y = spot
    return any(x < x1 and x0 < x + width and y < y1 and y0 < y + height for x0, y0, x1, y1 in taken)
