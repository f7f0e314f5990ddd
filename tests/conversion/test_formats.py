"""Every format, made by renaming: recognized, read, written back; and broken in ten ways."""

from __future__ import annotations

import pickle

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file

from intl_transfer.conversion import (
    audit,
    convert,
    load_backbone,
    read_backbone,
    to_detectron2,
    verify,
)
from intl_transfer.conversion.adapters import WRITTEN
from intl_transfer.conversion.adapters.caffe2 import CAFFE2
from intl_transfer.conversion.pipeline import CheckpointMetadata, with_metadata
from intl_transfer.conversion.settings import PIXELS
from intl_transfer.errors import UserError
from tests.conversion.layouts import LAYOUTS, behind, caffe2, detectron2, head, small_state
from tests.conversion.test_conversion import backbone_state

NAMES = list(LAYOUTS)
ONLINE, TARGET = small_state(1), small_state(2)


def write(path, values):
    """By torch; arrays of numpy as a pickle, like the tools that make them."""
    if "blobs" in values:
        path = path.with_suffix(".pkl")
        path.write_bytes(pickle.dumps(values, protocol=2))
    else:
        torch.save(values, path)
    return path


def equal(found, expected):
    expected = {k: v for k, v in expected.items() if not k.endswith("tracked")}
    assert {k for k in found if not k.endswith("tracked")} == expected.keys()
    assert all(torch.equal(found[k], v) for k, v in expected.items())


@pytest.mark.parametrize("name", NAMES)
def test_each_format_is_recognized_and_read(tmp_path, name):
    made = LAYOUTS[name]
    file = write(tmp_path / "in.pth", made.build(ONLINE, TARGET))
    found = read_backbone(file)
    assert (found.source_format, found.method) == (made.format, made.method)
    assert found.branches == made.branches
    assert found.branch == made.branches[0]
    assert (found.settings.channels, found.settings.pixel_mean[0]) == made.pixels
    states = {"online": ONLINE, "target": TARGET}
    for branch in made.branches:
        equal(load_backbone(file, branch), states.get(branch, ONLINE))
    assert audit(found.state) == "resnet18"
    taken = sum(not key.endswith("tracked") for key in found.state)
    assert taken == 100  # 20 convolutions with four batch-norm tensors each
    if made.branches[0] in states:
        with pytest.raises(UserError, match=rf"no branch 'middle'; it has '{made.branches[0]}"):
            read_backbone(file, "middle")


def test_other_words_for_the_two_networks(tmp_path):
    file = write(tmp_path / "in.pth", LAYOUTS["dino"].build(ONLINE, TARGET))
    equal(load_backbone(file, "student"), ONLINE)
    equal(load_backbone(file, "teacher"), TARGET)
    file = write(tmp_path / "in.pth", LAYOUTS["simsiam"].build(ONLINE, TARGET))
    with pytest.raises(
        UserError, match=r"in\.pth \(SimSiam\) has no branch 'ema'; it has 'online'"
    ):
        load_backbone(file, "ema")


def _without(state):
    del state["layer3.1.bn2.running_var"]


def _more(state):
    state["layer2.0.attention.weight"] = torch.ones(3)


def _transposed(state):
    state["layer2.0.conv1.weight"] = state["layer2.0.conv1.weight"].transpose(0, 1)


def _shallower(state):
    for key in [key for key in state if key.startswith("layer3.1.")]:
        del state[key]


def _nan(state):
    state["bn1.running_mean"] = torch.full((64,), float("nan"))


BROKEN = {
    "missing key": (
        _without,
        r"not a complete resnet18: 1 tensors missing \(first: layer3\.1\.bn2",
    ),
    "extra key": (_more, r"attention"),
    "transposed": (_transposed, r"layer2\.0\.conv1\.weight: expected shape \(128, 64, 3, 3\)"),
    "wrong depth": (_shallower, r"no known ResNet has \(2, 2, 1, 2\) basic blocks"),
    "NaN": (_nan, r"bn1\.running_mean contains NaN or infinite values"),
}


