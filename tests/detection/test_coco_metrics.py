from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intl_transfer.data.coco_metrics import FAST, METRICS, REFERENCE, coco_metrics, why_reference
from intl_transfer.errors import UserError
from tests.detection.coco_sets import by_pycocotools, load, make_set

ENGINES = [FAST, REFERENCE]


@pytest.fixture(autouse=True)
def _installed(request):
    if "engine" in request.fixturenames and request.getfixturevalue("engine") == FAST:
        pytest.importorskip("faster_coco_eval")


def assert_same(content, found, task, engine):
    """All precisions and recalls, hence all figures, are those of pycocotools."""
    api = by_pycocotools(content, found, task)
    result = coco_metrics(load(content), found, task, engine)
    np.testing.assert_allclose(result.precision, api.eval["precision"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(result.recall, api.eval["recall"], rtol=0, atol=1e-9)
    there = np.where(api.stats < 0, np.nan, api.stats)  # -1: there is no such figure
    np.testing.assert_allclose(list(result.metrics().values()), there, rtol=0, atol=1e-9)
    assert result.engine == engine
    assert result.categories == sorted(c["id"] for c in content["categories"])
    return result


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("task", ["bbox", "segm"])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 6),
    classes=st.integers(2, 4),
    objects=st.integers(0, 8),
    detections=st.integers(1, 16),
)
def test_random_sets(engine, task, seed, images, classes, objects, detections):
    content, found = make_set(seed, images, classes, objects, detections)
    if found:  # pycocotools' loadRes fails without any
        assert_same(content, found, task, engine)


def _crowds(content, found):
    for thing in content["annotations"]:
        thing["iscrowd"] = 1


def _ties(content, found):
    for detection in found:
        detection["score"] = 0.5


def _no_objects(content, found):
    content["annotations"] = []


