"""The one reader against Detectron2's own loaders and pycocotools, on what both can read."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from detection.datasets import records
from intl_transfer.data.annotations import place_of
from intl_transfer.data.coco_annotations import read_coco
from intl_transfer.data.detection_contents import open_set, read_set, truth_of
from intl_transfer.data.detection_sets import DetectionSet, standard_sets
from intl_transfer.data.segmentations import (
    MaskError,
    as_run_lengths,
    extent,
    normalized,
    outline_area,
)
from intl_transfer.data.shapes import CLASSES, ShapesSpec, make_shapes
from intl_transfer.data.voc_annotations import read_voc
from tests.data import odd_coco, odd_voc
from tests.detection.coco_sets import compressed, uncompressed

detectron2 = pytest.importorskip("detection")  # prepares it
from detectron2.data.datasets import load_coco_json, load_voc_instances  # noqa: E402


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    spec = ShapesSpec(
        objects_train=8, objects_val=8, scenes_train=6, scenes_val=3, crowd_fraction=0.5
    )
    make_shapes(root / "shapes", spec)
    return root


def comparable(found):
    """Records without what only one side writes: crowds that are none, numpy's own text."""
    plain = []
    for record in found:
        own = {**record, "image_id": str(record["image_id"]), "annotations": []}
        for annotation in record["annotations"]:
            mask = annotation.get("segmentation")
            if isinstance(mask, dict):
                mask = {**mask, "size": list(mask["size"])}
            own["annotations"].append(
                {"iscrowd": 0, **annotation, "segmentation": mask, "bbox": list(annotation["bbox"])}
            )
        plain.append(own)
    return plain


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_records_are_detectron2s(shapes, split):
    one = standard_sets(shapes)[f"shapes_coco_{split}"]
    contents = read_coco(one)
    assert (contents.problems, contents.notes) == ([], [])
    theirs = load_coco_json(str(one.annotations), str(one.images), f"reading_{split}")
    assert comparable(records(contents, "coco")) == comparable(theirs)


def test_images_in_any_order_are_sorted_as_detectron2_does(shapes, tmp_path):
    from detection.datasets import in_order

    one = standard_sets(shapes)["shapes_coco_train"]
    content = json.loads(one.annotations.read_text())
    content["images"].reverse()
    (tmp_path / "x.json").write_text(json.dumps(content))
    contents = read_coco(DetectionSet("x", "coco", one.images, tmp_path / "x.json"))
    theirs = load_coco_json(str(tmp_path / "x.json"), str(one.images), "reading_reversed")
    assert comparable(records(contents, "coco")) == comparable(theirs)
    assert list(contents.images) == in_order(contents, "coco")[::-1]


@pytest.mark.parametrize("split", ["trainval", "test"])
def test_voc_records_are_detectron2s(shapes, split):
    one = standard_sets(shapes)[f"shapes_voc_{split}"]
    contents = read_voc(one)
    assert (contents.problems, contents.notes) == ([], [])
    theirs = load_voc_instances(str(one.images.parent), split, CLASSES)
    assert comparable(records(contents, "voc")) == comparable(theirs)


def test_the_evaluators_truth_is_pycocotools(shapes):
    one = standard_sets(shapes)["shapes_coco_train"]
    ours = truth_of(read_coco(one))
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(str(one.annotations))
    assert ours.getImgIds() == theirs.getImgIds()
    assert ours.loadCats(ours.getCatIds()) == [
        {"id": c["id"], "name": c["name"]} for c in theirs.loadCats(theirs.getCatIds())
    ]
    for image in ours.getImgIds():
        for category in ours.getCatIds():
            mine, own = (
                api.loadAnns(api.getAnnIds(imgIds=[image], catIds=[category]))
                for api in (ours, theirs)
            )
            for a, b in zip(mine, own, strict=True):
                assert (a["bbox"], a["area"], a["iscrowd"]) == (b["bbox"], b["area"], b["iscrowd"])
                assert np.array_equal(ours.annToMask(a), theirs.annToMask(b))


def test_classes_that_are_named_twice_are_refused_where_they_are_used(tmp_path):
    odd = odd_coco.Odd(tmp_path)
    odd.write()
    one = DetectionSet("x", "coco", odd.images, tmp_path / "train.json", classes=("cat",) * 2)
    assert read_coco(one).problems[0] == (
        "data set 'x': CLASSES names 'cat' twice; expected each name once"
    )


def test_a_published_set_is_left_as_it_is(tmp_path):
    """Boxes over the edge, areas that contradict, ids twice: as Detectron2 and COCO take them."""
    odd = odd_coco.Odd(tmp_path)
    odd.train["annotations"][0].update(bbox=[-5, 3, 30, 18], area=5000)
    odd.write()
    one = DetectionSet("x", "coco", odd.images, tmp_path / "train.json", known_images=4)
    contents = open_set(one)
    assert contents.problems == []
    first = contents.annotations[1][0]
    assert (first.bbox, first.area) == ((-5, 3, 30, 18), 5000)


