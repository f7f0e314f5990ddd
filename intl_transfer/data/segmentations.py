"""COCO's masks (polygons and RLE), validated before they reach a C library."""

from __future__ import annotations

import math
from typing import Any

from pycocotools import mask as run_lengths

Box = tuple[float, float, float, float]


class MaskError(ValueError):
    """An invalid mask; the message states what was found and expected."""


def is_number(value: Any) -> bool:
    """Whether a value of a json file is a finite number."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def is_whole(value: Any) -> bool:
    """Whether a value of a json file is an integer, in any notation (64.0)."""
    return is_number(value) and value == int(value)


def normalized(segmentation: Any, height: int, width: int) -> tuple[Any, str | None]:
    """A mask in the form of Detectron2 and pycocotools.

    Args:
        segmentation: as a json file has it.
        height: of the image.
        width: of the image.

    Returns:
        Polygons or compressed run lengths, None for no mask, and what was changed, if anything.

    Raises:
        MaskError: for polygons of fewer than three points, run lengths of another size or that do
            not fill it, and anything else.
    """
    if segmentation is None or segmentation == [] or segmentation == {}:
        return None, None
    if isinstance(segmentation, dict):
        return _run_lengths(segmentation, height, width)
    if not isinstance(segmentation, list):
        raise MaskError("is neither a list of polygons nor run lengths")
    changed = None
    if all(map(is_number, segmentation)):  # one polygon, not in a list
        segmentation, changed = [segmentation], "a polygon that is not in a list of polygons is one"
    for polygon in segmentation:
        if not isinstance(polygon, list) or not all(map(is_number, polygon)):
            raise MaskError("has a polygon that is not a list of finite numbers x, y, x, y ...")
        if len(polygon) < 6 or len(polygon) % 2:
            raise MaskError(
                f"has a polygon of {len(polygon)} numbers; expected x, y of three points or more"
            )
        reach = 10 * max(height, width)  # the C library also draws what is outside
        if not -reach <= min(polygon) <= max(polygon) <= reach:
            raise MaskError(f"has a polygon far outside its image of {width} x {height}")
    return segmentation, changed


def _run_lengths(given: dict[str, Any], height: int, width: int) -> tuple[Any, str | None]:
    counts, size = given.get("counts"), given.get("size")
    if not (isinstance(size, list) and len(size) == 2 and all(map(is_whole, size))):
        raise MaskError(f"has run lengths of size {size!r}; expected [height, width]")
    if [int(side) for side in size] != [height, width]:
        turned = ", which is [width, height]" if size == [width, height] else ""
        raise MaskError(
            f"has run lengths of size {size}{turned}; expected its image's [height, width], "
            f"{[height, width]}"
        )
    if isinstance(counts, str):
        runs = _decoded(counts)
    elif isinstance(counts, list) and all(map(is_whole, counts)):
        runs = [int(run) for run in counts]
    else:
        raise MaskError("has run lengths without counts: expected text or a list of whole numbers")
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise MaskError(
            f"has run lengths that fill {sum(runs):,} pixels; expected {height} x {width} = "
            f"{height * width:,}"
        )
    if isinstance(counts, str):
        return {**given, "size": [height, width]}, None
    return run_lengths.frPyObjects({"counts": runs, "size": [height, width]}, height, width), None


def _decoded(text: str) -> list[int]:
    """COCO's compressed counts as numbers (``rleFrString`` of its mask library).

    Five bits per character from '0' on, lowest first; the sixth bit marks continuation, and from
    the fourth number on each is the difference to the one two places before.

    Raises:
        MaskError: for invalid characters or an unterminated number.
    """
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > 60:
            raise MaskError("has compressed run lengths that are damaged")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise MaskError("has compressed run lengths that are cut off")
    return runs


def extent(segmentation: Any) -> Box | None:
    """Left, top, right, bottom of a mask in normal form; None for one without any pixel."""
    if isinstance(segmentation, dict):
        x, y, width, height = (float(v) for v in run_lengths.toBbox(segmentation))
        return (x, y, x + width, y + height) if width and height else None
    across = [x for polygon in segmentation for x in polygon[::2]]
    down = [y for polygon in segmentation for y in polygon[1::2]]
    return min(across), min(down), max(across), max(down)


def outline_area(segmentation: Any) -> float:
    """Area of a mask, from its polygons' corners if any (fast, and close to the pixel count)."""
    if isinstance(segmentation, dict):
        return float(run_lengths.area(segmentation))
    total = 0.0
    for polygon in segmentation:
        xs, ys = polygon[::2], polygon[1::2]
        pairs = zip(xs, ys, xs[1:] + xs[:1], ys[1:] + ys[:1], strict=True)
        total += abs(sum(x * v - u * y for x, y, u, v in pairs)) / 2
    return total


def pixel_area(segmentation: Any, height: int, width: int) -> float:
    """Number of a mask's pixels within its image, as pycocotools draws it."""
    return float(run_lengths.area(as_run_lengths(segmentation, height, width)))


def as_run_lengths(segmentation: Any, height: int, width: int) -> Any:
    """A mask in normal form as compressed run lengths."""
    if isinstance(segmentation, dict):
        return segmentation
    return run_lengths.merge(run_lengths.frPyObjects(segmentation, height, width))
