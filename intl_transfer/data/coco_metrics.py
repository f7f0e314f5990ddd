"""COCO's twelve metrics and precision-recall curves, as computed by pycocotools.

Matching and counting are done by faster-coco-eval if installed, otherwise by pycocotools. Overlaps,
mask areas and the metrics come from the same code for both, so they can only differ in matching;
tests compare them on random and on edge-case inputs.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from intl_transfer.errors import UserError

try:  # an optional dependency
    import faster_coco_eval
except (ImportError, ValueError):  # ValueError: built for another numpy
    faster_coco_eval = None

_LOG = logging.getLogger("detectron2.evaluation")
FAST, REFERENCE = "faster-coco-eval", "pycocotools"
LIMITS = [1, 10, 100]  # detections counted per image and class
# Definition of each metric: precision or recall, IoU (None: mean over all), area, limit.
_METRICS: dict[str, tuple[str, float | None, int, int]] = {
    "AP": ("precision", None, 0, 2),
    "AP50": ("precision", 0.5, 0, 2),
    "AP75": ("precision", 0.75, 0, 2),
    "APs": ("precision", None, 1, 2),
    "APm": ("precision", None, 2, 2),
    "APl": ("precision", None, 3, 2),
    "AR1": ("recall", None, 0, 0),
    "AR10": ("recall", None, 0, 1),
    "AR100": ("recall", None, 0, 2),
    "ARs": ("recall", None, 1, 2),
    "ARm": ("recall", None, 2, 2),
    "ARl": ("recall", None, 3, 2),
}
METRICS = tuple(_METRICS)


@dataclass(frozen=True)
class CocoMetrics:
    """The result of an evaluation.

    Attributes:
        precision: (IoU 10, recall 101, class, area 4, limit 3), -1 without objects.
        recall: (IoU 10, class, area 4, limit 3), -1 without objects.
        categories: the categories' ids, in the order of the arrays.
        engine: what computed it, ``faster-coco-eval`` or ``pycocotools``.
    """

    precision: np.ndarray
    recall: np.ndarray
    categories: list[int]
    engine: str

    def metrics(self) -> dict[str, float]:
        """The twelve metrics of ``COCOeval.summarize`` by name, 0 to 1; NaN if undefined."""
        arrays = {"precision": self.precision, "recall": self.recall}
        return {
            name: _mean(_at(arrays[kind], iou)[..., area, limit])
            for name, (kind, iou, area, limit) in _METRICS.items()
        }

    def class_ap(self) -> dict[int, float]:
        """AP of each category, by id; NaN for one without objects."""
        return {
            category: _mean(self.precision[:, :, index, 0, -1])
            for index, category in enumerate(self.categories)
        }

    def curve(self, iou: float) -> dict[int, np.ndarray | None]:
        """Precision at recalls 0, 0.01 ... 1 of each category; None for one without objects."""
        at = _at(self.precision, iou)[0, :, :, 0, -1]
        return {
            category: None if (at[:, index] < 0).any() else at[:, index]
            for index, category in enumerate(self.categories)
        }


def _at(array: np.ndarray, iou: float | None) -> np.ndarray:
    if iou is None:
        return array
    index = round((iou - 0.5) / 0.05)
    return array[index : index + 1]


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]
    return float(np.mean(values)) if values.size else float("nan")


def coco_metrics(
    truth: COCO, found: Sequence[dict[str, Any]], task: str, engine: str | None = None
) -> CocoMetrics:
    """Evaluates detections by the COCO protocol.

    Args:
        truth: the annotations; not modified.
        found: detections in COCO's results format: ``image_id``, ``category_id``, ``score`` and
            ``bbox`` (x, y, width, height) or ``segmentation`` (compressed RLE); not modified.
        task: ``bbox`` or ``segm``.
        engine: ``faster-coco-eval`` or ``pycocotools``; by default the first, if it is installed
            and supports the input (:func:`why_reference`).

    Returns:
        The metrics; 0 without detections.

    Raises:
        UserError: for detections of unknown images or categories, and for annotations without a
            required field.
    """
    _check_truth(truth, task)
    with _no_collection():
        detections = _detections(found, task)
        for kind, ids, known in (
            ("images", detections.images, truth.imgs),
            ("categories", detections.categories, truth.cats),
        ):
            unknown_ids = set(ids) - known.keys()
            if unknown_ids:
                raise UserError(
                    f"{len(unknown_ids)} {kind} have detections and are not in the annotations, "
                    f"the first: {min(unknown_ids, key=str)!r}. Are these the detections of "
                    "another data set?"
                )
        if engine is None:
            engine = REFERENCE if why_reference(truth, detections) else FAST
        evaluate = _evaluate_fast if engine == FAST else _evaluate_reference
        return evaluate(truth, detections, task)


def why_reference(truth: COCO, detections: _Detections | None = None) -> str | None:
    """Why pycocotools must be used; None if faster-coco-eval can be.

    The faster library stores ids of annotations as unsigned integers and others as floats, keeps
    annotations of one id apart and refuses NaN; pycocotools has no such limits.
    """
    if faster_coco_eval is None:
        return "faster-coco-eval is not installed"
    for kind, ids in (("image", truth.imgs), ("category", truth.cats)):
        if not all(type(i) is int and abs(i) < 2**53 for i in ids):
            return f"{kind} ids are not whole numbers below 2**53"
    if not all(type(i) is int and 0 <= i < 2**63 for i in truth.anns):
        return "annotation ids are not whole numbers from 0 to 2**63"
    if len(truth.anns) < len(truth.dataset["annotations"]):
        return "annotations have one id"
    if detections is not None and np.isnan(detections.score).any():
        return "a score is NaN"
    shapes = () if detections is None else detections.shapes
    if isinstance(shapes, np.ndarray) and np.isnan(shapes).any():
        return "a box is NaN"
    return None


@dataclass(frozen=True)
class _Detections:
    """Detections as columns.

    Attributes:
        images: their ids.
        categories: their ids.
        score: (D,).
        area: (D,), of the box or the mask.
        shapes: boxes (D, 4), or compressed RLEs.
    """

    images: list[Any]
    categories: list[int]
    score: np.ndarray
    area: np.ndarray
    shapes: Any

    def annotations(self) -> list[dict[str, Any]]:
        """Converts results like pycocotools' ``loadRes``, which modifies its input."""
        return [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "score": score,
                "area": area,
                "iscrowd": 0,
            }
            for number, image, category, score, area in zip(
                range(1, len(self.images) + 1),
                self.images,
                self.categories,
                self.score.tolist(),
                self.area.tolist(),
                strict=True,
            )
        ]


