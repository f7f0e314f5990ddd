"""A contact sheet of a detection data set: some images decoded, and their annotations drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from pycocotools import mask as run_lengths

from intl_transfer.data import drawing
from intl_transfer.data.annotations import Annotation, Contents
from intl_transfer.data.detection_contents import spread
from intl_transfer.data.fonts import draw_text
from intl_transfer.data.images import read_image
from intl_transfer.errors import UserError

_TILE, _COLUMNS, _TITLE = 320, 4, 16


def contact_sheet(contents: Contents, path: str | Path, count: int = 12) -> None:
    """Draws evenly spaced images, each with boxes, masks and names.

    Crowds and difficult objects have thin boxes.

    Args:
        contents: of the set.
        path: the PNG to write.
        count: how many images.
    """
    keys = spread([key for key in contents.images if contents.annotations.get(key)], count)
    rows = max(1, -(-len(keys) // _COLUMNS))
    width, height = _COLUMNS * _TILE, rows * (_TILE + _TITLE)
    sheet = Image.new("RGB", (width, height), "white")
    for place, key in enumerate(keys):
        tile = _tile(contents, key)
        x, y = place % _COLUMNS * _TILE, place // _COLUMNS * (_TILE + _TITLE)
        sheet.paste(tile, (x + (_TILE - tile.width) // 2, y + _TITLE))
        title = contents.images[key].file.name
        draw_text(ImageDraw.Draw(sheet), (x + 3, y + 12), title[-44:], 11, "black")
    sheet.save(path)


def _tile(contents: Contents, key: Any) -> Image.Image:
    picture = contents.images[key]
    try:
        image = Image.fromarray(read_image(picture.file))
    except UserError:
        return Image.new("RGB", (_TILE, _TILE), "red")  # listed among the problems
    scale = min(_TILE / image.width, _TILE / image.height)
    objects = [_drawn(annotation).scaled(scale) for annotation in contents.annotations[key]]
    size = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
    return drawing.draw_objects(image.resize(size), objects, contents.classes)


def _drawn(annotation: Annotation) -> drawing.DrawnObject:
    mask = annotation.segmentation
    outlines = drawing.mask_outlines(run_lengths.decode(mask)) if isinstance(mask, dict) else mask
    is_match = None if annotation.ignored else True
    return drawing.DrawnObject(annotation.label, annotation.box, outlines or (), is_match=is_match)