@settings(max_examples=200, deadline=None)
@given(
    edges=st.tuples(*[st.floats(-200, 200)] * 4).map(lambda v: (*sorted(v[::2]), *sorted(v[1::2]))),
    width=st.integers(1, 100),
    height=st.integers(1, 100),
)
def test_the_rule_at_the_edge(edges, width, height):
    left, right, top, bottom = edges
    place, box = place_of((left, top, right, bottom), width, height)
    inner = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
    over = max(-left, -top, right - width, bottom - height)
    if place == "outside":
        assert inner[2] <= inner[0] or inner[3] <= inner[1]
        assert box == (left, top, right, bottom)
    elif place == "cut":
        assert over >= 1
        assert box == inner
    else:
        assert over < 1
        assert box == (left, top, right, bottom)
    if inner[2] > inner[0] and inner[3] > inner[1]:
        assert place != "outside"


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_masks_of_any_form_are_the_same_pixels(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 40, 2).tolist()
    mask = (rng.random((height, width)) < rng.choice([0, 0.1, 0.5, 1])).astype(np.uint8)
    for form in (compressed(mask), uncompressed(mask)):
        found, changed = normalized(form, height, width)
        assert changed is None
        assert np.array_equal(mask_util.decode(found), mask)
        assert outline_area(found) == mask.sum()
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not mask.any():
            assert extent(found) is None
            continue
        assert extent(found) == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30))
def test_any_text_as_run_lengths_is_decoded_rightly_or_refused(text):
    height, width = 8, 6
    try:
        found, _ = normalized({"size": [height, width], "counts": text}, height, width)
    except MaskError:
        return
    # What is let through, the library in C reads and writes again as the same mask.
    mask = mask_util.decode(found)
    assert mask.shape == (height, width)
    again = mask_util.encode(np.asfortranarray(mask))
    assert np.array_equal(mask_util.decode(again), mask)


def test_an_outlines_area_is_that_of_its_pixels():
    outline = [[10.0, 10, 50, 10, 50, 40, 10, 40], [60, 60, 90, 60, 60, 90]]
    assert outline_area(outline) == 40 * 30 + 30 * 30 / 2
    drawn = mask_util.area(as_run_lengths(outline, 100, 100))
    assert math.isclose(outline_area(outline), drawn, rel_tol=0.03)


_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=5),
    st.lists(st.integers(0, 9), max_size=4),
    st.just({}),
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_value_in_any_place_of_a_json_is_read_or_named(tmp_path_factory, data):
    """No field, whatever it holds, ends in a traceback, and nothing is lost without a word."""
    root = tmp_path_factory.getbasetemp() / "any-value"
    if not root.exists():
        odd_coco.Odd(root)
    content = copy.deepcopy(odd_coco.clean())
    part = data.draw(st.sampled_from(["images", "annotations", "categories"]))
    entry = content[part][0]
    if data.draw(st.booleans()) or part != "annotations":
        entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(_VALUES)
    else:  # within a list
        target = data.draw(st.sampled_from([entry["bbox"], entry["segmentation"][0]]))
        target[data.draw(st.integers(0, 3))] = data.draw(_VALUES)
    (root / "x.json").write_text(json.dumps(content))
    contents = read_set(DetectionSet("x", "coco", root / "images", root / "x.json"))
    if contents.problems:
        assert str(root) in contents.problems[0]
        return
    truth_of(contents)
    assert sum(contents.objects.values()) == 8
    assert len(contents.images) == 4
    for annotation in contents.all_annotations():
        assert all(map(math.isfinite, [*annotation.bbox, annotation.area]))


@settings(max_examples=200, deadline=None)
@given(
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6),
    cut=st.floats(0.05, 1),
)
def test_damaged_xml_is_read_or_named(tmp_path_factory, changes, cut):
    root = tmp_path_factory.getbasetemp() / "damaged-xml"
    if not root.exists():
        odd_voc.Odd(root).write()
    page = bytearray(odd_voc.page("000001").encode())
    for place, value in changes:
        page[int(place * len(page))] = value
    (root / "Annotations" / "000001.xml").write_bytes(page[: int(cut * len(page))])
    listing = root / "ImageSets" / "Main" / "train.txt"
    one = DetectionSet("x", "voc", root / "JPEGImages", root / "Annotations", listing)
    contents = read_set(one)
    assert contents.problems or len(contents.images) == 4
    assert not contents.problems or "000001" in contents.problems[0]