def _detections(found: Sequence[dict[str, Any]], task: str) -> _Detections:
    score = np.array([d["score"] for d in found], dtype=np.float64)
    shapes: Any
    if task == "bbox":
        shapes = np.array([d["bbox"] for d in found], dtype=np.float64).reshape(-1, 4)
        area = shapes[:, 2] * shapes[:, 3]
    else:
        shapes = [d["segmentation"] for d in found]
        # In chunks: pycocotools stores the number of masks in a byte.
        parts = [mask_util.area(shapes[i : i + 255]) for i in range(0, len(shapes), 255)]
        area = np.concatenate([np.zeros(0, np.uint32), *parts])
    images = [d["image_id"] for d in found]
    return _Detections(images, [d["category_id"] for d in found], score, area, shapes)


def _check_truth(truth: COCO, task: str) -> None:
    if 0 in truth.anns:
        _LOG.warning(
            "annotation 0 never counts as found: 0 is pycocotools' mark for 'unmatched'. Number "
            "the annotations from 1"
        )
    needed = ["area", "bbox", *(["segmentation"] if task == "segm" else [])]
    for annotation in truth.dataset["annotations"]:
        for key in needed:
            if key not in annotation:
                raise UserError(
                    f"annotation {annotation.get('id')} has no '{key}', which COCO's metrics for "
                    f"'{task}' need; add it to the annotation file"
                )


def _objects(truth: COCO) -> list[dict[str, Any]]:
    """Copies of the annotations, since both libraries modify them."""
    return [
        {
            "id": a["id"],
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "area": a["area"],
            "bbox": a["bbox"],
            "iscrowd": int(a.get("iscrowd", 0)),
        }
        for a in truth.dataset["annotations"]
    ]


