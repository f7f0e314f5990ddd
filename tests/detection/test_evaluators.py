from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path

import detection  # noqa: F401  # isort: skip  # first: prepares Detectron2, on every rank
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_voc_instances, register_coco_instances
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from detection import datasets
from detection.evaluators import (
    CocoEvaluator,
    VOCEvaluator,
    build_evaluator,
    results_file,
    summarize,
)
from intl_transfer.data.coco_metrics import METRICS
from intl_transfer.data.shapes import CLASSES
from tests.detection.coco_sets import by_pycocotools
from tests.detection.test_voc_metrics import make_set, write_voc
from tests.ranks import run_ranks


def predictions(records, noise: float = 3.0, masks: bool = False, seed: int = 0):
    """Detections from the truth, shifted at random, and some false ones."""
    rng = np.random.default_rng(seed)
    outputs = []
    for record in records:
        height, width = record["height"], record["width"]
        boxes, labels, scores = [], [], []
        for annotation in record["annotations"]:
            mode = annotation["bbox_mode"]
            box = np.array(BoxMode.convert(list(annotation["bbox"]), mode, BoxMode.XYXY_ABS))
            boxes.append(box + rng.normal(0, noise, 4))
            labels.append(annotation["category_id"])
            scores.append(rng.uniform(0.3, 1.0))
        for _ in range(2):
            corner = rng.uniform(0, 80, 2)
            boxes.append(np.concatenate([corner, corner + rng.uniform(10, 40, 2)]))
            labels.append(int(rng.integers(8)))
            scores.append(rng.uniform(0.0, 0.7))
        instances = Instances((height, width))
        instances.pred_boxes = Boxes(torch.tensor(np.array(boxes), dtype=torch.float32))
        instances.pred_classes = torch.tensor(labels)
        # No two alike in three digits, to which VOC's evaluation rounds them.
        order = rng.permutation(1000)[: len(scores)] / 1000
        instances.scores = torch.tensor(order)
        if masks:
            drawn = torch.zeros(len(boxes), height, width, dtype=torch.bool)
            for mask, (x0, y0, x1, y1) in zip(drawn, np.array(boxes).round(), strict=True):
                mask[max(0, int(y0)) : int(y1), max(0, int(x0)) : int(x1)] = True
            instances.pred_masks = drawn
        outputs.append({"instances": instances})
    return outputs


def evaluated(evaluator, records, outputs):
    evaluator.reset()
    evaluator.process(records, outputs)
    return evaluator.evaluate()


def test_coco_is_what_detectron2_and_pycocotools_say(registered, tmp_path):
    name = "shapes_coco_train"
    records = DatasetCatalog.get(name)
    outputs = predictions(records, masks=True)
    evaluator = build_evaluator(name, str(tmp_path / "ours"))
    assert isinstance(evaluator, CocoEvaluator)
    results = evaluated(evaluator, records, outputs)

    reference = COCOEvaluator(name, output_dir=str(tmp_path / "theirs"), use_fast_impl=False)
    theirs = evaluated(reference, records, predictions(records, masks=True))
    for task, figures in theirs.items():
        assert {k: results[task][k] for k in figures} == pytest.approx(
            figures, rel=0, abs=1e-9, nan_ok=True
        )
    written = results_file(tmp_path / "ours", name)
    assert written.name == "coco_instances_results.json"
    found = json.loads(written.read_text())
    assert found == json.loads((tmp_path / "theirs" / written.name).read_text())

    content = json.loads(Path(MetadataCatalog.get(name).json_file).read_text())
    metrics = summarize(results, name)
    curves = json.loads((tmp_path / "ours" / "curves.json").read_text())
    for task, ours in (("bbox", "box"), ("segm", "mask")):
        api = by_pycocotools(content, found, task)
        expected = {
            key: None if value < 0 else pytest.approx(100 * value, abs=1e-4)
            for key, value in zip(METRICS, api.stats, strict=True)
        }
        assert {key: metrics[ours][key] for key in METRICS} == expected
        assert metrics[ours]["AP50"] > 5
        assert list(metrics[ours]["per_class"]) == list(CLASSES)
        for index, threshold in ((0, "0.50"), (5, "0.75")):
            entry = curves[ours][threshold]
            np.testing.assert_allclose(entry["recall"], api.params.recThrs, atol=1e-12)
            precision = api.eval["precision"][index, :, :, 0, -1].T
            there = [row for row in precision if row[0] > -1]
            np.testing.assert_allclose(entry["precision"]["mean"], np.mean(there, 0), atol=1e-4)
            for row, label in zip(precision, CLASSES, strict=True):
                if row[0] < 0:
                    assert entry["precision"][label] is None
                    assert metrics[ours]["per_class"][label] is None
                else:
                    np.testing.assert_allclose(entry["precision"][label], row, atol=1e-4)