def _objects_in_one_image(content, found):
    first = content["annotations"][0]["image_id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == first]


def _categories_left_out(content, found):
    content["categories"] = content["categories"][:1]
    found[:] = [d for d in found if d["category_id"] == content["categories"][0]["id"]]


def _images_left_out(content, found):
    content["images"] = content["images"][:3]
    listed = {image["id"] for image in content["images"]}
    found[:] = [d for d in found if d["image_id"] in listed]


def _annotation_zero(content, found):
    content["annotations"][0]["id"] = 0


def _scores_of_any_size(content, found):
    for index, detection in enumerate(found):
        detection["score"] = [-3, 1, 10**6, float("inf"), -float("inf"), 0][index % 6]


def _no_size(content, found):
    for detection in found[::2]:
        detection["bbox"][2] = 0.0


def _far_away(content, found):
    for detection in found:
        detection["bbox"] = [1e9 * v for v in detection["bbox"]]


def _on_the_limits(content, found):
    for index, thing in enumerate(content["annotations"]):
        thing["area"] = [0, 32**2, 32**2 - 1e-9, 96**2, 96**2 + 1e-9, 1e10, 1e11][index % 7]


def _foreign_keys(content, found):
    for row in (*content["annotations"], *found):
        row.update(ignore=1, lvis_mark=True, drop=True, rle="x", tp=False)


AWKWARD = [
    *(_crowds, _ties, _no_objects, _objects_in_one_image),
    *(
        _categories_left_out,
        _images_left_out,
        _annotation_zero,
        _scores_of_any_size,
        _no_size,
        _far_away,
    ),
    *(_on_the_limits, _foreign_keys),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("change", AWKWARD, ids=lambda change: change.__name__.strip("_"))
def test_awkward_sets(engine, task, change):
    content, found = make_set(5, detections=20)
    change(content, found)
    assert_same(content, found, task, engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_more_than_a_hundred_detections_in_an_image(engine, task):
    content, found = make_set(3, images=2, classes=2, objects=30, detections=600)
    assert max(len(found) - 300, 0) > 100
    assert_same(content, found, task, engine)


def test_figures_of_a_set_by_hand():
    """Two objects, the first found exactly, the second not; one false detection in front."""
    images = [{"id": 7, "width": 100, "height": 100}]
    boxes = [[0, 0, 10, 10], [50, 50, 40, 40]]
    annotations = [
        {"id": i, "image_id": 7, "category_id": 3, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
        for i, b in enumerate(boxes, start=1)
    ]
    names = [{"id": 3, "name": "there"}, {"id": 9, "name": "absent"}]
    content = {"images": images, "annotations": annotations, "categories": names}
    found = [
        {"image_id": 7, "category_id": 3, "bbox": [20, 20, 5, 5], "score": 0.9},
        {"image_id": 7, "category_id": 3, "bbox": [0, 0, 10, 10], "score": 0.8},
    ]
    for engine in ENGINES if why_reference(load(content)) is None else [REFERENCE]:
        result = coco_metrics(load(content), found, "bbox", engine)
        figures = result.metrics()
        # Precision is 1/2 up to a recall of 1/2, at 51 of 101 points, and 0 beyond.
        assert figures["AP"] == pytest.approx(0.5 * 51 / 101)
        # With one detection an image only the false one counts.
        assert (figures["AR1"], figures["AR10"], figures["AR100"]) == (0, 0.5, 0.5)
        # The small object is found; the false detection is small too. The other is medium.
        assert (figures["APs"], figures["ARs"]) == (0.5, 1)
        assert (figures["APm"], figures["ARm"]) == (0, 0)
        assert np.isnan([figures["APl"], figures["ARl"], result.class_ap()[9]]).all()
        assert result.class_ap()[3] == pytest.approx(0.5 * 51 / 101)
        assert result.curve(0.75)[9] is None
        np.testing.assert_allclose(result.curve(0.75)[3], [0.5] * 51 + [0] * 50)
    assert list(figures) == list(METRICS)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_nothing_found_scores_nothing(engine, task):
    content, _ = make_set(5)
    figures = coco_metrics(load(content), [], task, engine).metrics()
    assert figures["AP"] == figures["AR100"] == 0


def test_inputs_are_left_as_they_were():
    content, found = make_set(5)
    truth, before = load(content), copy.deepcopy(found)
    for task in ("bbox", "segm"):
        coco_metrics(truth, found, task)
    assert truth.dataset == content
    assert found == before


def test_crowds_need_not_be_marked():
    content, found = make_set(5)
    for thing in content["annotations"]:
        thing["iscrowd"] = 0
    expected = by_pycocotools(content, found, "bbox").stats
    for thing in content["annotations"]:
        del thing["iscrowd"]
    figures = coco_metrics(load(content), found, "bbox").metrics()
    np.testing.assert_allclose(list(figures.values()), np.where(expected < 0, np.nan, expected))


def _negative(content, found):
    for thing in content["annotations"]:
        thing["id"] = -thing["id"]


def _named(content, found):
    for row in (*content["annotations"], *found):
        row["image_id"] = f"image {row['image_id']}"
    for image in content["images"]:
        image["id"] = f"image {image['id']}"


def _nan(content, found):
    found[3]["score"] = float("nan")


def _nan_box(content, found):
    found[3]["bbox"] = [float("nan")] * 4


def _huge(content, found):
    for thing in content["annotations"]:
        thing["id"] += 2**63


def _huge_images(content, found):
    for row in (*content["annotations"], *found):
        row["image_id"] += 2**60
    for image in content["images"]:
        image["id"] += 2**60


def _one_id(content, found):
    for index, thing in enumerate(content["annotations"]):
        thing["id"] = 1 + index // 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        *((_negative, "annotation ids"), (_named, "image ids"), (_nan, None), (_nan_box, None)),
        *((_huge, "annotation ids"), (_huge_images, "image ids"), (_one_id, "have one id")),
    ],
)
def test_what_the_faster_library_cannot_do_goes_to_pycocotools(change, reason):
    content, found = make_set(5)
    change(content, found)
    if reason is not None:
        pytest.importorskip("faster_coco_eval")
        assert reason in (why_reference(load(content)) or "")
    result = coco_metrics(load(content), found, "bbox")
    assert result.engine == REFERENCE
    expected = by_pycocotools(content, found, "bbox").eval["precision"]
    np.testing.assert_array_equal(result.precision, expected)


def test_without_the_faster_library(monkeypatch):
    monkeypatch.setattr("intl_transfer.data.coco_metrics.faster_coco_eval", None)
    content, found = make_set(5)
    assert coco_metrics(load(content), found, "bbox").engine == REFERENCE
    assert why_reference(load(content)) == "faster-coco-eval is not installed"


def test_what_cannot_be_right_is_refused(caplog):
    content, found = make_set(5)
    stranger = {**found[0], "image_id": 10**7}
    with pytest.raises(UserError, match=r"1 images have detections .* the first: 10000000"):
        coco_metrics(load(content), [*found, stranger], "bbox")
    stranger = {**found[0], "category_id": 10**6}
    with pytest.raises(UserError, match=r"1 categories have detections .* the first: 1000000"):
        coco_metrics(load(content), [*found, stranger], "bbox")
    number = content["annotations"][2]["id"]
    for key, task in (("area", "bbox"), ("segmentation", "segm")):
        lacking = copy.deepcopy(content)
        del lacking["annotations"][2][key]
        with pytest.raises(UserError, match=rf"annotation {number} has no '{key}'"):
            coco_metrics(load(lacking), found, task)
    content["annotations"][0]["id"] = 0
    with caplog.at_level(logging.WARNING, "detectron2.evaluation"):
        logging.getLogger("detectron2.evaluation").addHandler(caplog.handler)
        coco_metrics(load(content), found, "bbox")
    assert "annotation 0 never counts as found" in caplog.text