@pytest.mark.parametrize("way", BROKEN)
@pytest.mark.parametrize("name", NAMES)
def test_broken_networks_are_refused_by_name(tmp_path, name, way):
    change, message = BROKEN[way]
    made = LAYOUTS[name]
    states = [small_state(1), small_state(2)]
    for state in states:
        change(state)
    if name == "caffe2" and way == "missing key":
        # Statistics may be missing there; they were folded away.
        states[0]["layer3.1.bn2.running_var"] = torch.ones(256)
        del states[0]["layer3.1.bn2.bias"]
        message = r"1 tensors missing \(first: layer3\.1\.bn2\.bias\)"
    file = write(tmp_path / "in.pth", made.build(*states))
    with pytest.raises(UserError, match=message) as caught:
        convert(file, tmp_path / "out.pth")
    assert str(file) in str(caught.value)
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("detectron2", "caffe2")])
def test_names_of_two_prefixes_are_never_mixed(tmp_path, name):
    """Half of the network behind another prefix, in the same dictionary."""
    halves = [dict(list(ONLINE.items())[:61]), dict(list(ONLINE.items())[61:])]
    values = LAYOUTS[name].build(halves[0], halves[0])
    inner = values
    while not any(isinstance(value, torch.Tensor) for value in inner.values()):
        inner = next(
            value
            for key, value in inner.items()
            if isinstance(value, dict) and key not in ("meta", "config")
        )
    inner.update(behind("other.", halves[1]))
    file = write(tmp_path / "in.pth", values)
    with pytest.raises(UserError, match=r"tensors of \d ResNets.*'\S*other\.' \(\d+ tensors\)"):
        read_backbone(file)
    other = next(key for key in read_prefixes(file) if key.endswith("other."))
    with pytest.raises(UserError, match=r"conv1\.weight|layer1|blocks in its four stages"):
        read_backbone(file, other)


def read_prefixes(file):
    from intl_transfer.conversion.adapters.base import places_in
    from intl_transfer.conversion.reading import read_content

    return [place.prefix for place in places_in(read_content(file).tensors)]


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_becomes_float32(tmp_path, name):
    half = {k: v.half() if v.is_floating_point() else v for k, v in small_state(0).items()}
    file = write(tmp_path / "in.pth", LAYOUTS[name].build(half, half))
    found = load_backbone(file)
    kept = [v for v in found.values() if v.is_floating_point()]
    assert {v.dtype for v in kept} == {torch.float32}
    assert torch.equal(found["layer4.1.bn2.bias"], half["layer4.1.bn2.bias"].float())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ["fc only", "optimizer only", "empty"])