def test_coco_without_any_detection(registered, tmp_path):
    name = "shapes_coco_train"
    records = DatasetCatalog.get(name)
    empty = Instances((128, 128))
    empty.pred_boxes, empty.scores = Boxes(torch.zeros(0, 4)), torch.zeros(0)
    empty.pred_classes = torch.zeros(0, dtype=torch.int64)
    empty.pred_masks = torch.zeros(0, 128, 128, dtype=torch.bool)
    results = evaluated(build_evaluator(name, None), records, [{"instances": empty}] * len(records))
    metrics = summarize(results, name)
    assert list(metrics) == ["box", "mask"]
    for figures in metrics.values():
        assert (figures["AP"], figures["AR100"]) == (0, 0)
        assert set(figures["per_class"].values()) <= {0, None}


def test_images_without_annotations_are_written_not_scored(registered, tmp_path, monkeypatch):
    """As the test images of COCO are, which its server scores."""
    name = "shapes_coco_train"
    records = DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    content = json.loads(Path(metadata.json_file).read_text())
    del content["annotations"]
    file = tmp_path / "test.json"
    file.write_text(json.dumps(content))
    unannotated = dataclasses.replace(datasets._sets[name], annotations=file)
    monkeypatch.setitem(datasets._sets, name, unannotated)
    assert evaluated(build_evaluator(name, str(tmp_path)), records, predictions(records)) == {}
    assert len(json.loads(results_file(tmp_path, name).read_text())) > len(records)


