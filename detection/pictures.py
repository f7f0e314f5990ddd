"""Images of an evaluation, worst first: predictions next to ground truth.

It shows the six test images with the largest error, and six more at equal steps down to the best.

The error of an image is 1 - F1 of its boxes at IoU 0.5, over detections with a score of at least
0.5. Crowds and difficult objects, and detections on them, do not count.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import MetadataCatalog
from PIL import Image, ImageDraw

from detection.datasets import contents, in_order, layout
from detection.evaluators import results_file
from intl_transfer.data.class_names import unique_names
from intl_transfer.data.drawing import DrawnObject, draw_objects, mask_outlines
from intl_transfer.data.fonts import draw_text, font
from intl_transfer.data.images import read_image
from intl_transfer.runs import write_atomically

SCORE = 0.5  # detections below it are neither counted nor drawn
IOU = 0.5
COUNT = 12
SIDE = 480  # longest side of a stored image
_TILE, _GAP, _TEXT = 340, 12, 14  # of the contact sheet


@dataclass(frozen=True)
class ImageDetections:
    """One test image with ground truth and predictions.

    Attributes:
        file: the image.
        truth: its objects; ``is_match``: whether each was found.
        predictions: its detections; ``is_match``: whether each is correct.
        masks: COCO segmentations of both, or None.
    """

    file: str
    truth: list[DrawnObject]
    predictions: list[DrawnObject]
    masks: tuple[list[Any], list[Any]]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Objects found, objects missed, false detections."""
        found = sum(object_.is_match is True for object_ in self.truth)
        missed = sum(object_.is_match is False for object_ in self.truth)
        return found, missed, sum(object_.is_match is False for object_ in self.predictions)

    @property
    def error(self) -> float:
        """1 - F1; 0 for an image without objects and detections."""
        found, missed, false = self.counts
        mistakes = missed + false
        return mistakes / (2 * found + mistakes) if mistakes else 0.0


def write_pictures(folder: str | Path, name: str) -> None:
    """Writes ``predictions.json``, ``predictions/`` and ``predictions.png`` of a run.

    They use the detections of the last evaluation in the folder.

    Args:
        folder: the run directory.
        name: the data set that was evaluated.
    """
    folder = Path(folder)
    ordered = sorted(pictures(folder, name), key=lambda one: (-one.error, -sum(one.counts[1:])))
    chosen = [ordered[place] for place in _chosen(len(ordered))]
    classes = unique_names(
        MetadataCatalog.get(name).thing_classes
    )  # known from reading the data set
    shutil.rmtree(folder / "predictions", ignore_errors=True)
    (folder / "predictions").mkdir(parents=True)
    entries, small = [], []
    for number, picture in enumerate(chosen):
        image = Image.fromarray(read_image(picture.file))
        image, picture = _resized(image, _outlined(picture), SIDE)
        place = f"predictions/{number:03d}.jpg"
        image.save(folder / place, quality=85, optimize=True)
        entries.append(_entry(place, image, picture))
        small.append((image, picture))
    content = {"score": SCORE, "iou": IOU, "classes": classes, "images": entries}
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    write_atomically(folder / "predictions.json", lambda out: out.write(text.encode()))
    _sheet(small, classes, name).save(folder / "predictions.png", optimize=True)


def _chosen(count: int) -> list[int]:
    """Indices in the order of errors: the worst, then equal steps down to the best."""
    if count <= COUNT:
        return list(range(count))
    worst = COUNT // 2
    steps = np.linspace(worst, count - 1, COUNT - worst)
    return [*range(worst), *(round(step) for step in steps.tolist())]


def pictures(folder: Path, name: str) -> list[ImageDetections]:
    """All images of a test set with a run's detections."""
    by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for d in json.loads(results_file(folder, name).read_bytes()):
        if d["score"] >= SCORE:
            by_image[d["image_id"]].append(d)
    truths = contents(name)
    places = {number: label for label, number in enumerate(truths.category_ids)}
    found = []
    for key in in_order(truths, layout(name)):
        annotations = truths.annotations.get(key, [])
        truth = [DrawnObject(label=a.label, box=a.box) for a in annotations]
        ignored, masks = [a.ignored for a in annotations], [a.segmentation for a in annotations]
        detections = sorted(by_image[key], key=lambda d: -d["score"])
        predictions = [
            DrawnObject(
                label=places[d["category_id"]],
                box=_corners(d["bbox"]),
                score=d["score"],
            )
            for d in detections
        ]
        theirs = [d.get("segmentation") for d in detections]
        matched = match_detections(truth, ignored, predictions)
        found.append(ImageDetections(str(truths.images[key].file), *matched, (masks, theirs)))
    return found