def test_files_without_a_network_say_what_they_hold(tmp_path, name, what):
    values = LAYOUTS[name].build({}, {}) if what == "fc only" else {}
    if what == "optimizer only":
        values = {"optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}}}
    file = write(tmp_path / "in.pth", values)
    expected = r"of no known format \(its first keys: "
    expected += {"optimizer only": "optimizer", "empty": "none", "fc only": r"\S"}[what]
    with pytest.raises(UserError, match=expected):
        read_backbone(file)


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_each_format_is_written_and_comes_back(tmp_path, name):
    """What the other direction writes has the names that the layouts' fixtures have."""
    values = WRITTEN[name].from_torchvision(ONLINE)
    torch.save(values, tmp_path / "out.pth")
    equal(load_backbone(tmp_path / "out.pth"), ONLINE)
    fixture = {
        "barlow-twins": "barlow_twins",
        "intl-authors": "intl_authors",
        "moco": "moco_v2",
        "moco-v3": "moco_v3",
        "simclr": "simclr_spijkervet",
        "solo-learn": "solo_learn",
        **dict.fromkeys(
            ("byol", "lightly", "caffe2", "swav", "timm", "transformers")
        ),  # spelt otherwise by their fixtures
    }.get(name, name)
    if fixture is not None:
        there = flat(LAYOUTS[fixture].build(ONLINE, TARGET))
        assert {key for key in flat(values) if "author" not in key} <= there
    else:
        assert len(flat(values)) >= 100


def flat(values, place=""):
    found = set()
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{place}{key}/")
        else:
            found.add(f"{place}{key}")
    return found


def test_detectron2s_names_are_those_of_published_converters():
    assert to_detectron2(ONLINE).keys() == detectron2(ONLINE).keys()


def test_caffe2s_names_are_those_that_detectron2_undoes(tmp_path):
    from detectron2.checkpoint.c2_model_loading import convert_basic_c2_names

    state = small_state(1, "resnet50")
    written = WRITTEN["caffe2"].from_torchvision(state)["model"]
    theirs = dict(zip(convert_basic_c2_names(list(written)), written.values(), strict=True))
    ours = to_detectron2(state)
    assert theirs.keys() == ours.keys()
    assert all(theirs[key] is ours[key] for key in ours)


def test_folded_batch_norms_of_caffe2_get_detectron2s_statistics(tmp_path):
    from detectron2.layers import FrozenBatchNorm2d

    values = {"model": caffe2(ONLINE, folded=True), "__author__": "Caffe2"}
    (tmp_path / "R-18.pkl").write_bytes(pickle.dumps(values, protocol=2))
    found = read_backbone(tmp_path / "R-18.pkl")
    frozen = FrozenBatchNorm2d(64)
    assert torch.equal(found.state["bn1.running_var"], frozen.running_var)
    assert torch.equal(found.state["bn1.running_mean"], frozen.running_mean)
    assert torch.equal(found.state["bn1.weight"], ONLINE["bn1.weight"])
    assert found.settings.stride_in_1x1
    assert found.settings.pixel_std == (1.0, 1.0, 1.0)
    assert sorted(found.dropped) == ["conv1_b", "fc1000_w"]


def test_vissls_momentum_encoder_is_the_target(tmp_path):
    values = LAYOUTS["vissl"].build(ONLINE, TARGET)
    moco = {"moco_encoder": behind("base_model.trunk._feature_blocks.", TARGET)}
    values["classy_state_dict"]["loss"] = moco
    file = write(tmp_path / "in.pth", values)
    assert read_backbone(file).branches == ("online", "target")
    equal(load_backbone(file, "target"), TARGET)


def test_what_openmmlab_keeps_of_its_configuration(tmp_path):
    for text, channels in (("style='caffe'", "BGR"), ("style='pytorch'", "RGB")):
        values = {"meta": {"config": f"dict(type='ResNet', {text})"}, "state_dict": {}}
        values["state_dict"] = behind("backbone.", ONLINE)
        file = write(tmp_path / "in.pth", values)
        settings = read_backbone(file).settings
        assert settings.channels == channels
        assert settings.stride_in_1x1 == (channels == "BGR")
        assert settings.strides_source.level == "read from its configuration"
        # It says neither mean nor order.
        level = "inferred from names" if channels == "BGR" else "assumed"
        assert settings.pixels_source.level == settings.channels_source.level == level


@pytest.mark.parametrize("pixels", ["imagenet", "unit", "caffe"])
@pytest.mark.parametrize("style", ["caffe", "pytorch", None])
def test_strides_that_a_file_states_outlast_what_is_said_of_pixels(tmp_path, pixels, style):
    """With --pixels imagenet a network of Caffe's strides got torchvision's."""
    config = "" if style is None else f"model = dict(backbone=dict(type='ResNet', style='{style}'))"
    values = {"meta": {"cfg": config}, "state_dict": behind("backbone.", small_state(1))}
    found = read_backbone(write(tmp_path / "in.pth", values))
    told = with_metadata(found, CheckpointMetadata(pixels=pixels)).settings
    assert told.pixel_std == PIXELS[pixels].pixel_std
    assert told.channels == PIXELS[pixels].channels
    assert str(told.pixels_source) == f"told by the user (--pixels {pixels})"
    expected = pixels == "caffe" if style is None else style == "caffe"
    assert told.stride_in_1x1 == expected
    assert (told.strides_source == found.settings.strides_source) == (style is not None)


def test_a_second_copy_that_differs_is_another_network(tmp_path):
    """BYOL keeps its network twice; of two that differ, one was taken without a word."""
    values = LAYOUTS["byol_lucidrains"].build(ONLINE, TARGET)
    values["net.layer3.0.conv1.weight"] = values["net.layer3.0.conv1.weight"] + 1
    file = write(tmp_path / "in.pth", values)
    with pytest.raises(UserError, match=r"tensors of 3 ResNets.*'net\.'.*'online_encoder\.net\.'"):
        read_backbone(file)
    equal(read_backbone(file, "online_encoder.net.").state, ONLINE)


def test_what_the_user_says_makes_a_row(tmp_path):
    values = LAYOUTS["moco_v2"].build(ONLINE, TARGET)
    file = write(tmp_path / "in.pth", values)
    reported = CheckpointMetadata(
        method="MoCo v2", name="moco_v2", dataset="ImageNet", pixels="unit"
    )
    report = convert(file, tmp_path / "out.safetensors", given=reported)
    run = {"id": None, "name": "moco_v2", "config_name": "moco_v2", "epochs": 200}
    assert report["provenance"]["pretrain_run"] == {**run, "dataset": "ImageNet", "seed": None}
    assert report["provenance"]["method"] == "MoCo v2"
    assert report["config"]["MODEL.PIXEL_STD"] == [255.0] * 3
    again = read_backbone(tmp_path / "out.safetensors")  # the file says it itself from now on
    assert again.method == "MoCo v2"
    assert again.pretrain_run["epochs"] == 200
    assert again.settings.pixel_std == (255.0,) * 3
    assert str(again.settings.pixels_source) == "told by the user (--pixels unit)"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", None),
        ("resnet34", None),
        ("wide_resnet50_2", None),
        ("resnet18d", r"ResNet-D.*'conv1\.0\.weight'"),
        ("resnext50_32x4d", r"a ResNeXt.*layer1\.0\.conv2\.weight is \(128, 4, 3, 3\)"),
        ("seresnet50", r"attention inside its blocks \(such as 'layer1\.0\.se\.fc1\.weight'"),
        ("ecaresnet50t", r"ResNet-D"),
        ("resnet50_gn", r"no statistics of batch norms"),
        ("resnet26", r"no known ResNet has \(2, 2, 2, 2\) bottleneck blocks"),
        ("resnetv2_50", r"of no known format \(its first keys: stem\.conv\.weight"),
        ("vit_tiny_patch16_224", r"of no known format \(its first keys: cls_token"),
    ],
)
def test_networks_of_timm(tmp_path, name, message):
    """Made by timm itself; batch norms moved from where they start."""
    with torch.device("meta"):
        shapes = timm.create_model(name).state_dict()
    state = {k: torch.tensor(0.5).expand(v.shape) for k, v in shapes.items()}
    state = {k: torch.tensor(7) if k.endswith("tracked") else v for k, v in state.items()}
    torch.save(state, tmp_path / "in.pth")
    if message is None:
        found = read_backbone(tmp_path / "in.pth")
        assert audit(found.state) == name
        assert found.dropped == ["fc.weight", "fc.bias"]
    else:
        with pytest.raises(UserError, match=message):
            audit(load_backbone(tmp_path / "in.pth"))


