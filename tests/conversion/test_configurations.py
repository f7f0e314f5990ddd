"""Configurations are read whatever the tensors are called: beside them, in parts, in bases."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torchvision.models.detection._utils import overwrite_eps
from torchvision.ops.misc import FrozenBatchNorm2d

from intl_transfer.conversion import read_backbone, verify
from intl_transfer.conversion.settings import IMAGENET
from intl_transfer.errors import UserError
from tests.conversion.layouts import behind, caffe2, detectron2
from tests.conversion.producers import ASSUMED, READ, of_torchvision
from tests.conversion.test_conversion import backbone_state
from tests.conversion.test_namings import saved, transformers

STATE = backbone_state()
INFERRED = "inferred from names"


def levels(settings):
    return [source.level for source in settings.sources().values()]


def folder(path, tensors, **configs):
    save_file(tensors, path / "model.safetensors")
    for name, config in configs.items():
        (path / f"{name}.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("part", ["backbone_config", "vision_config", None])
@pytest.mark.parametrize("prefix", ["vision_model.", "model.pixel_level_module.encoder.", ""])
def test_a_part_of_a_model_of_transformers_has_its_own_configuration(tmp_path, part, prefix):
    ours = pytest.importorskip("transformers").ResNetConfig(downsample_in_bottleneck=True).to_dict()
    config = ours if part is None else {"model_type": "maskformer", part: ours}
    prepared = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    tensors = behind(prefix, transformers(STATE))
    found = read_backbone(
        folder(tmp_path, tensors, config=config, preprocessor_config=prepared)
    ).settings
    assert (found.pixel_mean, found.stride_in_1x1) == ((127.5,) * 3, True)
    assert levels(found) == [READ, INFERRED, READ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: t.TimmBackboneConfig(backbone="resnetaa50"), r"its network is 'resnetaa50'"),
        (lambda t: t.DetrConfig(backbone="resnet50", dilation=True), r"output_stride=16|dilation="),
        (lambda t: t.DetrConfig(backbone="resnet50"), None),
        (
            lambda t: t.MaskFormerConfig(backbone_config=t.ResNetConfig(hidden_act="gelu")),
            "hidden_act=gelu",
        ),
    ],
)
def test_arguments_of_a_backbone_in_a_model_of_transformers(tmp_path, make, message):
    module = pytest.importorskip("transformers")
    try:
        config = make(module).to_dict()
    except ImportError as error:
        pytest.skip(str(error))
    file = folder(tmp_path, behind("backbone.conv_encoder.model.", STATE), config=config)
    if message is None:
        assert levels(read_backbone(file).settings) == [ASSUMED, ASSUMED, READ]
        return
    with pytest.raises(UserError, match=message):
        read_backbone(file)


@pytest.mark.parametrize("prefix", ["detector.backbone.", "", "teacher.backbone."])
@pytest.mark.parametrize("more", ["", ", dilations=(1, 1, 1, 2)"])
def test_openmmlabs_configuration_is_read_behind_any_prefix(tmp_path, prefix, more):
    text = (
        "model = dict(type='SoftTeacher', detector=dict(data_preprocessor=dict("
        "mean=[103.53, 116.28, 123.675], std=[1., 1., 1.], bgr_to_rgb=False), "
        f"backbone=dict(type='ResNet', style='caffe'{more})))"
    )
    file = saved(tmp_path / "in.pth", {"meta": {"cfg": text}, "state_dict": behind(prefix, STATE)})
    if more:
        with pytest.raises(UserError, match=r"model\.detector\.backbone says dilations="):
            read_backbone(file)
        return
    found = read_backbone(file).settings
    assert (found.channels, found.pixel_std, found.stride_in_1x1) == ("BGR", (1, 1, 1), True)
    assert levels(found) == [READ] * 3


FLOW = "PIXEL_MEANS: [[[102.9801, 115.9465, 122.7717]]]\nRESNETS:\n  STRIDE_1X1: false\n"
BLOCK = (
    "!!python/object/new:detectron.utils.collections.AttrDict\ndictitems:\n  PIXEL_MEANS:\n"
    "  - - - 102.9801\n      - 115.9465\n      - 122.7717\n  RESNETS:\n    STRIDE_1X1: false\n"
)


@pytest.mark.parametrize("text", [FLOW, BLOCK])
def test_detectrons_own_configuration_is_read(tmp_path, text):
    blobs = caffe2(STATE)
    file = tmp_path / "in.pkl"
    file.write_bytes(pickle.dumps({"blobs": blobs, "cfg": text}))
    found = read_backbone(file).settings
    assert (found.channels, found.pixel_mean) == ("BGR", (102.9801, 115.9465, 122.7717))
    assert found.stride_in_1x1 is False
    assert levels(found) == [READ, INFERRED, READ]
    file.write_bytes(pickle.dumps({"blobs": blobs, "cfg": text + "  RES5_DILATION: 2\n"}))
    with pytest.raises(UserError, match="RES5_DILATION=2"):
        read_backbone(file)


def test_configurations_that_are_not_understood_are_named(tmp_path):
    blobs = caffe2(STATE)
    file = tmp_path / "in.pkl"
    file.write_bytes(pickle.dumps({"blobs": blobs, "cfg": "PIXEL_MEANS: !!binary x"}))
    with pytest.warns(UserWarning, match="PIXEL_MEANS in its 'cfg' is not understood"):
        assert levels(read_backbone(file).settings) == [INFERRED] * 3
    file = saved(tmp_path / "in.pth", {"meta": {"cfg": "a = ("}, "state_dict": STATE})
    with pytest.warns(UserWarning, match="configuration in its 'meta' is not understood"):
        read_backbone(file)
    made = folder(tmp_path, STATE, preprocessor_config={"rescale_factor": "x"})
    with pytest.warns(UserWarning, match=r"preprocessor_config\.json: its steps are not"):
        read_backbone(made)


def detector(path, text):
    (path / "config.yaml").write_text(text)
    return saved(path / "model_final.pth", {"model": behind("backbone.", detectron2(STATE))})


def test_detectron2s_configuration_is_read_key_by_key_with_its_bases(tmp_path):
    from detectron2.config import get_cfg

    stated = "INPUT: {FORMAT: RGB}\nMODEL: {PIXEL_STD: [2, 3, 4], PIXEL_MEAN: [5, 6, 7]}\n"
    file = detector(tmp_path, f"_BASE_: base.yaml\n{stated}")
    (tmp_path / "base.yaml").write_text("MODEL: {RESNETS: {DEPTH: 18}}\n")
    theirs = get_cfg()
    theirs.merge_from_file(str(tmp_path / "config.yaml"))
    found = read_backbone(file).settings
    assert (found.channels, list(found.pixel_mean)) == (
        theirs.INPUT.FORMAT,
        theirs.MODEL.PIXEL_MEAN,
    )
    assert found.stride_in_1x1 == theirs.MODEL.RESNETS.STRIDE_IN_1X1
    assert levels(found) == [READ, READ, INFERRED]
    (tmp_path / "base.yaml").unlink()
    with pytest.warns(UserWarning, match=r"there is no file .*does not state itself is assumed"):
        found = read_backbone(file).settings
    assert (found.channels, found.pixel_mean) == ("RGB", (5, 6, 7))
    assert levels(found) == [READ, READ, ASSUMED]


def test_dilation_of_detectron2_is_refused(tmp_path):
    file = detector(tmp_path, "MODEL: {RESNETS: {RES5_DILATION: 2}}\n")
    with pytest.raises(UserError, match=r"MODEL\.RESNETS says RES5_DILATION=2"):
        read_backbone(file)


def test_epsilon_of_torchvisions_detectors_is_said_to_be_assumed(tmp_path):
    """It is 0 with their weights for COCO; what the documentation writes has exact features."""
    own = frozen(torchvision.models.resnet18(weights=None, norm_layer=FrozenBatchNorm2d))
    state = {f"backbone.body.{k}": v.clone() for k, v in own.state_dict().items() if k[:2] != "fc"}
    beside = {"backbone.fpn.inner_blocks.0.0.weight": torch.zeros(2, 2, 1, 1)}
    with pytest.warns(UserWarning, match="epsilon no tensor shows"):
        read_backbone(saved(tmp_path / "in.pth", {**state, **beside}))
    overwrite_eps(own, 0.0)
    state = {k.removeprefix("backbone.body."): v for k, v in state.items() if "body" in k}
    for name in [k.removesuffix("running_var") for k in state if k.endswith("running_var")]:
        state[name + "weight"] *= (1 + 1e-5 / state[name + "running_var"]).sqrt()
    found = read_backbone(saved(tmp_path / "out.pth", state)).state
    images = torch.rand(1, 3, 32, 32)
    ours = verify.torchvision_network(found, "resnet18", IMAGENET)
    with torch.no_grad():
        theirs = of_torchvision(own)(images)
        features = verify.torchvision_features(ours, images)["res5"]
    assert verify.relative_error(theirs, features) < 1e-5


def frozen(network):
    for module in network.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(1e-5, 1e-3)
            module.weight.uniform_(0.01, 0.02)
    return network.eval()


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50"])
def test_heads_of_torchvisions_segmentation_hint_at_dilations(tmp_path, name):
    with torch.device("meta"):
        network = getattr(torchvision.models.segmentation, name)(
            weights=None, weights_backbone=None
        )
    values = {k: torch.ones(()).expand(v.shape) for k, v in network.state_dict().items()}
    with pytest.warns(UserWarning, match="dilations in place of the strides of layer3"):
        read_backbone(saved(tmp_path / "in.pth", values))
