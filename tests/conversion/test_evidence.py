"""By what evidence something is said of a checkpoint, and that it is never said to be better."""

from __future__ import annotations

import argparse
import json
from functools import partial

import pytest
import torch
import torchvision
from torch import nn

from intl_transfer.cli import main
from intl_transfer.conversion import command as convert_command
from intl_transfer.conversion import convert, read_backbone, verify
from intl_transfer.conversion.adapters.mm_config import parsed
from intl_transfer.conversion.pipeline import CheckpointMetadata
from intl_transfer.errors import UserError
from intl_transfer.evaluation import command as evaluate_command
from intl_transfer.results.grouping import INFERRED_NOTE
from intl_transfer.runs.records import Initialization, Provenance
from tests.conversion.layouts import LAYOUTS, behind, head, small_state
from tests.conversion.test_conversion import backbone_state, network

ONLINE, TARGET = small_state(1), small_state(2)
STATED, READ, TOLD = "stated in the file", "read from its configuration", "told by the user"
INFERRED, ASSUMED = "inferred from names", "assumed"


def saved(path, values):
    torch.save(values, path)
    return path


def levels(found):
    return {fact: source.level for fact, source in found.evidence().items()}


@pytest.mark.parametrize("beside", [("projector.0.weight",), ("projector.0.weight", "q.weight")])
def test_own_code_with_an_encoder_and_a_projector_is_not_simclr(tmp_path, beside):
    file = saved(tmp_path / "a.pth", {**behind("encoder.", ONLINE), **head(*beside)})
    found = read_backbone(file)
    assert found.method is None
    assert found.settings.pixel_mean == (123.675, 116.28, 103.53)
    facts = levels(found)
    assert (facts["pixels"], facts["channels"], facts["strides"]) == (ASSUMED,) * 3
    assert "method" not in facts


def test_simclrs_own_names_hint_at_its_range_and_no_more(tmp_path):
    file = saved(tmp_path / "a.pth", LAYOUTS["simclr_spijkervet"].build(ONLINE, TARGET))
    found = read_backbone(file)
    assert (found.method, levels(found)["method"]) == ("SimCLR", INFERRED)
    assert levels(found)["pixels"] == ASSUMED
    assert "--pixels unit" in found.settings.pixels_source.detail


@pytest.mark.parametrize(
    ("layout", "more"),
    [
        ("moco_v2", "module.predictor.0.weight"),
        ("moco_v2", "module.queue2_of_mine"),
        ("vicreg", "module.predictor.0.weight"),
        ("barlow_twins", "module.expander.0.weight"),
        ("intl_authors", "module.classifier.weight"),
        ("swav", "module.predictor.0.weight"),
        ("swav", "module.prototypes.prototypes0.weight"),
        ("moco_v3", "module.decoder.0.weight"),
        ("byol_yaox12", "decoder.weight"),
        ("densecl", "predictor.0.weight"),
        ("pixpro", "module.decoder.weight"),
    ],
)
def test_a_method_that_kept_anothers_names_is_not_called_so(tmp_path, layout, more):
    values = LAYOUTS[layout].build(ONLINE, TARGET)
    before = read_backbone(saved(tmp_path / "a.pth", values))
    assert levels(before)["method"] == INFERRED
    inner = values.get("state_dict", values.get("model", values))
    inner[more] = torch.ones(2, 2)
    assert read_backbone(saved(tmp_path / "b.pth", values)).method is None


@pytest.mark.parametrize(("named", "method"), [("byol", "BYOL"), ("finetune", None), (3, None)])
def test_a_setting_of_other_code_is_no_method(tmp_path, named, method):
    """Any Lightning module may have a backbone, a classifier and a `method` of its own."""
    state = {**behind("backbone.", ONLINE), **head("classifier.weight")}
    values = {"state_dict": state, "pytorch-lightning_version": "2.6"}
    found = read_backbone(
        saved(tmp_path / "a.ckpt", {**values, "hyper_parameters": {"method": named}})
    )
    assert found.method == method


def test_a_mean_alone_is_not_called_imagenets(tmp_path):
    """Its deviation is another."""
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "resnet18", "mean": [0.485, 0.456, 0.406], "std": [1, 1, 1]})
    )
    saved(tmp_path / "pytorch_model.bin", backbone_state())
    screen = convert_command.screen(convert(tmp_path, tmp_path / "o.pth"), tmp_path / "o.pth")
    assert "ImageNet" not in screen
    assert "deviation [255.0, 255.0, 255.0]" in screen


def test_a_bias_does_not_make_vicreg(tmp_path):
    beside = head("projector.0.weight", "projector.0.bias", "projector.2.weight")
    file = saved(tmp_path / "a.pth", {"model": {**behind("backbone.", ONLINE), **beside}})
    assert read_backbone(file).method is None


MEANS = "mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5]"