def test_widths_depths_and_images_that_are_not_known(tmp_path):
    for shape, message in (
        ((128, 3, 7, 7), "a ResNet of 2 times the width"),
        ((64, 1, 7, 7), "takes 1 channels"),
        ((64, 3, 3, 3), "stem for small images"),
    ):
        state = {**ONLINE, "conv1.weight": torch.ones(1).expand(shape)}
        file = write(tmp_path / "in.pth", state)
        with pytest.raises(UserError, match=message):
            convert(file, tmp_path / "out.pth")
    assert load_backbone(file)["conv1.weight"].shape[-1] == 3  # fine for other uses


def test_networks_that_were_never_trained(tmp_path):
    fresh = torchvision.models.resnet18(weights=None, zero_init_residual=True).state_dict()
    file = write(tmp_path / "in.pth", fresh)
    with pytest.raises(UserError, match=r"never trained.*--weights random"):
        convert(file, tmp_path / "out.pth")
    fresh["layer3.0.bn1.weight"] = torch.full((256,), 0.7)
    with pytest.raises(UserError, match="all their statistics are in their initial state"):
        convert(write(tmp_path / "in.pth", fresh), tmp_path / "out.pth")
    fresh["bn1.running_mean"] = torch.full((64,), 0.1)
    with pytest.raises(UserError, match=r"of layer1\.0\.bn1 are in .*and of 18 more layers"):
        convert(write(tmp_path / "in.pth", fresh), tmp_path / "out.pth")
    for key in [key for key in fresh if key.endswith("running_mean")]:
        fresh[key] = fresh[key] + 0.1
    assert audit(load_backbone(write(tmp_path / "in.pth", fresh))) == "resnet18"
    fresh["layer2.0.bn1.running_var"] = torch.zeros(128)
    with pytest.raises(UserError, match=r"layer2\.0\.bn1\.running_var is zero throughout"):
        convert(write(tmp_path / "in.pth", fresh), tmp_path / "out.pth")


def test_detectors_say_how_they_see_images(tmp_path):
    """By the configuration beside them, or by norms folded away; both ways back to torchvision."""
    names = behind("backbone.", {k: v for k, v in detectron2(ONLINE).items() if k[:4] != "res5"})
    names |= behind("roi_heads.", {k: v for k, v in detectron2(ONLINE).items() if k[:4] == "res5"})
    file = write(tmp_path / "model_final.pth", {"model": names, "iteration": 9})
    found = read_backbone(file)
    equal(found.state, ONLINE)
    assert (found.settings.channels, found.settings.source) == ("RGB", None)
    resnets = "RESNETS: {STRIDE_IN_1X1: true}, PIXEL_MEAN: [1, 2, 3], PIXEL_STD: [4, 5, 6]"
    (tmp_path / "config.yaml").write_text(f"INPUT: {{FORMAT: BGR}}\nMODEL: {{{resnets}}}\n")
    settings = read_backbone(file).settings
    assert (settings.channels, settings.pixel_mean, settings.stride_in_1x1) == (
        "BGR",
        (1, 2, 3),
        True,
    )
    assert settings.source == "config.yaml beside the file"
    report = convert(file, tmp_path / "back.safetensors")
    assert report["config"]["INPUT.FORMAT"] == "BGR"
    equal(load_file(tmp_path / "back.safetensors"), ONLINE)
    assert read_backbone(tmp_path / "back.safetensors").settings.pixel_mean == (1, 2, 3)
    (tmp_path / "config.yaml").unlink()
    for key, value in list(names.items()):
        if key.endswith("running_mean"):
            names[key] = torch.zeros(value.shape)
        if key.endswith("running_var"):
            names[key] = torch.ones(value.shape) - 1e-5
    settings = read_backbone(write(file, {"model": names})).settings
    assert (settings.channels, settings.stride_in_1x1) == ("BGR", True)


