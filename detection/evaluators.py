"""Evaluation as COCO and as VOC 2007, with figures per class."""

from __future__ import annotations

import math
import os
import tempfile
from collections import OrderedDict, defaultdict
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.evaluation.pascal_voc_evaluation import voc_eval
from detectron2.utils import comm

from detection.datasets import layout


def build_evaluator(name: str, output_dir: str) -> DatasetEvaluator:
    """The evaluator that a data set's layout asks for.

    Args:
        name: a registered data set.
        output_dir: where COCO predictions are written (None writes nothing).
    """
    if layout(name) == "coco":
        # The compiled evaluator is faster and approximate; pycocotools is the reference.
        return COCOEvaluator(name, output_dir=output_dir, use_fast_impl=False)
    return VOCEvaluator(name)


class VOCEvaluator(PascalVOCDetectionEvaluator):
    """Detectron2's VOC evaluation, with the AP of every class.

    VOC 2007 is scored by its 11-point metric. Classes without any counted object in the test set
    have no AP: they are left out of the mean, where Detectron2 would make all of it NaN.
    """

    def evaluate(self) -> dict[str, Any] | None:
        """Returns ``{"bbox": {"AP", "AP50", "AP75", "AP-CLASS"...}}`` in %, on the main process."""
        gathered = comm.gather(self._predictions, dst=0)
        if not comm.is_main_process():
            return None
        lines: dict[int, list[str]] = defaultdict(list)
        for predictions in gathered:
            for label, own in predictions.items():
                lines[label].extend(own)
        precision = {
            name: self._class_ap(name, lines[i]) for i, name in enumerate(self._class_names)
        }
        counted = np.array([aps for aps in precision.values() if not math.isnan(aps[0])])
        if len(counted) == 0:
            counted = np.zeros((1, 10))
        figures: dict[str, float] = {
            "AP": float(counted.mean()),
            "AP50": float(counted[:, 0].mean()),
            "AP75": float(counted[:, 5].mean()),
        }
        figures.update({f"AP-{name}": float(np.mean(aps)) for name, aps in precision.items()})
        return OrderedDict(bbox=figures)

    def _class_ap(self, name: str, lines: list[str]) -> list[float]:
        """AP in % at IoU 0.50, 0.55 ... 0.95."""
        with tempfile.TemporaryDirectory() as folder:
            template = os.path.join(folder, "{}.txt")
            with open(template.format(name), "w") as file:
                file.write("\n".join(lines))
            with np.errstate(invalid="ignore", divide="ignore"):
                return [
                    100
                    * voc_eval(
                        template,
                        self._anno_file_template,
                        self._image_set_path,
                        name,
                        ovthresh=threshold / 100,
                        use_07_metric=self._is_2007,
                    )[2]
                    if self._has_objects(name)
                    else math.nan
                    for threshold in range(50, 100, 5)
                ]

    def _has_objects(self, name: str) -> bool:
        """Whether any object of this class counts, that is, is not marked difficult."""
        if not hasattr(self, "_counted"):
            from detectron2.evaluation.pascal_voc_evaluation import parse_rec

            with open(self._image_set_path) as file:
                ids = file.read().split()
            self._counted = {
                thing["name"]
                for number in ids
                for thing in parse_rec(self._anno_file_template.format(number))
                if not thing["difficult"]
            }
        return name in self._counted


def summarise(results: dict[str, Any], name: str) -> dict[str, Any]:
    """Brings an evaluator's output into the form of ``results.json``.

    Args:
        results: by task (``bbox``, ``segm``), figures in %.
        name: the data set.

    Returns:
        ``{"box": {...}, "mask": {...}}`` or ``{"voc": {...}}``, each with ``AP``, ``AP50``,
        ``AP75`` and ``per_class``; figures that do not exist are None.
    """
    tasks = {"bbox": "box", "segm": "mask"} if layout(name) == "coco" else {"bbox": "voc"}
    # pycocotools and VOC know the class names; with one class COCOEvaluator leaves them out.
    classes = MetadataCatalog.get(name).thing_classes
    metrics: dict[str, Any] = {}
    for theirs, ours in tasks.items():
        if theirs not in results:
            continue
        figures = results[theirs]
        metrics[ours] = {key: _number(figures.get(key)) for key in ("AP", "AP50", "AP75")}
        for size in ("APs", "APm", "APl"):
            if size in figures:
                metrics[ours][size] = _number(figures[size])
        metrics[ours]["per_class"] = {c: _number(figures.get(f"AP-{c}")) for c in classes}
    return metrics


def _number(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else round(float(value), 4)
