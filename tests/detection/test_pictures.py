from __future__ import annotations

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_voc_instances, register_coco_instances
from PIL import Image

from detection.evaluators import results_file
from detection.pictures import (
    COUNT,
    SIDE,
    ImageDetections,
    _sheet,
    match_detections,
    write_pictures,
)
from intl_transfer.data.drawing import DrawnObject
from tests.detection.coco_sets import compressed
from tests.detection.test_voc_metrics import VocObject, write_voc

BOX, NEAR, FAR = (10, 10, 50, 50), (12, 10, 52, 50), (80, 80, 120, 120)


def found(label, box, score):
    return DrawnObject(label, box, score=score)


@pytest.mark.parametrize(
    ("truth", "ignored", "predictions", "rights", "error"),
    [
        # Found exactly, and nothing else.
        ([(0, BOX)], [False], [(0, BOX)], [True], 0.0),
        # Another class: one missed, one false.
        ([(0, BOX)], [False], [(1, BOX)], [False], 1.0),
        # Found twice: the second is false. F1 = 2 / 3.
        ([(0, BOX)], [False], [(0, NEAR), (0, BOX)], [True, False], 1 / 3),
        # One of two found: F1 = 2 / 3.
        ([(0, BOX), (0, FAR)], [False, False], [(0, BOX)], [True], 1 / 3),
        # On a crowd, any number of detections neither helps nor hurts; it is not missed either.
        ([(0, BOX)], [True], [(0, BOX), (0, (12, 12, 20, 20))], [None, None], 0.0),
        # A free object goes before a crowd.
        ([(0, BOX), (0, BOX)], [True, False], [(0, BOX)], [True], 0.0),
        # Nothing there, nothing seen; and something seen where nothing is.
        ([], [], [], [], 0.0),
        ([], [], [(0, BOX)], [False], 1.0),
        ([(0, BOX)], [False], [], [], 1.0),
        # Each takes the object that it overlaps most.
        ([(0, BOX), (0, NEAR)], [False, False], [(0, NEAR), (0, BOX)], [True, True], 0.0),
    ],
)
def test_error_by_hand(truth, ignored, predictions, rights, error):
    objects = [DrawnObject(label, box) for label, box in truth]
    guesses = [found(label, box, 0.9 - i / 10) for i, (label, box) in enumerate(predictions)]
    matched = match_detections(objects, ignored, guesses)
    assert [object_.is_match for object_ in matched[1]] == rights
    assert ImageDetections("x.jpg", *matched, ([], [])).error == pytest.approx(error)


@pytest.fixture
def coco_set(tmp_path):
    """15 images of 900 x 600; of image i, i of 14 objects are found."""
    (tmp_path / "images").mkdir()
    images, annotations, results = [], [], []
    for i in range(15):
        Image.new("RGB", (900, 600), (i * 10, 90, 90)).save(tmp_path / "images" / f"{i}.jpg")
        images.append({"id": i + 3, "file_name": f"{i}.jpg", "width": 900, "height": 600})
        for k in range(14):
            x, y = 10 + 60 * k, 40 * (k % 3) + 100
            mask = np.zeros((600, 900), np.uint8)
            mask[y : y + 30, x : x + 40] = 1
            outline = [x, y, x + 40, y, x + 40, y + 30, x, y + 30]
            place = {"image_id": i + 3, "category_id": 70, "bbox": [x, y, 40, 30]}
            more = {"area": 1200, "iscrowd": 0, "segmentation": [outline]}
            annotations.append({"id": len(annotations) + 1, **place, **more})
            if k < i:
                results.append({**place, "score": 0.8, "segmentation": compressed(mask)})
        results.append({**place, "bbox": [0, 0, 5, 5], "score": 0.3})  # too low to count
    names = [{"id": 20, "name": "other"}, {"id": 70, "name": "thing"}]
    content = {"images": images, "annotations": annotations, "categories": names}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    register_coco_instances("pictures", {}, str(tmp_path / "truth.json"), str(tmp_path / "images"))
    DatasetCatalog.get("pictures")
    (tmp_path / "run").mkdir()
    results_file(tmp_path / "run", "pictures").write_text(json.dumps(results))
    yield "pictures"
    DatasetCatalog.remove("pictures")
    MetadataCatalog.remove("pictures")