@pytest.mark.parametrize("to", ["openmmlab", "moco", "caffe2"])
def test_files_for_other_tools(tmp_path, to):
    out = tmp_path / ("out.pkl" if to == "caffe2" else "out.pth")
    report = convert(write(tmp_path / "in.pth", dict(ONLINE)), out, to=to)
    assert (report["format"], report["tensors"]) == (to, 100)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.pth", "out.json", out.name]
    equal(load_backbone(out), ONLINE)
    for name, given, message in (
        ("out.safetensors", to, "write .* as .pth"),
        ("x.pth", "mocco", r"no format 'mocco' to write\. Did you mean 'moco'"),
        ("x.onnx", None, r"ending in \.pth or \.pkl"),
        ("x.pkl", "moco", r"\.pkl is for Detectron2"),
    ):
        with pytest.raises(UserError, match=message):
            convert(tmp_path / "in.pth", tmp_path / name, to=given)


@pytest.mark.parametrize("to", sorted(set(WRITTEN) - {"detectron2"}))
def test_what_is_known_outlasts_every_format(tmp_path, to):
    """Names of tensors alone have no place for it: it is in the report beside them."""
    given = CheckpointMetadata("SimCLR", "n", 100, "D", "unit", "l")
    write(tmp_path / "in.pth", dict(ONLINE))
    convert(tmp_path / "in.pth", tmp_path / "out.pth", to=to, given=given)
    found = read_backbone(tmp_path / "out.pth")
    direct = with_metadata(read_backbone(tmp_path / "in.pth"), given)
    assert found.settings == direct.settings
    assert (found.method, found.pretrain_run) == (direct.method, direct.pretrain_run)
    assert {**found.evidence(), "branch": 0} == {**direct.evidence(), "branch": 0}
    # The report of another file says nothing.
    write(tmp_path / "out.pth", dict(TARGET))
    assert read_backbone(tmp_path / "out.pth").settings.source is None


def test_a_network_of_caffe_is_the_same_by_way_of_torchvisions_names(tmp_path):
    """BGR and strides in 1x1 became RGB and 3x3, with a parity of 0."""
    state = backbone_state("resnet50")
    content = CAFFE2.from_torchvision(state)
    arrays = {name: tensor.numpy() for name, tensor in content["model"].items()}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({**content, "model": arrays}))
    convert(tmp_path / "R-50.pkl", tmp_path / "direct.pth")
    convert(tmp_path / "R-50.pkl", tmp_path / "names.pth", to="torchvision")
    convert(tmp_path / "names.pth", tmp_path / "again.pth")
    images = torch.randint(0, 256, (1, 3, 48, 64)).float()
    features = []
    for file in (tmp_path / "direct.pth", tmp_path / "again.pth"):
        settings = read_backbone(file).settings
        network = verify.detectron2_backbone("resnet50", file, settings)
        with torch.no_grad():
            features.append(network(verify.normalized(images, settings))["res5"])
    assert torch.equal(*features)
    with pytest.raises(UserError, match=r"names\.json is read for the source"):
        convert(tmp_path / "names.pth", tmp_path / "names.safetensors", force=True)


def test_heads_are_left_out_and_named(tmp_path):
    file = write(tmp_path / "in.pth", LAYOUTS["moco_v2"].build(ONLINE, TARGET))
    dropped = read_backbone(file).dropped
    assert {"module.queue", "module.queue_ptr", "module.encoder_q.fc.0.weight"} <= set(dropped)
    assert "module.encoder_k.conv1.weight" in dropped
    extra = {**ONLINE, **head("neck.0.weight", "fc.bias")}
    assert (
        read_backbone(write(tmp_path / "b.pth", extra)).dropped
        == ["fc.bias", "neck.0.weight"][::-1]
    )