@pytest.mark.parametrize(
    ("text", "channels", "mean", "std", "stride", "expected"),
    [
        (f"img_norm_cfg = dict({MEANS}, to_rgb=False)", "BGR", 127.5, 127.5, False, (READ, READ)),
        (f"img_norm_cfg = dict({MEANS}, to_rgb=True)", "RGB", 127.5, 127.5, False, (READ, READ)),
        (
            f"model = dict(type='BYOL', data_preprocessor=dict(type='SelfSupDataPreprocessor', "
            f"{MEANS}, bgr_to_rgb=False), backbone=dict(type='ResNet', style='caffe'))",
            *("BGR", 127.5, 127.5, True, (READ, READ)),
        ),
        (
            "img_norm_cfg = dict(mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.2])",
            *("RGB", 127.5, 51.0, False, (READ, INFERRED)),
        ),
        (
            f"a = dict(type='Normalize', {MEANS}, to_rgb=True)\n"
            f"b = dict(type='Normalize', {MEANS}, to_rgb=False)",
            *("RGB", 123.675, 58.395, False, (ASSUMED, ASSUMED)),
        ),
        ("import os\nos.system('false')", "RGB", 123.675, 58.395, False, (ASSUMED, ASSUMED)),
    ],
)
def test_openmmlabs_configuration_is_read(tmp_path, text, channels, mean, std, stride, expected):
    meta = {"cfg": text, "epoch": 3}
    found = read_backbone(
        saved(tmp_path / "a.pth", {"meta": meta, "state_dict": behind("backbone.", ONLINE)})
    )
    kept = found.settings
    assert (kept.channels, kept.pixel_mean[0], kept.pixel_std[0]) == (channels, mean, std)
    assert kept.stride_in_1x1 == stride
    facts = levels(found)
    assert (facts["pixels"], facts["channels"]) == expected
    assert facts["strides"] == (READ if stride else ASSUMED)
    assert (found.epochs, facts["epochs"]) == (3, STATED)


@pytest.mark.parametrize(
    ("argument", "theirs"),
    [
        ("norm_cfg=dict(type='BN', eps=0.001)", {"norm_layer": partial(nn.BatchNorm2d, eps=1e-3)}),
        ("act_cfg=dict(type='LeakyReLU')", {"nn.ReLU": nn.LeakyReLU}),
        (
            "strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)",
            {"replace_stride_with_dilation": [False, False, True]},
        ),
        ("avg_down=True", None),
        ("conv_cfg=dict(type='ConvWS')", None),
        ("norm_cfg=dict(type='SyncBN', eps=1e-05), strides=(1, 2, 2, 2), act_cfg=None", {}),
    ],
)
def test_openmmlabs_arguments_that_change_the_network_are_refused(tmp_path, argument, theirs):
    text = f"model = dict(type='BYOL', backbone=dict(type='ResNet', depth=50, {argument}))"
    values = {"meta": {"cfg": text}, "state_dict": behind("backbone.", ONLINE)}
    file = saved(tmp_path / "a.pth", values)
    if theirs == {}:
        assert read_backbone(file).settings.stride_in_1x1 is False
        return
    with pytest.raises(UserError, match=r"model\.backbone says \w+(\.\w+)?=.*as in torchvision's"):
        read_backbone(file)
    if theirs is None:
        return
    # With them torch's own layers compute something else of the same tensors.
    networks = []
    for changes in ({}, theirs):
        torch.manual_seed(0)
        layers = {key: value for key, value in changes.items() if key != "nn.ReLU"}
        made = torchvision.models.resnet50(weights=None, **layers)
        if "nn.ReLU" in changes:
            made.relu = changes["nn.ReLU"]()
        networks.append(made.eval())
    images = torch.randn(1, 3, 64, 64)
    assert networks[0].state_dict().keys() == networks[1].state_dict().keys()
    assert not torch.allclose(networks[0](images), networks[1](images), rtol=1e-3)


class Normalize(nn.Module):
    """Beside a network of somebody's own, as code for robust networks has it."""

    def __init__(self, mean, std, names=("mean", "std")):
        super().__init__()
        for name, value in zip(names, (mean, std), strict=True):
            self.register_buffer(name, torch.tensor(value).view(3, 1, 1))
        self.names = names

    def forward(self, x):
        mean, std = (getattr(self, name) for name in self.names)
        return (x - mean) / std