def test_the_worst_pictures_come_first_and_fit_their_outlines(coco_set, tmp_path):
    run = tmp_path / "run"
    (run / "predictions").mkdir()
    (run / "predictions" / "099.jpg").write_text("of an earlier evaluation")
    write_pictures(run, coco_set)
    content = json.loads((run / "predictions.json").read_text())
    assert content["classes"] == ["other", "thing"]
    entries = content["images"]
    assert len(entries) == COUNT
    errors = [entry["error"] for entry in entries]
    assert errors == sorted(errors, reverse=True)
    # The six worst, and six more at equal steps down to the best.
    shown = [0, 1, 2, 3, 4, 5, 6, 8, 9, 11, 12, 14]
    assert errors == [round((14 - k) / (14 + k), 4) for k in shown]
    files = sorted(str(f.relative_to(run)) for f in (run / "predictions").iterdir())
    assert [entry["file"] for entry in entries] == files
    for number, entry in zip(shown, entries, strict=True):
        with Image.open(run / entry["file"]) as image:
            assert image.size == (entry["width"], entry["height"]) == (SIDE, 320)
            assert abs(np.asarray(image).astype(int)[5, 5, 0] - 10 * number) < 6
        assert [object_["right"] for object_ in entry["truth"]] == [k < number for k in range(14)]
        assert len(entry["predictions"]) == number
        for object_ in entry["predictions"]:
            assert (object_["class"], object_["score"], object_["right"]) == (1, 0.8, True)
    last = entries[-1]
    x0, y0, x1, y1 = last["predictions"][0]["box"]
    ratio = 900 / SIDE
    assert [v * ratio for v in (x0, y0, x1, y1)] == pytest.approx([10, 100, 50, 130], abs=0.2)
    for side in ("truth", "predictions"):  # one outline each, and it fills its box
        (outline,) = last[side][0]["polygons"]
        rle = mask_util.merge(mask_util.frPyObjects([[v * ratio for v in outline]], 600, 900))
        assert mask_util.area(rle) == pytest.approx(1200, rel=0.1)
    with Image.open(run / "predictions.png") as sheet:
        assert sheet.mode == "RGB"
        assert sheet.width > 1300
    assert (run / "predictions.png").stat().st_size < 1_000_000


def test_a_sheet_keeps_the_colors_of_photographs():
    """Every hue there is, far more than a palette of 256 has, comes out as it went in."""
    red, green = np.meshgrid(np.arange(240, dtype=np.uint8), np.arange(240, dtype=np.uint8))
    photograph = np.stack([red, green, (red // 2 + green // 2)], axis=2)
    picture = ImageDetections("x.jpg", [], [], ([], []))
    sheet = np.asarray(_sheet([(Image.fromarray(photograph), picture)], ["猫"], "所有"))
    tile = sheet[-12 - 340 : -12, 12 : 12 + 340]  # enlarged to the tile's 340 pixels
    expected = Image.fromarray(photograph).resize((340, 340), Image.Resampling.LANCZOS)
    assert (tile == np.asarray(expected)).all()
    assert len(np.unique(tile.reshape(-1, 3), axis=0)) > 10_000


def test_difficult_objects_of_voc_do_not_count(tmp_path):
    objects = {
        "000001": [
            VocObject("cat", (11, 11, 50, 50), True),
            VocObject("dog", (80, 80, 99, 99), False),
        ],
        "000002": [],  # Detectron2's loader wants two images at least
    }
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "JPEGImages").mkdir()
    for image in objects:
        Image.new("RGB", (128, 128)).save(tmp_path / "JPEGImages" / f"{image}.jpg")
    write_voc(tmp_path, objects, with_sizes=True)
    (tmp_path / "list.txt").rename(tmp_path / "ImageSets" / "Main" / "test.txt")
    name = "pictures_voc"
    DatasetCatalog.register(name, lambda: load_voc_instances(str(tmp_path), "test", ["cat", "dog"]))
    try:
        meta = {"dirname": str(tmp_path), "year": 2007, "split": "test"}
        MetadataCatalog.get(name).set(
            thing_classes=["cat", "dog"], evaluator_type="pascal_voc", **meta
        )
        result = {"image_id": "000001", "category_id": 1, "bbox": [79, 79, 20, 20], "score": 0.9}
        results_file(tmp_path, name).write_text(json.dumps([result]))
        write_pictures(tmp_path, name)
        entry, other = json.loads((tmp_path / "predictions.json").read_text())["images"]
        assert entry["error"] == other["error"] == 0
        assert [object_["right"] for object_ in entry["truth"]] == [None, True]
        assert entry["truth"][0]["box"] == [10, 10, 50, 50]  # counted from 0, as Detectron2 has it
        assert entry["truth"][0]["polygons"] == []
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
