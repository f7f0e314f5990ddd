"""Images as data URIs, scaled down, with their detections."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from intl_transfer.data.images import read_image
from intl_transfer.errors import UserError
from intl_transfer.files.jsons import parse_json
from intl_transfer.results.report.values import mapping, number, sequence, text

PREDICTIONS = "predictions.json"
SHEET = "predictions.png"
VIEWS = "views.png"
_SIDE = 360
_SHEET_SIDE = 900
_OBJECTS = 60  # per image, best scores first
_LEAST_SCORE = 0.05


def data_uri(file: Path, side: int) -> tuple[str, float, tuple[int, int]] | None:
    """An image for embedding in the page.

    Args:
        file: PNG, JPEG or any other format of :mod:`intl_transfer.data.images`.
        side: maximum of the longer side, in pixels.

    Returns:
        The URI, the scale factor, and the new width and height; None if missing or unreadable.
    """
    try:
        small = Image.fromarray(read_image(file))
    except UserError:
        return None
    width = small.width
    small.thumbnail((side, side))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=80, optimize=True)
    code = base64.b64encode(out.getvalue()).decode()
    return f"data:image/jpeg;base64,{code}", small.width / width, small.size


def read_views(folder: Path) -> str | None:
    """The image of a pretraining run's views."""
    found = data_uri(folder / VIEWS, _SHEET_SIDE)
    return found[0] if found else None


def read_predictions(folder: Path, count: int) -> dict[str, Any]:
    """Images with a detection run's detections.

    Args:
        folder: the run directory.
        count: maximum number of images.

    Returns:
        ``classes`` and ``images`` as in ``predictions.json``, each with ``uri`` instead of ``file``
        and coordinates in pixels of that image, and ``least``, the score threshold for storing
        detections. A run without that file has ``sheet``, its ``predictions.png``. Empty if there
        is neither.
    """
    if count < 1:
        return {}
    try:
        content = mapping(parse_json((folder / PREDICTIONS).read_bytes(), PREDICTIONS))
    except (OSError, UserError):
        sheet = data_uri(folder / SHEET, _SHEET_SIDE)
        return {"sheet": sheet[0]} if sheet else {}
    classes = [text(name) or "" for name in sequence(content.get("classes"))]
    images = []
    for entry in map(mapping, sequence(content.get("images"))):
        file = folder / str(entry.get("file"))
        # A shared page must not include files from elsewhere on the disk.
        if not file.resolve().is_relative_to(folder.resolve()):
            continue
        if (found := data_uri(file, _SIDE)) is None:
            continue
        uri, scale, (width, height) = found
        image = {"uri": uri, "width": width, "height": height, "error": number(entry.get("error"))}
        for role in ("truth", "predictions"):
            image[role] = list(_objects(sequence(entry.get(role)), len(classes), scale))[:_OBJECTS]
        images.append(image)
        if len(images) == count:
            break
    least = number(content.get("score"))
    return {"classes": classes, "images": images, "least": _LEAST_SCORE if least is None else least}


def _objects(entries: list[Any], classes: int, scale: float) -> Iterator[dict[str, Any]]:
    known = [entry for entry in map(mapping, entries) if _coordinates(entry.get("box"), 4)]
    known.sort(key=lambda entry: -(number(entry.get("score")) or 0))
    for entry in known:
        label, score = entry.get("class"), number(entry.get("score"), 3)
        if score is not None and score < _LEAST_SCORE:
            continue
        polygons = [p for p in sequence(entry.get("polygons")) if _coordinates(p, None)]
        yield {
            "class": label if isinstance(label, int) and 0 <= label < classes else None,
            "score": score,
            "box": _scaled(entry["box"], scale),
            "polygons": [_scaled(polygon, scale) for polygon in polygons],
        }


def _coordinates(value: Any, length: int | None) -> bool:
    if not isinstance(value, list) or any(number(v) is None for v in value):
        return False
    return len(value) == length if length else len(value) >= 6 and len(value) % 2 == 0


def _scaled(values: list[float], scale: float) -> list[float]:
    return [round(value * scale, 1) for value in values]