@pytest.mark.parametrize("names", [("mean", "std"), ("new_mean", "new_std"), ("mu", "sigma")])
def test_a_layer_that_normalizes_says_how_the_network_takes_images(tmp_path, names):
    own = network()
    made = nn.Sequential(Normalize([0.5, 0.4, 0.3], [0.5, 0.25, 0.2], names), own).eval()
    file = saved(tmp_path / "a.pth", made.state_dict())
    found = read_backbone(file)
    images = torch.randint(0, 256, (1, 3, 48, 64)).float()
    features = []
    own.layer4.register_forward_hook(lambda *args: features.append(args[2]))
    with torch.no_grad():
        made(images / 255)
        ours = verify.torchvision_features(
            verify.torchvision_network(found.state, "resnet18", found.settings),
            verify.normalized(images, found.settings),
        )
    assert verify.relative_error(features[0], ours["res5"]) < 1e-5
    assert levels(found)["pixels"] == INFERRED
    assert str(found.settings.pixels_source).startswith(f"inferred from names (0.{names[0]}, 0.")


@pytest.mark.parametrize(
    "more",
    [
        {"0.mean": torch.ones(3) / 2},
        {"pixel_mean": torch.full((3, 1, 1), 103.5), "pixel_std": torch.ones(3, 1, 1)},
        {f"{n}.{kind}": torch.ones(3) / n for n in (2, 4) for kind in ("mean", "std")},
    ],
)
def test_a_normalization_that_is_not_understood_is_named(tmp_path, more):
    file = saved(tmp_path / "a.pth", {**behind("1.", ONLINE), **more})
    with pytest.warns(UserWarning, match=r"mean' looks like .* --pixels"):
        assert levels(read_backbone(file))["pixels"] == ASSUMED


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_tensors_that_may_be_of_the_network_are_named(tmp_path, prefix):
    part = {"bam1.gate_c.weight": torch.ones(4, 64), "bam1.gate_c.bias": torch.ones(4)}
    file = saved(tmp_path / "a.pth", {"state_dict": behind(prefix, {**part, **ONLINE})})
    with pytest.warns(UserWarning, match=r"bam1\.gate_c\.weight' and 1 more left out; no layer"):
        assert "bam1" in read_backbone(file).dropped[0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_heads_are_left_out_without_a_word(tmp_path, layout):
    read_backbone(saved(tmp_path / "a.pth", LAYOUTS[layout].build(ONLINE, TARGET)))


@pytest.mark.parametrize("text", ["(" * 5000, "a = " + "-" * 90_000 + "1", "x" * 600_000, "\0"])
def test_a_configuration_that_is_none_says_nothing(text):
    assert parsed(text) in ({}, {"": 1})


def test_solo_learns_method_is_in_the_file_beside(tmp_path):
    values = LAYOUTS["solo_learn_old"].build(ONLINE, TARGET)
    (tmp_path / "args.json").write_text(json.dumps({"method": "barlow_twins"}))
    found = read_backbone(saved(tmp_path / "a.ckpt", values))
    assert (found.method, levels(found)["method"]) == ("Barlow Twins", READ)


def test_evidence_is_no_better_for_being_converted(tmp_path, capsys):
    file = saved(tmp_path / "a.pth", LAYOUTS["moco_v2"].build(ONLINE, TARGET))
    assert main(["convert", str(file), str(tmp_path / "b.safetensors")]) == 0
    output = capsys.readouterr().out
    assert "method MoCo v2: inferred from names" in output
    assert "--method confirms it" in output
    kept = json.loads((tmp_path / "b.json").read_text())["provenance"]
    first = {fact: source["level"] for fact, source in kept["evidence"].items()}
    assert first == {
        **dict.fromkeys(("pixels", "channels", "strides"), ASSUMED),
        **dict.fromkeys(("method", "epochs", "branch"), INFERRED),
        "stem": STATED,
    }
    assert levels(read_backbone(tmp_path / "b.safetensors")) == first
    begun = Initialization(method="MoCo v2", provenance=Provenance.of(kept, "kept"))
    assert begun.method_is_inferred
    assert "--method" in INFERRED_NOTE
    reported = CheckpointMetadata(method="MoCo v2", pixels="imagenet", dataset="ImageNet")
    report = convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", given=reported)
    last = {f: s["level"] for f, s in report["provenance"]["evidence"].items()}
    assert last == first | dict.fromkeys(
        ("method", "pixels", "channels", "strides", "dataset"), TOLD
    )
    begun.provenance = Provenance.of(report["provenance"], "report")
    assert not begun.method_is_inferred


def test_what_it_was_pretrained_on_is_said_by_one_option_everywhere():
    """And by `--dataset` to `convert`, as earlier versions had it."""
    words = {convert_command: ["a.pth", "b.pth"], evaluate_command: ["--weights=a", "--config=b"]}
    for command, needed in words.items():
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        arguments = parser.parse_args([*needed, "--pretraining-dataset", "ImageNet"])
        assert convert_command.metadata_of(arguments) == CheckpointMetadata(dataset="ImageNet")
        if command is convert_command:
            former = parser.parse_args([*needed, "--dataset", "ImageNet"])
            assert convert_command.metadata_of(former) == CheckpointMetadata(dataset="ImageNet")
