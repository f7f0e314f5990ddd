"""A look into a detection data set: some images decoded, and their annotations drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from pycocotools import mask as run_lengths

from intl_transfer.data import drawing
from intl_transfer.data.detection_contents import Contents, Thing
from intl_transfer.data.fonts import draw_text

_TILE, _COLUMNS, _TITLE = 320, 4, 16


def decoding_problems(contents: Contents, count: int = 64) -> list[str]:
    """Decodes images spread over the whole set and compares their sizes with the annotations'.

    Args:
        contents: of the set.
        count: how many images.

    Returns:
        One line for each image that cannot be decoded or has another size.
    """
    problems = []
    for key in spread(contents, count):
        picture = contents.pictures[key]
        try:
            with Image.open(picture.file) as image:
                # Annotations are of the image as it is seen.
                turned = ImageOps.exif_transpose(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            problems.append(f"{picture.file} cannot be decoded ({error})")
            continue
        if turned.size != (picture.width, picture.height):
            problems.append(
                f"{picture.file} is {turned.width} x {turned.height}, the annotations say "
                f"{picture.width} x {picture.height}"
            )
    return problems


def contact_sheet(contents: Contents, path: str | Path, count: int = 12) -> None:
    """Draws images spread over the set, each with boxes, masks and names.

    Crowds and difficult objects have thin boxes.

    Args:
        contents: of the set.
        path: the PNG to write.
        count: how many images.
    """
    keys = spread(contents, count, annotated=True)
    rows = max(1, -(-len(keys) // _COLUMNS))
    width, height = _COLUMNS * _TILE, rows * (_TILE + _TITLE)
    sheet = Image.new("RGB", (width, height), "white")
    for place, key in enumerate(keys):
        tile = _tile(contents, key)
        x, y = place % _COLUMNS * _TILE, place // _COLUMNS * (_TILE + _TITLE)
        sheet.paste(tile, (x + (_TILE - tile.width) // 2, y + _TITLE))
        title = contents.pictures[key].file.name
        draw_text(ImageDraw.Draw(sheet), (x + 3, y + 12), title[-44:], 11, "black")
    sheet.save(path)


def spread(contents: Contents, count: int, annotated: bool = False) -> list[object]:
    """Ids of pictures at even distances, those with objects only if asked for."""
    keys = [key for key in contents.pictures if not annotated or contents.has_things(key)]
    if len(keys) <= count:
        return keys
    return [keys[i * len(keys) // count] for i in range(count)]


def _tile(contents: Contents, key: object) -> Image.Image:
    picture = contents.pictures[key]
    try:
        with Image.open(picture.file) as opened:
            image = ImageOps.exif_transpose(opened.convert("RGB"))
    except (OSError, SyntaxError, ValueError):
        return Image.new("RGB", (_TILE, _TILE), "red")  # named among the problems
    scale = min(_TILE / image.width, _TILE / image.height)
    things = [_drawn(thing, contents.classes).scaled(scale) for thing in contents.things(key)]
    size = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
    return drawing.draw_things(image.resize(size), things, contents.classes)


def _drawn(thing: Thing, classes: tuple[str, ...]) -> drawing.Thing:
    outlines = [list(outline) for outline in thing.polygons]
    if thing.runs is not None:
        outlines = drawing.mask_outlines(_mask(thing.runs))
    label = classes.index(thing.name)
    return drawing.Thing(label, thing.box, outlines, right=None if thing.ignored else True)


def _mask(runs: dict[str, object]) -> np.ndarray:
    counts, size = runs["counts"], runs["size"]
    if isinstance(counts, list):
        runs = run_lengths.frPyObjects(runs, *size)  # type: ignore[misc]
    decoded: np.ndarray = run_lengths.decode(runs)
    return decoded
