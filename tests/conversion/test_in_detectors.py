"""Converted weights inside whole detectors, filled by Detectron2's own checkpointer."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from intl_transfer.conversion import convert, load_backbone, to_detectron2, verify
from intl_transfer.conversion.settings import CAFFE
from intl_transfer.errors import UserError
from tests.conversion.layouts import caffe2
from tests.conversion.test_conversion import backbone_state


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    state = backbone_state("resnet50", seed=3)
    torch.save(state, folder / "in.pth")
    report = convert(folder / "in.pth", folder / "out.pth")
    return state, folder / "out.pth", report


def detector(report, meta: str, norm: str = "BN"):
    """A detector as the report's values and nothing else configure it."""
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    cfg = get_cfg()
    for key, value in report["config"].items():
        cfg.merge_from_list([key, value])
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.NORM = norm
    if meta == "C4":
        cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeads"
    else:
        cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
        cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
        cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
        cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
        cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
        cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
        cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
        cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    return build_model(cfg)


@pytest.mark.parametrize(
    ("meta", "norm", "place"),
    [
        ("C4", "naiveSyncBN", lambda key: "roi_heads." if key[:4] == "res5" else "backbone."),
        ("FPN", "BN", lambda key: "backbone.bottom_up."),
    ],
    ids=["C4", "FPN"],
)
def test_every_tensor_arrives_where_it_belongs(converted, meta, norm, place):
    from detectron2.checkpoint import DetectionCheckpointer

    state, file, report = converted
    model = detector(report, meta, norm)
    DetectionCheckpointer(model).load(str(file))
    found = model.state_dict()
    expected = to_detectron2(state)
    assert len(expected) == 265  # 53 convolutions with four batch-norm tensors each
    for key, tensor in expected.items():
        assert torch.equal(found[place(key) + key], tensor), key


def test_a_whole_detector_gives_its_backbone_back(converted, tmp_path):
    from detectron2.checkpoint import DetectionCheckpointer

    state, file, report = converted
    model = detector(report, "C4")
    checkpointer = DetectionCheckpointer(model, str(tmp_path))
    checkpointer.load(str(file))
    checkpointer.save("model_final")
    back = load_backbone(tmp_path / "model_final.pth")
    assert back.keys() == state.keys()
    for key, tensor in state.items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(back[key], tensor), key


def test_a_pickle_for_detectron2s_own_reader(tmp_path):
    from detectron2.checkpoint import DetectionCheckpointer

    state = backbone_state(seed=4)
    torch.save(state, tmp_path / "in.pth")
    report = convert(tmp_path / "in.pth", tmp_path / "out.pkl")
    assert max(report["parity"].values()) <= 1e-5
    with open(tmp_path / "out.pkl", "rb") as file:
        content = pickle.load(file)
    assert (content["__author__"], content["matching_heuristics"]) == ("intl-transfer", True)
    assert all(type(value) is np.ndarray for value in content["model"].values())
    model = detector(report, "C4")
    DetectionCheckpointer(model).load(str(tmp_path / "out.pkl"))
    expected = to_detectron2(state)
    assert torch.equal(model.roi_heads.res5[1].conv2.weight, expected["res5.1.conv2.weight"])
    assert load_backbone(tmp_path / "out.pkl").keys() == {
        key for key in state if not key.endswith("num_batches_tracked")
    }


def test_weights_from_caffe_have_the_features_that_detectron2_gives_them(tmp_path):
    """Against Detectron2's own way: its reader, its names, its default settings, frozen norms."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.layers import FrozenBatchNorm2d
    from detectron2.modeling import build_backbone

    blobs = caffe2(backbone_state("resnet50", seed=8), folded=True)
    # Features of frozen norms that normalize nothing grow with every block.
    blobs = {k: v * 0.3 if k.endswith("2c_bn_s") else v for k, v in blobs.items()}
    file = tmp_path / "R-50.pkl"
    file.write_bytes(
        pickle.dumps({"model": blobs, "__author__": "Caffe2", "matching_heuristics": True})
    )
    report = convert(file, tmp_path / "out.pth")
    assert report["config"]["MODEL.RESNETS.STRIDE_IN_1X1"] is True
    ours = verify.detectron2_backbone("resnet50", tmp_path / "out.pth", CAFFE)
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.OUT_FEATURES = list(verify.STAGES)
    theirs = build_backbone(cfg).eval()
    DetectionCheckpointer(theirs).load(str(file))
    # A new norm of Detectron2 has the variance that leaves scale and bias alone, 1 less epsilon;
    # its loader puts 1 there, which is 5e-6 of each layer's features away.
    norms = [m for m in theirs.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert len(norms) == 53
    for norm in norms:
        norm.running_var.copy_(FrozenBatchNorm2d(1).running_var)
    images = torch.randint(0, 256, (1, 3, 75, 61), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        images = verify.normalized(images.float(), CAFFE)
        expected, found = theirs(images), ours(images)
    assert all(verify.relative_error(expected[name], found[name]) <= 1e-5 for name in verify.STAGES)


def test_a_wrong_stride_setting_shows_from_res3_on(converted, monkeypatch):
    state, file, _ = converted
    right = verify.config_values

    def wrong(architecture, settings):
        return {**right(architecture, settings), "MODEL.RESNETS.STRIDE_IN_1X1": True}

    monkeypatch.setattr(verify, "config_values", wrong)
    errors = verify.parity(state, "resnet50", file)
    assert errors["res2"] < 1e-5  # no stride there
    assert min(errors[stage] for stage in ("res3", "res4", "res5")) > 1e-2


def test_a_dead_channels_tensor_is_compared_too(tmp_path, monkeypatch):
    """A scale of zero hides the running mean from the features, not from the comparison."""
    from detectron2.checkpoint import DetectionCheckpointer

    state = backbone_state()
    state["bn1.weight"][5] = 0
    file = tmp_path / "out.pth"
    torch.save({"model": to_detectron2(state), "matching_heuristics": True}, file)
    load = DetectionCheckpointer.load

    def tampering(self, *arguments):
        result = load(self, *arguments)
        self.model.stem.conv1.norm.running_mean[5] += 1
        return result

    monkeypatch.setattr(DetectionCheckpointer, "load", tampering)
    with pytest.raises(UserError, match=r"stem\.conv1\.norm\.running_mean differs from the file"):
        verify.parity(state, "resnet18", file)


@pytest.mark.parametrize("name", ["resnet34", "wide_resnet50_2"])
def test_other_depths_and_widths(tmp_path, name):
    torch.save(backbone_state(name), tmp_path / "in.pth")
    report = convert(tmp_path / "in.pth", tmp_path / "out.pth")
    assert report["architecture"] == name
    assert max(report["parity"].values()) < 1e-5
