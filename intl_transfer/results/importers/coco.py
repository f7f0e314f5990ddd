"""COCO's own format of results: detections as one JSON list, against an annotation file.

``[{"image_id": 42, "category_id": 18, "bbox": [x, y, w, h], "score": 0.236}, ...]``; masks have a
``segmentation`` (RLE or polygons). The annotation file is read by fine-tuning's reader
(:mod:`intl_transfer.data.coco_annotations`), and metrics are those of its evaluation
(:mod:`intl_transfer.data.coco_metrics`), matched by pycocotools: sizes of masks are areas of masks,
also where detections have boxes beside them, as in Detectron2.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intl_transfer.errors import UserError
from intl_transfer.files.jsons import parse_json
from intl_transfer.results.importers.found import Found, percentage

if TYPE_CHECKING:
    from intl_transfer.data.annotations import Contents

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
    from intl_transfer.data.detection_contents import open_coco_file

    contents = open_coco_file(annotations)
    if contents.problems:
        raise UserError(contents.problems[0])
    for note in contents.notes:
        print(f"note: {annotations}: {note}", file=sys.stderr)
    detections = _checked(source, _list_of(source), annotations, contents)
    tasks = [("bbox", "box"), ("segm", "mask")]
    keys = {"bbox": "bbox", "segm": "segmentation"}
    metrics = {
        task: _evaluate(source, detections, contents, kind)
        for kind, task in tasks
        if detections and all(keys[kind] in one for one in detections)
    }
    if not metrics:
        raise UserError(f"{source}: expected detections with bbox or segmentation, found none")
    return Found(metrics, "COCO results, by pycocotools", stated={"images": len(contents.images)})


def _list_of(source: Path) -> list[dict[str, Any]]:
    value = parse_json(_bytes(source), str(source))
    if not isinstance(value, list):
        found = type(value).__name__
        raise UserError(f"{source}: expected a JSON list of detections, found {found}")
    return value


def _checked(
    source: Path, detections: list[Any], annotations: Path, contents: Contents
) -> list[dict[str, Any]]:
    """Detections with the ids that the truth has.

    Raises:
        UserError: for one that lacks a key, is of an unknown image or category, or has a score or
            box that is not of finite numbers: they have no order, and no overlap.
    """
    from intl_transfer.data.annotations import shown
    from intl_transfer.data.coco_ids import KnownIds
    from intl_transfer.data.segmentations import is_number

    images, categories = KnownIds(contents.images), KnownIds(contents.labels)
    found = []
    for number, one in enumerate(detections):
        missing = [key for key in _NEEDED if not isinstance(one, dict) or key not in one]
        if missing:
            raise UserError(f"{source}, detection {number}: no {', '.join(missing)}")
        image = images.find(one["image_id"])
        category = categories.find(one["category_id"])
        if image not in contents.images or category not in contents.labels:
            raise UserError(
                f"{source}, detection {number}: image {one['image_id']}, category "
                f"{one['category_id']} is not in {annotations}; do they belong together?"
            )
        if not is_number(one["score"]):
            raise UserError(
                f"{source}, detection {number}: score is {shown(one['score'])}; expected a "
                "finite number"
            )
        box = one.get("bbox", [0] * 4)
        if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
            raise UserError(
                f"{source}, detection {number}: bbox is {shown(box)}; expected four finite numbers"
            )
        number_of_class = contents.category_ids[contents.labels[category]]
        found.append({**one, "image_id": image, "category_id": number_of_class})
    return found


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None


def _evaluate(
    source: Path, detections: list[dict[str, Any]], contents: Contents, task: str
) -> dict[str, Any]:
    """The twelve metrics in %, and AP per class, as fine-tuning's evaluations compute them."""
    from intl_transfer.data.coco_metrics import REFERENCE, coco_metrics
    from intl_transfer.data.detection_contents import truth_of

    truth = truth_of(contents)
    found = _as_run_lengths(source, detections, truth) if task == "segm" else detections
    try:
        result = coco_metrics(truth, found, task, REFERENCE)
    except (KeyError, TypeError, ValueError, IndexError, AssertionError) as error:
        raise UserError(f"{source}: pycocotools cannot read it ({error!r})") from None
    names = dict(zip(contents.category_ids, contents.classes, strict=True))
    per_class = {names[key]: percentage(value, 100) for key, value in result.class_ap().items()}
    metrics = {name: percentage(value, 100) for name, value in result.metrics().items()}
    return {**metrics, "per_class": per_class}


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
