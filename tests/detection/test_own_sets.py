"""Whole fine-tunings on sets that a configuration names, composed of photographs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from detection.config import load_config
from intl_transfer.errors import UserError
from intl_transfer.runs import read_manifest, read_results
from tests.data.photographs import CUT_OUTS, compose, needs_stamps
from tests.detection.conftest import TINY, train_net

ROOT = Path(__file__).resolve().parents[2]
COCO = {"LAYOUT": "coco", "JSON": "photos/coco.json", "IMAGES": "photos/JPEGImages"}
VOC = {"LAYOUT": "voc", "FOLDER": "photos", "SPLIT": "train", "CLASSES": list(CUT_OUTS)}


def config(tmp_path, base, sets, train, test):
    path = tmp_path / "own.yaml"
    values = {
        "_BASE_": str(ROOT / "configs" / "detection" / base),
        "CUSTOM_DATASETS": sets,
        "DATASETS": {"TRAIN": [train], "TEST": [test]},
    }
    path.write_text(json.dumps(values))
    return path


BUDGET = [*TINY, "INPUT.MIN_SIZE_TRAIN", "(64,80)", "SOLVER.MAX_ITER", "3"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    root = tmp_path_factory.mktemp("photographs")
    compose(root)
    return root


@needs_stamps
@pytest.mark.slow
def test_coco_style_photographs_with_a_pyramid(photographs, tmp_path):
    sets = {"photos": COCO, "photos_again": COCO}
    path = config(tmp_path, "shapes_coco_R18_FPN.yaml", sets, "photos", "photos_again")
    out = tmp_path / "run"
    options = ["--config", path, "--weights", "random", "--norm", "BN", "--lr", "0.005"]
    done = train_net(photographs, *options, "--output-dir", out, *BUDGET)
    assert "3 classes, as 'photos' has (the configuration: 8)" in done.stdout
    assert "learning rate 0.005, BN, seed 0" in done.stdout
    results = read_results(out)
    assert results["dataset"] == {
        "name": "photos_again",
        "train": ["photos"],
        "layout": "coco",
        "images": 6,
    }
    assert results["architecture"]["head"] == "FPN"
    assert list(results["metrics"]["mask"]["per_class"]) == list(CUT_OUTS)
    model = read_manifest(out)["config"]["MODEL"]
    assert (model["FPN"]["NORM"], model["ROI_HEADS"]["NUM_CLASSES"]) == ("BN", 3)
    with Image.open(out / "predictions.png") as sheet:
        assert sheet.width > 100


@needs_stamps
@pytest.mark.slow
def test_voc_style_photographs_frozen(photographs, tmp_path):
    sets = {"photos_train": VOC, "photos_test": {**VOC, "SPLIT": "test", "YEAR": 2012}}
    path = config(tmp_path, "shapes_voc_R18_C4.yaml", sets, "photos_train", "photos_test")
    out = tmp_path / "run"
    options = ["--config", path, "--weights", "random", "--output-dir", out, "--scale-to-batch", 1]
    frozen = ["MODEL.BACKBONE.FREEZE_AT", "5"]
    done = train_net(photographs, *options, *BUDGET, *frozen)
    assert "batch 2 -> 1, learning rate 0.01, 6 iterations" in done.stdout
    results = read_results(out)
    assert results["schedule"] == {
        "name": "photos-6",
        "iterations": 6,
        "batch_size": 1,
        "base_lr": 0.01,
    }
    assert list(results["metrics"]["voc"]["per_class"]) == list(CUT_OUTS)
    assert results["dataset"]["images"] == 3


@needs_stamps
@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"photo": COCO}, "no data set 'photos' is registered. Did you mean 'photo'"),
        ({"photos": {"LAYOUT": "coco"}}, "CUSTOM_DATASETS.photos: JSON and IMAGES must be given"),
        ({"photos": COCO, "coco_2017_val": COCO}, "coco_2017_val: a data set of this"),
    ],
)
def test_sets_that_cannot_be_used(photographs, tmp_path, monkeypatch, sets, message):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from detection import datasets

    monkeypatch.setenv("DETECTRON2_DATASETS", str(photographs))
    monkeypatch.setattr(datasets, "_custom", {})
    path = config(tmp_path, "shapes_coco_R18_C4.yaml", sets, "photos", "photos")
    cfg = load_config(str(path))

    def begin():
        datasets.register(cfg.CUSTOM_DATASETS)
        datasets.examine(list(cfg.DATASETS.TRAIN))

    try:
        with pytest.raises(UserError, match=message):
            begin()
    finally:
        for name in datasets._custom:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@needs_stamps
def test_a_wrong_path_ends_it_before_anything_is_built(photographs, tmp_path):
    sets = {"photos": {**COCO, "JSON": "photos/none.json"}}
    path = config(tmp_path, "shapes_coco_R18_C4.yaml", sets, "photos", "photos")
    done = train_net(photographs, "--config", path, "--weights", "random", check=False)
    assert done.returncode == 2
    assert "photos/none.json is missing (looked for" in done.stderr
    assert "Traceback" not in done.stderr
