"""COCO and VOC evaluation, with metrics per class and precision-recall curves.

Both evaluators write the detections, in COCO's results format, and the curves. They use only
Detectron2's ``DatasetEvaluator`` and public functions.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm

from detection.curves import curve_entry, write_curves
from detection.datasets import contents, layout
from detection.voc_metrics import THRESHOLDS, VocDetection, VocObject, voc_curves
from intl_transfer.data.annotations import Annotation
from intl_transfer.data.class_names import unique_names
from intl_transfer.data.coco_metrics import coco_metrics
from intl_transfer.data.detection_contents import truth_of
from intl_transfer.runs import write_atomically

_LOG = logging.getLogger("detectron2.evaluation")
_TASKS = {"bbox": "box", "segm": "mask"}
_SIZES = ("APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def build_evaluator(name: str, output_dir: str | None) -> DatasetEvaluator:
    """The evaluator for a data set's layout.

    Args:
        name: a registered data set.
        output_dir: for detections and curves (None or empty: not written).
    """
    kind = CocoEvaluator if layout(name) == "coco" else VOCEvaluator
    return kind(name, output_dir)


def results_file(folder: str | Path, name: str) -> Path:
    """The path of the detections of a data set's last evaluation, in COCO's results format."""
    return Path(folder) / f"{layout(name)}_instances_results.json"


class CocoEvaluator(DatasetEvaluator):
    """COCO's metrics for boxes and, if detections and all objects have masks, for masks.

    Args:
        name: a registered data set.
        output_dir: where ``coco_instances_results.json`` and ``curves.json`` are written, if
            anywhere.
    """

    def __init__(self, name: str, output_dir: str | None = None) -> None:
        self._name = name
        self._folder = Path(output_dir) if output_dir else None
        truth = contents(name)
        self._truth = truth_of(truth)
        self._ids, self._classes = truth.category_ids, truth.classes
        self._without_masks = truth.masks[1]
        self.reset()

    def reset(self) -> None:
        """Discards all detections."""
        self._found: list[dict[str, Any]] = []
        self._masks = False

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Adds the detections of some images."""
        for one, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            self._masks |= instances.has("pred_masks")  # also without detections
            self._found.extend(instances_to_coco_json(instances, one["image_id"]))

    def evaluate(self) -> dict[str, Any]:
        """Returns ``{"bbox": {...}, "segm": {...}}`` in %, on the main process.

        Each task has the twelve metrics of :data:`intl_transfer.data.coco_metrics.METRICS` and
        ``AP-CLASS``; undefined ones are NaN. Without detections they are 0.
        """
        gathered = comm.gather((self._found, self._masks), dst=0)
        if not comm.is_main_process():
            return {}
        ids, classes = self._ids, dict(zip(self._ids, unique_names(self._classes), strict=True))
        found = [
            {**d, "category_id": ids[d["category_id"]]} for share, _ in gathered for d in share
        ]
        if self._folder is not None:
            _write(results_file(self._folder, self._name), found)
        if "annotations" not in self._truth.dataset:
            _LOG.info("%s has no annotations: detections are written, not scored", self._name)
            return {}
        results: dict[str, Any] = {}
        curves: dict[str, Any] = {}
        masks = any(masks for _, masks in gathered)
        if masks and self._without_masks:  # a detector of masks on a set of boxes
            print(f"only boxes are evaluated: {self._without_masks} objects have no mask")
        for task in ("bbox", *(["segm"] if masks and not self._without_masks else [])):
            began = time.perf_counter()
            metrics = coco_metrics(self._truth, found, task)
            _LOG.info(
                "%s: %d detections evaluated by %s in %.1f s",
                *(task, len(found), metrics.engine, time.perf_counter() - began),
            )
            per_class = metrics.class_ap()
            results[task] = {
                **{key: 100 * value for key, value in metrics.metrics().items()},
                **{f"AP-{classes[i]}": 100 * per_class[i] for i in metrics.categories},
            }
            curves[_TASKS[task]] = {
                f"{iou:.2f}": curve_entry({classes[i]: c for i, c in metrics.curve(iou).items()})
                for iou in (0.5, 0.75)
            }
        if self._folder is not None:
            write_curves(self._folder, curves)
        return results