def match_detections(
    truth: Sequence[DrawnObject], ignored: Sequence[bool], predictions: Sequence[DrawnObject]
) -> tuple[list[DrawnObject], list[DrawnObject]]:
    """Matches detections to objects.

    Each detection, by descending score, is matched to the free object of its class with the largest
    IoU, if at least :data:`IOU`; otherwise it may be on an object that does not count.

    Args:
        truth: the objects.
        ignored: whether each does not count (crowd, difficult).
        predictions: by descending score.

    Returns:
        Both, with ``is_match`` set.
    """
    boxes = [
        np.array([[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in (t.box for t in objects)])
        for objects in (predictions, truth)
    ]
    overlaps = np.zeros((len(predictions), len(truth)))
    if overlaps.size:
        overlaps = mask_util.iou(boxes[0], boxes[1], [int(i) for i in ignored])
    taken = [False] * len(truth)
    matched = []
    for row, prediction in zip(overlaps, predictions, strict=True):
        is_match: bool | None = False
        alike = [i for i, t in enumerate(truth) if t.label == prediction.label and row[i] >= IOU]
        free = [i for i in alike if not ignored[i] and not taken[i]]
        if free:
            taken[max(free, key=lambda i: row[i])] = True
            is_match = True
        elif any(ignored[i] for i in alike):
            is_match = None
        matched.append(replace(prediction, is_match=is_match))
    objects = [
        replace(object_, is_match=None if out else hit)
        for object_, out, hit in zip(truth, ignored, taken, strict=True)
    ]
    return objects, matched


def _outlined(picture: ImageDetections) -> ImageDetections:
    """Adds outlines of masks, which only shown images need."""
    truth, predictions = (
        [replace(t, polygons=_outlines(m)) for t, m in zip(objects, masks, strict=True)]
        for objects, masks in zip((picture.truth, picture.predictions), picture.masks, strict=True)
    )
    return replace(picture, truth=truth, predictions=predictions)


def _corners(box: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = box
    return x, y, x + width, y + height


def _outlines(segmentation: Any) -> list[list[float]]:
    """Polygons of a COCO segmentation."""
    if segmentation is None or isinstance(segmentation, list):
        return segmentation or []
    if isinstance(segmentation["counts"], list):
        segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
    return mask_outlines(mask_util.decode(segmentation))


def _resized(
    image: Image.Image, picture: ImageDetections, side: int, most: float = 1.0
) -> tuple[Image.Image, ImageDetections]:
    """Resizes image and objects to a longest side, with a maximum enlargement."""
    factor = min(most, side / max(image.size))
    if factor == 1.0:
        return image, picture
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS), replace(
        picture,
        truth=[object_.scaled(factor) for object_ in picture.truth],
        predictions=[object_.scaled(factor) for object_ in picture.predictions],
    )


def _entry(place: str, image: Image.Image, picture: ImageDetections) -> dict[str, Any]:
    return {
        "file": place,
        "width": image.width,
        "height": image.height,
        "error": round(picture.error, 4),
        "truth": [_object(object_) for object_ in picture.truth],
        "predictions": [
            {**_object(object_), "score": round(float(object_.score or 0), 4)}
            for object_ in picture.predictions
        ],
    }


def _object(object_: DrawnObject) -> dict[str, Any]:
    return {
        "class": object_.label,
        "right": object_.is_match,
        "box": [round(value, 1) for value in object_.box],
        "polygons": [_light(outline) for outline in object_.polygons],
    }


def _light(outline: Sequence[float]) -> list[float]:
    """An outline without invisible detail."""
    points = np.array(outline, dtype=np.float32).reshape(-1, 1, 2)
    fewer = cv2.approxPolyDP(points, 0.7, closed=True)
    kept = fewer if len(fewer) >= 3 else points
    return [round(float(value), 1) for value in kept.reshape(-1)]


def _sheet(
    entries: Sequence[tuple[Image.Image, ImageDetections]], classes: Sequence[str], name: str
) -> Image.Image:
    """Draws pairs of ground truth and predictions, two pairs per row."""
    small = [_resized(image, picture, _TILE, most=3) for image, picture in entries]
    rows = [small[i : i + 2] for i in range(0, len(small), 2)]
    heights = [max(image.height for image, _ in row) for row in rows]
    line = _TEXT + 8
    pair = 2 * _TILE + _GAP // 2
    columns = min(2, len(small))
    width = _GAP + columns * (pair + _GAP)
    height = 2 * _GAP + 2 * line + sum(h + line + _GAP for h in heights)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    title = f"{name}: the worst images, then in equal steps down to the best"
    draw_text(pen, (_GAP, _GAP + _TEXT + 2), title, _TEXT + 3, "black")
    legend = (
        "left: ground truth, right: predictions with a score of at least 0.5; dashed: missed or "
        "false; thin: not counted"
    )
    pen.text((_GAP, _GAP + line), legend, font=font(_TEXT - 1), fill="#555555")
    y = 2 * _GAP + 2 * line
    for row, tall in zip(rows, heights, strict=True):
        for column, (image, picture) in enumerate(row):
            x = _GAP + column * (pair + _GAP)
            found, missed, false = picture.counts
            caption = f"error {picture.error:.2f}: {found} found, {missed} missed, {false} false"
            pen.text((x, y), caption, font=font(_TEXT), fill="black")
            for objects in (picture.truth, picture.predictions):
                sheet.paste(draw_objects(image, objects, classes), (x, y + line))
                x += _TILE + _GAP // 2
        y += tall + line + _GAP
    return sheet
