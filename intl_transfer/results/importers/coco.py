"""COCO's own format of results: detections as one JSON list, against an annotation file.

``[{"image_id": 42, "category_id": 18, "bbox": [x, y, w, h], "score": 0.236}, ...]``; masks have a
``segmentation`` (RLE or polygons). Metrics are computed by pycocotools.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.files.jsons import parse_json
from intl_transfer.results.importers.found import Found, percentage

# The twelve metrics of COCOeval.stats, in its order; the first six are AP.
_STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_NEEDED = ("image_id", "category_id", "score")


def read(source: Path, annotations: Path | None) -> Found:
    """Evaluates detections.

    Args:
        source: the detections.
        annotations: COCO's ``instances_*.json``.

    Raises:
        UserError: if one of the files is invalid, or they do not belong together.
    """
    if annotations is None:
        raise UserError("results in COCO's format need --annotations instances_….json")
    detections, truth = _list_of(source), _truth(annotations)
    try:
        images = {image["id"] for image in truth["images"]}
        classes = {category["id"] for category in truth["categories"]}
    except (KeyError, TypeError):
        raise UserError(f"{annotations}: expected an id in every image and category") from None
    for number, one in enumerate(detections):
        missing = [key for key in _NEEDED if not isinstance(one, dict) or key not in one]
        if missing:
            raise UserError(f"{source}, detection {number}: no {', '.join(missing)}")
        known = all(isinstance(one[key], (int, str)) for key in _NEEDED[:2])
        if not known or one["image_id"] not in images or one["category_id"] not in classes:
            raise UserError(
                f"{source}, detection {number}: image {one['image_id']}, category "
                f"{one['category_id']} is not in {annotations}; do they belong together?"
            )
    tasks = [("bbox", "box"), ("segm", "mask")]
    keys = {"bbox": "bbox", "segm": "segmentation"}
    metrics = {
        task: _evaluate(source, detections, truth, kind)
        for kind, task in tasks
        if detections and all(keys[kind] in one for one in detections)
    }
    if not metrics:
        raise UserError(f"{source}: expected detections with bbox or segmentation, found none")
    return Found(metrics, "COCO results, by pycocotools", stated={"images": len(images)})


def _list_of(source: Path) -> list[dict[str, Any]]:
    value = parse_json(_bytes(source), str(source))
    if not isinstance(value, list):
        found = type(value).__name__
        raise UserError(f"{source}: expected a JSON list of detections, found {found}")
    return value


def _truth(file: Path) -> dict[str, Any]:
    value = parse_json(_bytes(file), str(file))
    parts = ("images", "annotations", "categories")
    good = isinstance(value, dict) and all(isinstance(value.get(part), list) for part in parts)
    if not good:
        raise UserError(f"{file}: expected COCO annotations with {', '.join(parts)}")
    truth: dict[str, Any] = value
    return truth


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None


def _evaluate(
    source: Path, detections: list[dict[str, Any]], truth: dict[str, Any], kind: str
) -> dict[str, Any]:
    """The twelve metrics in %, and AP per class."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        try:
            known = COCO()
            known.dataset = truth
            known.createIndex()
            found = known.loadRes([dict(one) for one in detections])
            if kind == "segm":
                for one in found.anns.values():
                    one.pop("bbox", None)
            evaluation = COCOeval(known, found, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        except (KeyError, TypeError, ValueError, IndexError, AssertionError) as error:
            raise UserError(f"{source}: pycocotools cannot read it ({error!r})") from None
    stats = [float(value) for value in evaluation.stats]
    # precision: thresholds, recalls, classes, areas, numbers of detections; -1 where undefined.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    names = {one["id"]: str(one.get("name", one["id"])) for one in truth["categories"]}
    per_class = {}
    for index, category in enumerate(evaluation.params.catIds):
        values = precision[:, :, index]
        values = values[values > -1]
        per_class[names[category]] = 100 * float(values.mean()) if values.size else None
    metrics = {name: percentage(value, 100) for name, value in zip(_STATS, stats, strict=True)}
    return {**metrics, "per_class": per_class}