def test_masks_are_not_looked_for_where_there_are_none(registered, tmp_path, monkeypatch, capsys):
    """A detector of masks on a set of boxes."""
    name = "shapes_coco_train"
    records = DatasetCatalog.get(name)
    expected = evaluated(build_evaluator(name, None), records, predictions(records))
    content = json.loads(Path(MetadataCatalog.get(name).json_file).read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    boxes = dataclasses.replace(datasets._sets[name], annotations=tmp_path / "boxes.json")
    monkeypatch.setitem(datasets._sets, name, boxes)
    found = evaluated(build_evaluator(name, None), records, predictions(records, masks=True))
    assert found.keys() == {"bbox"}
    assert found["bbox"] == pytest.approx(expected["bbox"], nan_ok=True)
    assert "only boxes are evaluated" in capsys.readouterr().out


def _shared_out(rank, world_size, data, folder):
    os.environ["DETECTRON2_DATASETS"] = data
    datasets.register()
    name = "shapes_coco_train"
    records = DatasetCatalog.get(name)
    outputs = predictions(records)
    half = len(records) // 2
    share = slice(0, half) if rank == 0 else slice(half, None)
    evaluator = build_evaluator(name, folder)
    return evaluated(evaluator, records[share], outputs[share])


def test_ranks_share_the_images(registered, data, tmp_path):
    name = "shapes_coco_train"
    records = DatasetCatalog.get(name)
    alone = evaluated(build_evaluator(name, None), records, predictions(records))
    first, second = run_ranks(_shared_out, 2, str(data), str(tmp_path))
    assert first["bbox"] == pytest.approx(alone["bbox"], nan_ok=True)
    assert second == {}


@pytest.mark.parametrize("year", [2007, 2012])
def test_voc_is_what_detectron2_says(tmp_path, year):
    objects, _ = make_set(1, ties=False)
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "JPEGImages").mkdir()
    write_voc(tmp_path, objects, with_sizes=True)
    for image in objects:
        (tmp_path / "JPEGImages" / f"{image}.jpg").touch()
    (tmp_path / "list.txt").rename(tmp_path / "ImageSets" / "Main" / "test.txt")
    name, classes = f"tiny_voc_{year}", ["cat", "dog"]
    DatasetCatalog.register(name, lambda: load_voc_instances(str(tmp_path), "test", classes))
    try:
        MetadataCatalog.get(name).set(
            thing_classes=classes,
            dirname=str(tmp_path),
            year=year,
            split="test",
            evaluator_type="pascal_voc",
        )
        records = DatasetCatalog.get(name)
        outputs = predictions(records, noise=2.0)
        for output in outputs:
            output["instances"].pred_classes %= 2
        evaluator = build_evaluator(name, str(tmp_path))
        assert isinstance(evaluator, VOCEvaluator)
        results = evaluated(evaluator, records, outputs)["bbox"]
        theirs = evaluated(PascalVOCDetectionEvaluator(name), records, outputs)["bbox"]
        assert {k: results[k] for k in theirs} == pytest.approx(theirs, rel=0, abs=1e-9)
        assert 1 < results["AP"] < 99
        metrics = summarize({"bbox": results}, name)["voc"]
        assert list(metrics) == ["AP", "AP50", "AP75", "per_class"]
        found = json.loads(results_file(tmp_path, name).read_text())
        assert len(found) == sum(len(o["instances"]) for o in outputs)
        box = outputs[0]["instances"].pred_boxes.tensor[0].tolist()
        x, y, width, height = found[0]["bbox"]
        assert [x, y, x + width, y + height] == pytest.approx(box)
        curve = json.loads((tmp_path / "curves.json").read_text())["voc"]["0.50"]
        assert set(curve["precision"]) == {"cat", "dog", "mean"}
        mean = np.mean([curve["precision"]["cat"], curve["precision"]["dog"]], axis=0)
        np.testing.assert_allclose(curve["precision"]["mean"], mean, atol=1e-4)
        if year == 2007:  # eleven points of the same curve
            eleven = 100 * np.mean(curve["precision"]["mean"][::10])
            assert results["AP50"] == pytest.approx(eleven, abs=0.01)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_classes_without_objects_have_no_figure(registered):
    name = "shapes_voc_trainval"
    records = DatasetCatalog.get(name)
    results = evaluated(build_evaluator(name, None), records, predictions(records))
    there = {a["category_id"] for r in records for a in r["annotations"]}
    metrics = summarize(results, name)["voc"]
    for label, (name, ap) in enumerate(metrics["per_class"].items()):
        assert name == CLASSES[label]
        assert ap is not None or label not in there or math.isnan(results["bbox"][f"AP-{name}"])
    counted = [ap for ap in metrics["per_class"].values() if ap is not None]
    assert metrics["AP"] == pytest.approx(np.mean(counted), abs=1e-3)


def test_two_classes_of_one_name_do_not_lose_one(tmp_path):
    """One is found always, the other never: both have their figure, and the mean is of both."""
    truth = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 100}],
        "categories": [{"id": 3, "name": "bird"}, {"id": 8, "name": "bird"}],
        "annotations": [
            {
                "id": i + 1,
                "image_id": 1,
                "category_id": category,
                "iscrowd": 0,
                "bbox": [10, 10 + 40 * i, 30, 30],
                "area": 900,
            }
            for i, category in enumerate((3, 8))
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "a.jpg").touch()
    register_coco_instances("birds", {}, str(tmp_path / "truth.json"), str(tmp_path))
    try:
        records = DatasetCatalog.get("birds")
        found = Instances((100, 100))
        found.pred_boxes = Boxes(torch.tensor([[10.0, 10.0, 40.0, 40.0]]))
        found.pred_classes, found.scores = torch.tensor([0]), torch.tensor([0.9])
        evaluator = CocoEvaluator("birds", str(tmp_path))
        results = evaluated(evaluator, records, [{"instances": found}])
        metrics = summarize(results, "birds")["box"]
        assert metrics["per_class"] == pytest.approx({"bird": 100.0, "bird (2)": 0.0}, abs=1e-6)
        assert metrics["AP"] == pytest.approx(50)
        curves = json.loads((tmp_path / "curves.json").read_text())["box"]["0.50"]["precision"]
        assert set(curves) == {"bird", "bird (2)", "mean"}
    finally:
        DatasetCatalog.remove("birds")
        MetadataCatalog.remove("birds")
