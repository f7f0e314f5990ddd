"""PASCAL VOC's average precision, of 2007 and of 2012, as Detectron2 computes it.

A detection is assigned to the object of its class with the largest IoU, if above the threshold. It
is correct if no detection with a higher score has that object; it is ignored if the object is
difficult; otherwise it is false. Boxes include their last pixel.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from intl_transfer.errors import UserError

THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))


@dataclass(frozen=True)
class VocObject:
    """One object of an annotation file: class, corners counted from 1, whether it is difficult."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class VocDetection:
    """One detection of a class: image, score, corners counted from 1."""

    image: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class VocCurve:
    """Recall and precision after each detection, by descending score."""

    recall: np.ndarray
    precision: np.ndarray

    def ap(self, eleven_points: bool) -> float:
        """Average precision, 0 to 1.

        Args:
            eleven_points: the metric of 2007 (mean of the best precisions at recalls from 0, 0.1
                ... 1), else that of 2010 to 2012 (area under the falling envelope).
        """
        if eleven_points:
            return float(np.mean([self.at(point) for point in np.arange(0.0, 1.1, 0.1)]))
        recall = np.concatenate([[0.0], self.recall, [1.0]])
        precision = np.concatenate([self.precision, [0.0]])
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        return float(np.sum(np.diff(recall) * envelope))

    def at(self, recall: float) -> float:
        """The maximum precision at this recall or higher; 0 if not reached."""
        reached = self.precision[self.recall >= recall]
        return float(reached.max()) if reached.size else 0.0


def voc_curves(
    objects: Mapping[str, Sequence[VocObject]],
    detections: Sequence[VocDetection],
    name: str,
    thresholds: Sequence[float] = THRESHOLDS,
) -> list[VocCurve] | None:
    """The curves of one class, one for each threshold.

    Args:
        objects: of every image of the test set, by image.
        detections: of this class. Equal scores keep their order.
        name: the class.
        thresholds: overlaps to exceed.

    Returns:
        The curves, or None if no object of the class counts: it has no average precision.

    Raises:
        UserError: for a detection of an image outside the test set.
    """
    truth = {
        image: [thing for thing in things if thing.name == name]
        for image, things in objects.items()
    }
    counted = sum(not thing.difficult for things in truth.values() for thing in things)
    if counted == 0:
        return None
    overlap, target, difficult = _best(truth, detections)
    order = np.argsort(-np.array([d.score for d in detections], dtype=float), kind="stable")
    overlap, target, difficult = overlap[order], target[order], difficult[order]
    curves = []
    for threshold in thresholds:
        close = overlap > threshold
        right = np.zeros(len(order), dtype=bool)
        hits = np.flatnonzero(close & ~difficult)
        right[hits[np.unique(target[hits], return_index=True)[1]]] = True
        wrong = ~right & ~(close & difficult)
        sums = np.cumsum(right), np.cumsum(wrong)
        precision = sums[0] / np.maximum(sums[0] + sums[1], np.finfo(float).eps)
        curves.append(VocCurve(sums[0] / counted, precision))
    return curves


def _best(
    truth: Mapping[str, Sequence[VocObject]], detections: Sequence[VocDetection]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each detection: its largest overlap, that object's index and difficulty."""
    overlap = np.full(len(detections), -np.inf)
    target = np.full(len(detections), -1)
    difficult = np.zeros(len(detections), dtype=bool)
    by_image: dict[str, list[int]] = defaultdict(list)
    for index, detection in enumerate(detections):
        by_image[detection.image].append(index)
    first = 0
    for image, indices in by_image.items():
        if image not in truth:
            raise UserError(
                f"image '{image}' has detections and is not in the test set. Are these the "
                "detections of another data set?"
            )
        things = truth[image]
        if not things:
            continue
        ious = _iou(
            np.array([detections[i].box for i in indices]), np.array([t.box for t in things])
        )
        best = ious.argmax(axis=1)
        overlap[indices] = ious.max(axis=1)
        target[indices] = first + best
        difficult[indices] = np.array([t.difficult for t in things])[best]
        first += len(things)
    return overlap, target, difficult


def _iou(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """IoU of (D, 4) and (G, 4), as (D, G); a box from 3 to 5 is three pixels wide."""
    low = np.maximum(ours[:, None, :2], theirs[None, :, :2])
    high = np.minimum(ours[:, None, 2:], theirs[None, :, 2:])
    common = np.prod(np.maximum(high - low + 1.0, 0.0), axis=2)
    sizes = [np.prod(boxes[:, 2:] - boxes[:, :2] + 1.0, axis=1) for boxes in (ours, theirs)]
    overlap: np.ndarray = common / (sizes[0][:, None] + sizes[1][None, :] - common)
    return overlap
