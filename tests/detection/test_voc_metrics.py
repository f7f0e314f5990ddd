from __future__ import annotations

import numpy as np
import pytest
from detectron2.evaluation.pascal_voc_evaluation import voc_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from detection.voc_metrics import THRESHOLDS, VocDetection, VocObject, voc_curves
from intl_transfer.errors import UserError

CLASSES = ["cat", "dog"]


def make_set(seed: int, ties: bool):
    """Objects by image, and the detections of one class: duplicates, difficult objects, ties."""
    rng = np.random.default_rng(seed)
    objects: dict[str, list[VocObject]] = {}
    detections = []
    for image in (f"{i:06d}" for i in range(rng.integers(1, 7))):
        objects[image] = []
        for _ in range(rng.integers(0, 5)):
            x, y, width, height = rng.integers(1, 60, 4)
            box = (float(x), float(y), float(x + width), float(y + height))
            name = str(rng.choice(CLASSES, p=[0.7, 0.3]))
            objects[image].append(VocObject(name, box, bool(rng.random() < 0.25)))
        for _ in range(rng.integers(0, 9)):
            corners = rng.uniform(1, 60, 2).round(1)
            box = np.concatenate([corners, corners + rng.uniform(3, 50, 2).round(1)])
            if objects[image] and rng.random() < 0.75:  # on one of them, often the same again
                near = objects[image][rng.integers(len(objects[image]))].box
                box = np.array(near) + rng.integers(-3, 4, 4) * rng.choice([0, 1])
            score = rng.choice([0.2, 0.5, 0.9]) if ties else rng.random()
            detections.append(VocDetection(image, float(score), tuple(map(float, box))))
    return objects, detections


def overlap(ours, theirs):
    """Pixels in common over pixels in either; a box holds its last row and column."""
    wide = min(ours[2], theirs[2]) - max(ours[0], theirs[0]) + 1
    high = min(ours[3], theirs[3]) - max(ours[1], theirs[1]) + 1
    if wide <= 0 or high <= 0:
        return 0.0
    areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (ours, theirs)]
    return wide * high / (sum(areas) - wide * high)


def by_definition(objects, detections, name, threshold, eleven_points):
    """AP from the development kit's description, one detection after the other."""
    positives = sum(o.name == name and not o.difficult for own in objects.values() for o in own)
    if positives == 0:
        return None
    found: set[tuple[str, int]] = set()
    right = wrong = 0
    curve = []
    for d in sorted(detections, key=lambda d: -d.score):  # stable: equal scores in their order
        own = [(i, o) for i, o in enumerate(objects[d.image]) if o.name == name]
        best = max(own, key=lambda item: overlap(d.box, item[1].box), default=None)
        if best is not None and overlap(d.box, best[1].box) > threshold:
            if best[1].difficult:
                continue
            if (d.image, best[0]) in found:
                wrong += 1
            else:
                found.add((d.image, best[0]))
                right += 1
        else:
            wrong += 1
        curve.append((right / positives, right / (right + wrong)))
    if eleven_points:
        levels = np.arange(0, 1.1, 0.1)
        return float(np.mean([max((p for r, p in curve if r >= t), default=0.0) for t in levels]))
    # The area under the least falling curve above the points: a step at each new recall.
    area, last = 0.0, 0.0
    for index, (recall, _) in enumerate(curve):
        if recall > last:
            area += (recall - last) * max(p for _, p in curve[index:])
            last = recall
    return area


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), ties=st.booleans())
def test_random_sets_against_the_definition(seed, ties):
    objects, detections = make_set(seed, ties)
    curves = voc_curves(objects, detections, "cat")
    for eleven_points in (True, False):
        for index, threshold in enumerate(THRESHOLDS):
            expected = by_definition(objects, detections, "cat", threshold, eleven_points)
            if expected is None:
                assert curves is None
            else:
                assert curves[index].ap(eleven_points) == pytest.approx(expected, abs=1e-12)


def write_voc(folder, objects, with_sizes=False):
    """The set as files, for Detectron2; its loader also wants the images' sizes."""
    size = "<size><width>128</width><height>128</height></size>" if with_sizes else ""
    (folder / "Annotations").mkdir()
    (folder / "list.txt").write_text("\n".join(objects))
    for image, things in objects.items():
        parts = [
            f"<object><name>{o.name}</name><pose>Left</pose><truncated>0</truncated>"
            f"<difficult>{int(o.difficult)}</difficult><bndbox>"
            + "".join(
                f"<{side}>{int(v)}</{side}>"
                for side, v in zip(("xmin", "ymin", "xmax", "ymax"), o.box, strict=True)
            )
            + "</bndbox></object>"
            for o in things
        ]
        text = f"<annotation>{size}{''.join(parts)}</annotation>"
        (folder / "Annotations" / f"{image}.xml").write_text(text)


@pytest.mark.parametrize("seed", range(6))
def test_equal_to_detectron2_where_no_scores_are_tied(tmp_path, seed):
    objects, detections = make_set(seed, ties=False)
    write_voc(tmp_path, objects)
    lines = [f"{d.image} {d.score!r} {' '.join(map(repr, d.box))}" for d in detections]
    (tmp_path / "cat.txt").write_text("\n".join(lines))
    curves = voc_curves(objects, detections, "cat")
    for eleven_points in (True, False):
        for curve, threshold in zip(curves or [], THRESHOLDS, strict=False):
            recall, precision, ap = voc_eval(
                *(str(tmp_path / "{}.txt"), str(tmp_path / "Annotations" / "{}.xml")),
                *(str(tmp_path / "list.txt"), "cat"),
                ovthresh=threshold,
                use_07_metric=eleven_points,
            )
            np.testing.assert_allclose(curve.recall, recall, rtol=0, atol=1e-12)
            np.testing.assert_allclose(curve.precision, precision, rtol=0, atol=1e-12)
            assert curve.ap(eleven_points) == pytest.approx(ap, abs=1e-12)


def test_both_metrics_by_hand():
    """Right, wrong, right, of four objects: recall 1/4 at precision 1, 2/4 at 2/3."""
    near = (1.0, 1.0, 10.0, 10.0)
    objects = {"a": [VocObject("cat", tuple(v + 20 * i for v in near), False) for i in range(4)]}
    boxes = [near, (200, 200, 210, 210), tuple(v + 20 for v in near)]
    detections = [VocDetection("a", 0.9 - i / 10, box) for i, box in enumerate(boxes)]
    (curve,) = voc_curves(objects, detections, "cat", [0.5])
    # Recalls 0, .1, .2 at precision 1; .3, .4, .5 at 2/3; nothing beyond.
    assert curve.ap(eleven_points=True) == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)
    assert curve.ap(eleven_points=False) == pytest.approx(0.25 * 1 + 0.25 * 2 / 3)
    # The overlap must exceed the threshold: half of the larger box is not enough.
    half = [VocDetection("a", 1.0, (1, 1, 10, 5))]
    assert voc_curves(objects, half, "cat", [0.5])[0].ap(False) == 0
    assert voc_curves(objects, half, "cat", [0.49])[0].ap(False) == 0.25
    assert voc_curves(objects, [], "cat", [0.5])[0].ap(False) == 0
    assert voc_curves(objects, [], "dog", [0.5]) is None


def test_detections_of_another_set_are_refused():
    with pytest.raises(UserError, match="image 'b' has detections and is not in the test set"):
        voc_curves(
            {"a": [VocObject("cat", (1, 1, 2, 2), False)]},
            [VocDetection("b", 0.5, (1, 1, 2, 2))],
            "cat",
        )
