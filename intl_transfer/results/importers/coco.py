"""COCO's own format of results: detections as one JSON list, against an annotation file.

``[{"image_id": 42, "category_id": 18, "bbox": [x, y, w, h], "score": 0.236}, ...]``; masks have a
``segmentation`` (RLE or polygons). Metrics are those of fine-tuning's own evaluation
(:mod:`intl_transfer.data.coco_metrics`), matched by pycocotools: sizes of masks are areas of masks,
also where detections have boxes beside them, as in Detectron2.
"""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.files.jsons import parse_json
from intl_transfer.results.importers.found import Found, percentage

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
    try:
        numbered = [{**one, "id": place} for place, one in enumerate(value["annotations"], 1)]
        is_zero = any(one.get("id") == 0 for one in value["annotations"])
    except (TypeError, AttributeError):
        raise UserError(f"{file}: expected annotations that are JSON objects") from None
    if is_zero:  # as where fine-tuning evaluates
        print(
            f"{file}: annotations counted from 0 are numbered from 1: pycocotools never counts "
            "annotation 0 as found",
            file=sys.stderr,
        )
    return {**value, "annotations": numbered}


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None


def _evaluate(
    source: Path, detections: list[dict[str, Any]], truth: dict[str, Any], task: str
) -> dict[str, Any]:
    """The twelve metrics in %, and AP per class, as fine-tuning's evaluations compute them."""
    from pycocotools.coco import COCO

    from intl_transfer.data.class_names import unique_names
    from intl_transfer.data.coco_metrics import REFERENCE, coco_metrics

    with contextlib.redirect_stdout(io.StringIO()):
        try:
            known = COCO()
            known.dataset = truth
            known.createIndex()
            found = _as_run_lengths(source, detections, known) if task == "segm" else detections
            result = coco_metrics(known, found, task, REFERENCE)
        except (KeyError, TypeError, ValueError, IndexError, AssertionError) as error:
            raise UserError(f"{source}: pycocotools cannot read it ({error!r})") from None
    by_id = {one["id"]: str(one.get("name", one["id"])) for one in truth["categories"]}
    names = unique_names([by_id[category] for category in result.categories])
    per_class = [percentage(value, 100) for value in result.class_ap().values()]
    metrics = {name: percentage(value, 100) for name, value in result.metrics().items()}
    return {**metrics, "per_class": dict(zip(names, per_class, strict=True))}


def _as_run_lengths(
    source: Path, detections: list[dict[str, Any]], truth: Any
) -> list[dict[str, Any]]:
    """Detections with masks as compressed RLE, the one form that pycocotools takes of results.

    Raises:
        UserError: for an invalid mask.
    """
    from intl_transfer.data.segmentations import MaskError, as_run_lengths, normalized

    found = []
    for number, one in enumerate(detections):
        image = truth.imgs[one["image_id"]]
        size = image["height"], image["width"]
        try:
            mask, _ = normalized(one["segmentation"], *size)
        except MaskError as error:
            raise UserError(f"{source}, detection {number}: segmentation {error}") from None
        if mask is None:
            raise UserError(f"{source}, detection {number}: segmentation is empty")
        found.append({**one, "segmentation": as_run_lengths(mask, *size)})
    return found
