"""Pixel masks as polygons that decode to exactly the same pixels."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import Polygon, box


def mask_to_polygons(mask: NDArray[np.bool_]) -> list[list[int]]:
    """Outlines a mask along its pixels' edges.

    COCO polygons have no holes, so that a region with a hole is cut into pieces without.

    Args:
        mask: shape (H, W).

    Returns:
        Polygons ``[x0, y0, x1, y1, ...]`` in pixel-edge coordinates (0 to W, 0 to H), disjoint;
        decoded by pycocotools they give ``mask`` exactly.
    """
    runs = []
    for y in np.flatnonzero(mask.any(axis=1)):
        row = np.concatenate([[0], mask[y].astype(np.int8), [0]])
        starts, ends = np.flatnonzero(np.diff(row) == 1), np.flatnonzero(np.diff(row) == -1)
        runs += [box(int(a), int(y), int(b), int(y) + 1) for a, b in zip(starts, ends, strict=True)]
    region = shapely.unary_union(runs)
    polygons = []
    for part in _without_holes(region):
        corners = np.asarray(part.exterior.coords)[:-1]
        before, after = np.roll(corners, 1, axis=0), np.roll(corners, -1, axis=0)
        straight = ((before == corners) & (corners == after)).any(axis=1)
        polygons.append([int(v) for v in corners[~straight].ravel()])
    return polygons


def _without_holes(region: object) -> list[Polygon]:
    parts = [p for p in getattr(region, "geoms", [region]) if isinstance(p, Polygon) and p.area > 0]
    whole: list[Polygon] = []
    for part in parts:
        if not part.interiors:
            whole.append(part)
            continue
        # A cut along the left edge of a hole opens the hole to the right-hand piece.
        cut = min(ring.bounds[0] for ring in part.interiors)
        left, low, right, high = part.bounds
        for side in (box(left, low, cut, high), box(cut, low, right, high)):
            whole += _without_holes(part.intersection(side))
    return whole
