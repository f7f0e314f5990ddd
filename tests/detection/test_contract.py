"""The contract for data: every kind of set is used or refused, by doctor and training alike."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

from detection import datasets
from detection.config import CONFIGS
from detection.evaluators import build_evaluator, summarize
from detection.images import Mapper
from detection.train_net import prepare
from intl_transfer.data.detection_doctor import chosen, look
from intl_transfer.data.shapes import CLASSES
from intl_transfer.errors import UserError
from tests.data import odd_coco, odd_coco_wrong, odd_voc
from tests.detection.conftest import TINY

ROOT = Path(__file__).resolve().parents[2]


def configured(folder: Path, block: dict, kind, base: str = "shapes_coco_R18_FPN.yaml") -> Path:
    """A user's configuration of one set."""
    options = dict(kind.options)
    if classes := options.pop("CLASSES", None):
        for one in block.values():
            one["CLASSES"] = classes
    values = {
        "_BASE_": str(ROOT / "configs" / "detection" / base),
        "CUSTOM_DATASETS": block,
        "DATASETS": {"TRAIN": [next(iter(block))], "TEST": [list(block)[-1]]},
        **options,
    }
    path = folder / "own.yaml"
    path.write_text(json.dumps(values))
    return path


def trained(config: Path, folder: Path):
    """The configuration as a training begins with it, or the error that ends it."""
    arguments = SimpleNamespace(
        config=str(config),
        opts=[*TINY, "MODEL.DEVICE", "cpu"],
        weights="random",
        output_dir=str(folder / "run"),
        resume=False,
        eval_only=False,
        seed=0,
        lr=None,
        norm="BN",
        scale_to_batch=None,
        num_gpus=1,
        num_machines=1,
        check_expected=False,
    )
    try:
        return prepare(arguments)[0]
    except UserError as error:
        return str(error)


def examined(config: Path, folder: Path):
    """The doctor's problems and notes."""
    (request,) = chosen([str(config)], folder)
    findings = look(request, folder / "sheets", everything=True)
    return tuple([line for f in findings for line in getattr(f, k)] for k in ("problems", "notes"))


@pytest.fixture
def forgotten():
    yield
    for name in list(datasets._custom):
        del datasets._custom[name]
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def perfect(record, masks):
    """The truth of a record as a detector's output."""
    annotations = [a for a in record["annotations"] if not a.get("iscrowd")]
    size = record["height"], record["width"]
    found = Instances(size)
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.pred_classes = torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)
    found.scores = torch.linspace(1, 0.9, len(annotations))
    if masks:
        drawn = np.zeros((len(annotations), *size), bool)
        for mask, a in zip(drawn, annotations, strict=True):
            shape = a["segmentation"]
            if isinstance(shape, list):
                shape = mask_util.merge(mask_util.frPyObjects(shape, *size))
            mask[:] = mask_util.decode(shape)
        found.pred_masks = torch.from_numpy(drawn)
    return {"instances": found}


def check(config: Path, folder: Path, kind) -> None:
    """Doctor and training agree; what is refused says why, what is used scores 100 by the truth."""
    problems, notes = examined(config, folder)
    cfg = trained(config, folder)
    if kind.refused is not None:
        assert isinstance(cfg, str), notes
        assert re.search(kind.refused, cfg), cfg
        assert cfg in problems
        return
    assert problems == []
    assert not isinstance(cfg, str), cfg
    if kind.note is not None:
        assert [note for note in notes if re.search(kind.note, note)], notes
    assert kind.masks == cfg.MODEL.MASK_ON
    train, test = cfg.DATASETS.TRAIN[0], cfg.DATASETS.TEST[0]
    mapper, objects = Mapper(cfg, True), 0
    for record in DatasetCatalog.get(train):
        found = mapper(record)["instances"]
        objects += len(found)
        assert not (cfg.MODEL.MASK_ON and len(found)) or len(found.gt_masks) == len(found)
    assert objects > 0
    assert list(MetadataCatalog.get(train).thing_classes) == list(cfg.CUSTOM_DATASETS[test].CLASSES)
    records, evaluator = DatasetCatalog.get(test), build_evaluator(test, str(folder))
    evaluator.reset()
    evaluator.process(records, [perfect(record, cfg.MODEL.MASK_ON) for record in records])
    for figures in summarize(evaluator.evaluate(), test).values():
        assert figures["AP50"] == pytest.approx(100)
        assert {v for v in figures["per_class"].values() if v is not None} == {figures["AP"]}


assert odd_coco_wrong.KINDS is odd_coco.KINDS  # which it has added to