class VOCEvaluator(DatasetEvaluator):
    """VOC's metrics: the 11-point metric for sets of 2007, that of 2012 otherwise.

    As in Detectron2, scores are rounded to three decimals and corners to one before matching.
    Classes without a counted object in the test set have no AP: they are excluded from the mean,
    which Detectron2 would make NaN.

    Args:
        name: a registered data set.
        output_dir: where ``voc_instances_results.json`` and ``curves.json`` are written, if
            anywhere.
    """

    def __init__(self, name: str, output_dir: str | None = None) -> None:
        self._name = name
        self._folder = Path(output_dir) if output_dir else None
        truth = contents(name)
        self._classes = unique_names(truth.classes)
        self._eleven_points = MetadataCatalog.get(name).year == 2007
        self._objects = {
            image: [_voc_object(a, self._classes) for a in truth.annotations.get(image, ())]
            for image in truth.images
        }
        self._found: list[dict[str, Any]] = []

    def reset(self) -> None:
        """Discards all detections."""
        self._found = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Adds the detections of some images."""
        for one, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            for box, label, score in zip(
                instances.pred_boxes.tensor.tolist(),
                instances.pred_classes.tolist(),
                instances.scores.tolist(),
                strict=True,
            ):
                self._found.append(
                    {"image_id": one["image_id"], "category_id": label, "score": score, "box": box}
                )

    def evaluate(self) -> dict[str, Any]:
        """Returns ``{"bbox": {"AP", "AP50", "AP75", "AP-CLASS"...}}`` in %, on the main process."""
        gathered = comm.gather(self._found, dst=0)
        if not comm.is_main_process():
            return {}
        found = list(itertools.chain(*gathered))
        of_class: list[list[VocDetection]] = [[] for _ in self._classes]
        for d in found:
            x0, y0, x1, y1 = d["box"]
            # VOC counts pixels from 1; Detectron2 took 1 from the first corner on loading.
            corners = (x0 + 1, y0 + 1, x1, y1)
            left, top, right, bottom = (float(f"{np.float32(value):.1f}") for value in corners)
            box = (left, top, right, bottom)
            detection = VocDetection(d["image_id"], float(f"{d['score']:.3f}"), box)
            of_class[d["category_id"]].append(detection)
        curves = {
            name: voc_curves(self._objects, detections, name)
            for name, detections in zip(self._classes, of_class, strict=True)
        }
        nothing = [math.nan] * len(THRESHOLDS)
        precision = {
            name: nothing if own is None else [100 * c.ap(self._eleven_points) for c in own]
            for name, own in curves.items()
        }
        if self._folder is not None:
            _write(results_file(self._folder, self._name), [_as_coco(d) for d in found])
            points = np.linspace(0, 1, 101)
            entry = curve_entry(
                {
                    name: None if own is None else np.array([own[0].at(p) for p in points])
                    for name, own in curves.items()
                }
            )
            write_curves(self._folder, {"voc": {"0.50": entry}})
        table = np.array(list(precision.values()))
        metrics: dict[str, float] = {
            "AP": _mean(table),
            "AP50": _mean(table[:, 0]),
            "AP75": _mean(table[:, 5]),
        }
        metrics.update({f"AP-{name}": float(np.mean(aps)) for name, aps in precision.items()})
        return {"bbox": metrics}


def _voc_object(annotation: Annotation, classes: list[str]) -> VocObject:
    """An object with VOC's corners: 1-based and inclusive."""
    left, top, right, bottom = annotation.box
    corners = (left + 1.0, top + 1.0, right, bottom)
    return VocObject(classes[annotation.label], corners, annotation.ignored)


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else math.nan


def _as_coco(detection: dict[str, Any]) -> dict[str, Any]:
    x0, y0, x1, y1 = detection["box"]
    rest = {key: value for key, value in detection.items() if key != "box"}
    return {**rest, "bbox": [x0, y0, x1 - x0, y1 - y0]}


def _write(file: Path, found: list[dict[str, Any]]) -> None:
    write_atomically(file, lambda out: out.write(json.dumps(found).encode()))


def summarize(results: dict[str, Any], name: str) -> dict[str, Any]:
    """Converts an evaluator's output to the form of ``results.json``.

    Args:
        results: by task (``bbox``, ``segm``), metrics in %.
        name: the data set.

    Returns:
        ``{"box": {...}, "mask": {...}}`` or ``{"voc": {...}}``, each with ``AP``, ``AP50``,
        ``AP75`` and ``per_class``; for COCO also AP by size (``APs``, ``APm``, ``APl``) and
        recall (``AR1``, ``AR10``, ``AR100``, ``ARs``, ``ARm``, ``ARl``). Undefined metrics are
        None.
    """
    coco = layout(name) == "coco"
    tasks = _TASKS if coco else {"bbox": "voc"}
    keys = ("AP", "AP50", "AP75", *(_SIZES if coco else ()))
    classes = unique_names(MetadataCatalog.get(name).thing_classes)
    return {
        ours: {
            **{key: _number(results[theirs].get(key)) for key in keys},
            "per_class": {c: _number(results[theirs].get(f"AP-{c}")) for c in classes},
        }
        for theirs, ours in tasks.items()
        if theirs in results
    }


def _number(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else round(float(value), 4)