def _evaluate_reference(truth: COCO, detections: _Detections, task: str) -> CocoMetrics:
    objects, annotations = _objects(truth), detections.annotations()
    key = "bbox" if task == "bbox" else "segmentation"
    for detection, shape in zip(annotations, detections.shapes, strict=True):
        detection[key] = shape
    if task == "segm":
        for thing, annotation in zip(objects, truth.dataset["annotations"], strict=True):
            thing["segmentation"] = annotation["segmentation"]
    sides = []
    with contextlib.redirect_stdout(io.StringIO()):
        for rows in (objects, annotations):
            side = COCO()
            side.dataset = _dataset(truth, rows)
            side.createIndex()
            sides.append(side)
        api = COCOeval(sides[0], sides[1], task)
        api.params.maxDets = list(LIMITS)
        api.evaluate()
        api.accumulate()
    return _result(api, REFERENCE)


class _Side:
    """The part of pycocotools' ``COCO`` that ``COCOeval`` needs, without building an index.

    Args:
        truth: the annotations, for images and categories.
        rows: annotations or detections of these images; all are evaluated.
    """

    def __init__(self, truth: COCO, rows: list[dict[str, Any]]) -> None:
        self._truth = truth
        self._rows = rows

    def getImgIds(self) -> list[int]:
        ids: list[int] = self._truth.getImgIds()
        return ids

    def getCatIds(self) -> list[int]:
        ids: list[int] = self._truth.getCatIds()
        return ids

    def getAnnIds(self, imgIds: Any = None, catIds: Any = None) -> Sequence[int]:
        return range(len(self._rows))

    def loadAnns(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        return self._rows


def _evaluate_fast(truth: COCO, detections: _Detections, task: str) -> CocoMetrics:
    class Evaluation(faster_coco_eval.COCOeval_faster):  # type: ignore[misc]  # of no known type
        """``COCOeval`` with given overlaps."""

        def computeIoU(self, imgId: int, catId: int) -> Any:
            return overlaps.get((int(imgId), int(catId)), [])

    overlaps = _overlaps(truth, detections, task)
    sides = [_Side(truth, rows) for rows in (_objects(truth), detections.annotations())]
    # As for boxes in both cases: shapes are not needed once overlaps and areas are known.
    api = Evaluation(*sides, "bbox")
    api.params.maxDets = list(LIMITS)
    api.evaluate()
    api.accumulate()
    return _result(api, FAST)


def _dataset(truth: COCO, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "images": truth.dataset["images"],
        "categories": truth.dataset["categories"],
        "annotations": rows,
    }


def _result(api: Any, engine: str) -> CocoMetrics:
    shape = api.eval["counts"]
    return CocoMetrics(
        precision=np.asarray(api.eval["precision"]).reshape(shape),
        recall=np.asarray(api.eval["recall"]).reshape(shape[0], *shape[2:]),
        categories=np.asarray(api.params.catIds).tolist(),
        engine=engine,
    )


def _overlaps(truth: COCO, detections: _Detections, task: str) -> dict[tuple[int, int], np.ndarray]:
    """IoU by pycocotools of every image and category that has both objects and detections.

    Returns:
        By image and category: (detections by descending score, at most 100; objects).
    """
    annotations = truth.dataset["annotations"]
    objects: dict[tuple[int, int], list[int]] = {}
    for index, a in enumerate(annotations):
        objects.setdefault((a["image_id"], a["category_id"]), []).append(index)
    candidates: dict[tuple[int, int], list[int]] = {}
    for index, key in enumerate(zip(detections.images, detections.categories, strict=True)):
        if key in objects:
            candidates.setdefault(key, []).append(index)
    crowds = [int(a.get("iscrowd", 0)) for a in annotations]
    if task == "bbox":
        boxes = np.array([a["bbox"] for a in annotations], dtype=np.float64)
    score = detections.score.tolist()
    overlaps = {}
    for key, indices in candidates.items():
        # Stable, as in the protocol: equal scores keep their order.
        ranked = sorted(indices, key=lambda index: -score[index])[: LIMITS[-1]]
        things = objects[key]
        ours: Any
        theirs: Any
        if task == "bbox":
            ours, theirs = detections.shapes[ranked], boxes[things]
        else:
            ours = [detections.shapes[i] for i in ranked]
            theirs = [truth.annToRLE(annotations[i]) for i in things]
        overlaps[key] = mask_util.iou(ours, theirs, [crowds[i] for i in things])
    return overlaps


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Disables garbage collection, which would scan millions of small objects in vain."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