@pytest.mark.parametrize("name", odd_coco.KINDS)
def test_coco(tmp_path, monkeypatch, forgotten, name):
    kind = odd_coco.KINDS[name]
    odd = odd_coco.Odd(tmp_path / "set")
    kind.change(odd)
    monkeypatch.chdir(tmp_path)
    check(configured(tmp_path, odd.write(), kind), tmp_path, kind)


def _in_a_base(folder: Path, values: dict) -> dict:
    (folder / "base.yaml").write_text(json.dumps(values))
    return {"_BASE_": "base.yaml"}


def _labels(folder: Path, values: dict, **labels: object) -> dict:
    return {**values, "DATASETS": {**values["DATASETS"], "LABELS": labels}}


def _listed(folder: Path, values: dict, ids: str) -> dict:
    """Image 1 has no object."""
    file = folder / "set" / "train.json"
    content = json.loads(file.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] > 1]
    file.write_text(json.dumps(content))
    (folder / "ids.txt").write_text(ids)
    return _labels(folder, values, LIST=str(folder / "ids.txt"))


def _with_set(folder: Path, values: dict, name: str, **changes: str) -> dict:
    sets = values["CUSTOM_DATASETS"]
    return {**values, "CUSTOM_DATASETS": {**sets, name: {**sets["odd_train"], **changes}}}


def _named(folder: Path, values: dict, name: str) -> dict:
    datasets = {**values["DATASETS"], "TRAIN": [name]}
    return {**_with_set(folder, values, name), "DATASETS": datasets}


def _trained_on(folder: Path, values: dict, names: list) -> dict:
    return {**values, "DATASETS": {**values["DATASETS"], "TRAIN": names}}


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (_in_a_base, None),
        (partial(_labels, FRACTION=0.5), None),
        (partial(_labels, FRACTION=50.0), "FRACTION is 50.0; expected a fraction above 0"),
        (partial(_labels, LIST="gone.txt"), "gone.txt does not exist; expected image ids"),
        (partial(_listed, ids="1\n2\n"), None),
        (partial(_listed, ids="1\n"), "none of the 1 images whose labels are used has an obj"),
        (partial(_with_set, name="unused", JSON="gone.json"), None),
        (partial(_named, name="a/b"), None),
        (partial(_trained_on, names=[]), "DATASETS.TRAIN is empty; expected the name of a"),
    ],
)
def test_doctor_and_training_agree_on_configurations(
    tmp_path, monkeypatch, forgotten, change, refused
):
    odd = odd_coco.Odd(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    config = configured(tmp_path, odd.write(), odd_coco.Kind(lambda odd: None))
    config.write_text(json.dumps(change(tmp_path, json.loads(config.read_text()))))
    problems, _ = examined(config, tmp_path)
    cfg = trained(config, tmp_path)
    assert isinstance(cfg, str) == bool(problems) == (refused is not None), (problems, cfg)
    if refused is not None:
        assert re.search(refused, cfg)
        assert cfg in problems


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("count", [80, None])
def test_doctor_and_training_agree_on_the_number_of_classes(
    registered, data, tmp_path, monkeypatch, forgotten, own, count
):
    """A published set that is trained on has the configured number; an own one determines it."""
    monkeypatch.chdir(tmp_path)
    parts = {"train": "odd_train", "val": "odd_test"}
    sets = {
        name: {
            "LAYOUT": "coco",
            "JSON": f"shapes/coco/annotations/instances_{part}.json",
            "IMAGES": f"shapes/coco/{part}",
        }
        for part, name in parts.items()
    }
    values = {
        "_BASE_": str(CONFIGS / "shapes_coco_R18_C4.yaml"),
        "CUSTOM_DATASETS": sets,
        "DATASETS": {"TRAIN": ["odd_train" if own else "shapes_coco_train"], "TEST": ["odd_test"]},
        "MODEL": {"ROI_HEADS": {"NUM_CLASSES": count}} if count else {},
    }
    config = tmp_path / "own.yaml"
    config.write_text(json.dumps(values))
    problems, _ = examined(config, data)
    cfg = trained(config, tmp_path)
    if own or count is None:
        assert problems == []
        assert len(CLASSES) == cfg.MODEL.ROI_HEADS.NUM_CLASSES
    else:
        assert problems == [cfg]
        assert cfg.startswith("MODEL.ROI_HEADS.NUM_CLASSES is 80, but 'shapes_coco_train' has ")


@pytest.mark.parametrize("name", odd_voc.KINDS)
def test_voc(tmp_path, monkeypatch, forgotten, name):
    kind = odd_voc.KINDS[name]
    odd = odd_voc.Odd(tmp_path / "set")
    kind.change(odd)
    monkeypatch.chdir(tmp_path)
    check(configured(tmp_path, odd.write(), kind, "shapes_voc_R18_C4.yaml"), tmp_path, kind)
