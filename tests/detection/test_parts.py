from __future__ import annotations

import json
import shutil

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from detection import datasets, weights
from detection.config import load_config
from detection.roi_heads import Res5ROIHeadsExtraNorm
from intl_transfer.errors import UserError
from tests.detection.conftest import TINY


def detector(*overrides: str) -> torch.nn.Module:
    name = "shapes_coco_R50_C4"
    return build_model(load_config(name, ["MODEL.DEVICE", "cpu", *TINY, *overrides]))


@pytest.mark.parametrize(
    ("depth", "channels", "blocks"), [(18, 64, 2), (34, 64, 3), (50, 256, 3), (101, 256, 3)]
)
def test_res5_has_the_blocks_of_its_depth(depth, channels, blocks):
    model = detector(
        *["MODEL.RESNETS.DEPTH", str(depth)], *["MODEL.RESNETS.RES2_OUT_CHANNELS", str(channels)]
    )
    assert isinstance(model.roi_heads, Res5ROIHeadsExtraNorm)
    res5 = model.roi_heads.res5
    assert [name for name, _ in res5.named_children()] == [*map(str, range(blocks)), "norm"]
    assert isinstance(res5.norm, torch.nn.BatchNorm2d)
    assert res5.norm.num_features == channels * 8
    out = res5(torch.randn(2, channels * 4, 7, 7))
    assert out.shape == (2, channels * 8, 4, 4)
    assert ("conv3" in dict(res5[0].named_children())) == (depth >= 50)


def r18() -> torch.nn.Module:
    return detector("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64")


def test_right_weights_pass_and_fill_the_backbone(backbone_file):
    from detectron2.checkpoint import DetectionCheckpointer

    model = r18()
    content = weights.read_weights(str(backbone_file))
    weights.check_backbone(model, content["model"], "w")
    with pytest.raises(UserError, match="differs from the file after loading"):
        weights.check_loaded(model, content["model"], "w")
    DetectionCheckpointer(model).load(str(backbone_file))
    weights.check_loaded(model, content["model"], "w")
    found = model.roi_heads.res5[1].conv2.weight
    assert torch.equal(found, content["model"]["res5.1.conv2.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {f"encoder.{k}": v for k, v in w.items()}, "nothing in it matches"),
        (lambda w: {k: v for k, v in w.items() if "res4.1.conv2.weight" not in k}, "1 of the"),
        (
            lambda w: {**w, "res3.0.conv1.weight": torch.zeros(3, 3)},
            r"res3\.0\.conv1\.weight has shape \(3, 3\)",
        ),
        (
            lambda w: {**w, "stem.conv1.weight": w["stem.conv1.weight"] * float("nan")},
            r"stem\.conv1\.weight contains NaN",
        ),
        (lambda w: {k: v for k, v in w.items() if ".1." not in k}, "another depth"),
    ],
)
def test_wrong_weights_are_refused(backbone_file, change, message):
    content = weights.read_weights(str(backbone_file))
    with pytest.raises(UserError, match=message):
        weights.check_backbone(r18(), change(content["model"]), "w")


def test_weights_of_another_depth_are_refused(backbone_file):
    content = weights.read_weights(str(backbone_file))
    with pytest.raises(UserError, match=r"another depth.*MODEL\.RESNETS\.DEPTH"):
        weights.check_backbone(detector(), content["model"], "w")


def test_weights_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS is empty.*--weights random"):
        weights.read_weights("")
    with pytest.raises(UserError, match=r"weights not found: looked for .*intl-transfer convert"):
        weights.read_weights(str(tmp_path / "absent.pth"))
    with pytest.raises(UserError, match=r"is a folder; .*convert .* weights/test_weights\S*\.pth`"):
        weights.read_weights(str(tmp_path))
    (tmp_path / "half.pth").write_bytes(b"PK\x03\x04half")
    with pytest.raises(UserError, match="cannot be read"):
        weights.read_weights(str(tmp_path / "half.pth"))


def edited(data, tmp_path, change):
    """A copy of the set whose COCO annotations were changed."""
    root = tmp_path / "datasets"
    shutil.copytree(data, root)
    file = root / "shapes" / "coco" / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return root


def _outside(content):
    content["annotations"][2]["bbox"] = [500, 10, 20, 20]


def _missing_image(content):
    content["images"][1]["file_name"] = "absent.jpg"


def _empty(content):
    content["images"], content["annotations"] = [], []


def _external(content):
    content["annotations"][0]["image_id"] = 12345


def _short_box(content):
    content["annotations"][0]["bbox"] = [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_outside, r"annotation 3: the box .* lies outside its image 0000.*128 x 128"),
        (_missing_image, r"names 1 image\(s\) that .* lacks, the first: absent\.jpg"),
        (_empty, "is empty: 0 images, 0 annotations"),
        (_external, "is of image 12345, which is not listed"),
        (_short_box, r"bbox is \[1, 2, 3\]"),
    ],
)
def test_bad_annotations_are_named(data, tmp_path, monkeypatch, registered, change, message):
    root = edited(data, tmp_path, change)
    for name in registered:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    datasets.register()
    with pytest.raises(UserError, match=message):
        datasets.check(["shapes_coco_train"])
    assert datasets.check(["shapes_coco_val", "shapes_voc_test"])


def test_missing_data_says_where_it_was_looked_for(tmp_path, monkeypatch, registered):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    datasets.register()
    with pytest.raises(UserError, match=r"intl-transfer data shapes --out"):
        datasets.check(["shapes_coco_train"])
    with pytest.raises(UserError, match=r"'coco_2017_train'.*instances_train2017\.json is missing"):
        datasets.check(["coco_2017_train"])
    with pytest.raises(UserError, match=r"'voc_2007_test'.*test\.txt is missing"):
        datasets.check(["voc_2007_test"])
    with pytest.raises(UserError, match=r"no data set 'shapes_coco_trian'.*'shapes_coco_train'"):
        datasets.check(["shapes_coco_trian"])


def test_a_checkpoint_cut_off_while_it_is_written_has_no_name(tmp_path, monkeypatch):
    from detection.trainer import AtomicCheckpointer

    checkpointer = AtomicCheckpointer(torch.nn.Linear(2, 2), str(tmp_path))
    checkpointer.save("model_0000001", iteration=1)
    assert torch.load(tmp_path / "model_0000001.pth", weights_only=True)["iteration"] == 1

    def cut_off(data, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", cut_off)
    with pytest.raises(OSError, match="disk full"):
        checkpointer.save("model_0000002", iteration=2)
    assert [p.name for p in tmp_path.glob("model_*.pth")] == ["model_0000001.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
