"""By what evidence something is said of a checkpoint, and that it is never said to be better."""

from __future__ import annotations

import argparse
import json
from functools import partial

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from intl_transfer.cli import main
from intl_transfer.conversion import command as convert_command
from intl_transfer.conversion import convert, read_backbone, verify
from intl_transfer.conversion.adapters.mm_config import parsed
from intl_transfer.conversion.origin import initialization
from intl_transfer.conversion.pipeline import CheckpointMetadata, with_metadata
from intl_transfer.errors import UserError
from intl_transfer.evaluation import command as evaluate_command
from intl_transfer.evaluation.backbone import load_evaluated_backbone
from intl_transfer.evaluation.config import ModelConfig
from intl_transfer.results.notes import INFERRED_NOTE
from intl_transfer.runs.records import Initialization, Provenance
from tests.conversion.layouts import LAYOUTS, behind, head, projector, small_state
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


def layers(prefix, *made):
    return behind(prefix, nn.Sequential(*made).state_dict())


def linear(bias=True):
    return nn.Linear(2, 2, bias=bias)


def norm(affine=True):
    return nn.BatchNorm1d(2, affine=affine)


def two_linear(prefix):
    return layers(prefix, linear(), nn.ReLU(), linear())


def with_norm(prefix):
    return layers(prefix, linear(False), norm(), nn.ReLU(), linear())


def moco(head, *names):
    networks = {
        **behind("encoder_q.", ONLINE | head("fc.")),
        **behind("encoder_k.", TARGET | head("fc.")),
    }
    return {key: v for key, v in networks.items() if not key.startswith(names)} | {
        "queue": torch.ones(2, 8),
        "queue_ptr": torch.zeros(1),
    }


def pair(first, second, *more):
    made = {**behind(first, ONLINE), **behind(second, TARGET)}
    for state in more:
        made |= state
    return made


def three_linear(prefix):
    """MoCo's head with one more layer."""
    return layers(prefix, linear(), nn.ReLU(), linear(), nn.ReLU(), linear())


def simsiams(prefix):
    first, second = (linear(False), norm(), nn.ReLU()), (linear(False), norm(), nn.ReLU())
    return layers(prefix, *first, *second, linear(), norm(False))


def version_3s(prefix):
    return layers(prefix, linear(False), norm(), nn.ReLU(), linear(False), norm(False))


def swavs(prefix):
    return layers(prefix, linear(), norm(), nn.ReLU(), linear())


class Pixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear1, self.bn1 = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
        self.relu1, self.linear2 = nn.ReLU(), nn.Conv2d(2, 2, 1)


def pixels(prefix):
    return behind(prefix, Pixels().state_dict())


def barlows(prefix):
    first = (linear(False), norm(), nn.ReLU(), linear(False), norm(), nn.ReLU())
    return layers(prefix, *first, linear(False))


HEADS = {
    # The heads as the methods' own repositories build them.
    "INTL": ({**behind("backbone.", ONLINE), **projector("projection.")}, "INTL"),
    "MoCo v1": (moco(lambda prefix: linear().state_dict(prefix=prefix)), "MoCo v1"),
    "MoCo v2": (moco(two_linear), "MoCo v2"),
    "MoCo v3": (
        pair(
            *("base_encoder.", "momentum_encoder."),
            *(version_3s("base_encoder.fc."), version_3s("momentum_encoder.fc.")),
            version_3s("predictor."),
        ),
        "MoCo v3",
    ),
    "SimSiam": (
        {
            **behind("encoder.", ONLINE | simsiams("fc.")),
            **layers("predictor.", linear(False), norm(), nn.ReLU(), linear()),
        },
        "SimSiam",
    ),
    "SimCLR": (behind("backbone.", ONLINE | two_linear("fc.")), "SimCLR"),
    "BYOL": (
        pair(
            *("online_encoder.net.", "target_encoder.net."),
            *(with_norm("online_encoder.projector."), with_norm("target_encoder.projector.")),
            with_norm("online_predictor."),
        ),
        "BYOL",
    ),
    "PixPro": (
        pair("encoder.", "encoder_k.", pixels("projector."), pixels("projector_k.")),
        "PixPro",
    ),
    "SwAV": ({**ONLINE, **swavs("projection_head."), **head("prototypes.weight")}, "SwAV"),
    "Barlow Twins": (
        {
            **behind("backbone.", ONLINE),
            **barlows("projector."),
            **norm(False).state_dict(prefix="bn."),
        },
        "Barlow Twins",
    ),
    # Others with the same names.
    "SimCLR in INTL's names": ({**behind("backbone.", ONLINE), **two_linear("projection.")}, None),
    "two layers in INTL's names": (
        {**behind("backbone.", ONLINE), **with_norm("projection.")},
        None,
    ),
    "a longer head in MoCo's names": (moco(three_linear), None),
    "a head with a norm in MoCo's names": (moco(with_norm), None),
    "no queue in MoCo's names": (
        {k: v for k, v in moco(two_linear).items() if "queue" not in k},
        None,
    ),
    "the average alone in MoCo's names": (moco(two_linear, "encoder_q."), None),
    "the average alone, without a queue": (behind("encoder_k.", ONLINE), None),
    "the average alone in PixPro's names": (
        {**behind("encoder_k.", ONLINE), **pixels("projector_k.")},
        None,
    ),
    "no predictor in MoCo v3's names": (pair("base_encoder.", "momentum_encoder."), None),
    "no predictor in BYOL's names": (pair("online_encoder.", "target_encoder."), None),
    "a queue in BYOL's names": (
        pair(
            *("online_encoder.", "target_encoder.", with_norm("online_predictor.")),
            head("online_queue.weight"),
        ),
        None,
    ),
    "a longer head in SimCLR's names": (behind("backbone.", ONLINE | three_linear("fc.")), None),
    "a shorter head in SimSiam's names": (
        {**behind("encoder.", ONLINE | swavs("fc.")), **head("predictor.0.weight")},
        None,
    ),
    "a longer projector in Barlow Twins' names": (
        {
            **behind("backbone.", ONLINE),
            **three_linear("projector."),
            **norm(False).state_dict(prefix="bn."),
        },
        None,
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_method_is_named_by_its_layers_and_not_by_a_few_names(tmp_path, name):
    values, method = HEADS[name]
    wrapped = {"state_dict": behind("module.", values)}
    for number, content in enumerate((values, wrapped)):
        found = read_backbone(saved(tmp_path / f"{number}.pth", content))
        assert found.method == method
        assert levels(found).get("method") == (INFERRED if method else None)
        assert "alone" not in name or "PixPro" not in found.source_format


@pytest.mark.parametrize("is_theirs", [True, False])
def test_only_intls_own_projector_hints_at_its_stem(tmp_path, is_theirs):
    """Whose names are others' too: with the padding of another code features are 16 % off."""
    small = {**ONLINE, "conv1.weight": torch.tensor(0.5).expand(64, 3, 3, 3)}
    beside = projector("projection.") if is_theirs else two_linear("projection.")
    found = read_backbone(saved(tmp_path / "a.pth", {**behind("backbone.", small), **beside}))
    expected = ("cifar_published", INFERRED) if is_theirs else ("cifar", ASSUMED)
    assert (found.stem, levels(found)["stem"]) == expected


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


@pytest.mark.parametrize(
    ("text", "epoch", "expected"),
    [
        ("train_cfg = dict(by_epoch=True, max_epochs=5)", 5, 5),
        ("runner = dict(type='EpochBasedRunner', max_epochs=5)", 5, 5),
        ("", 5, 5),
        ("", 0, None),
        ("train_cfg = dict(type='IterBasedTrainLoop', max_iters=9)", 0, None),
        ("train_cfg = dict(type='mmengine.runner.IterBasedTrainLoop', max_iters=9)", 3, None),
        ("train_cfg = dict(by_epoch=False, max_iters=9)", 3, None),
        ("runner = dict(type='IterBasedRunner', max_iters=9)", 3, None),
    ],
)
def test_epochs_are_those_of_a_training_by_epochs(tmp_path, text, epoch, expected):
    """mmcv's IterBasedRunner counts the epoch that it has begun, mmengine's loop none."""
    values = {"meta": {"epoch": epoch, "cfg": text}, "state_dict": behind("backbone.", ONLINE)}
    found = read_backbone(saved(tmp_path / "a.pth", values))
    assert found.epochs == expected
    assert levels(found).get("epochs") == (STATED if expected else None)


@pytest.mark.parametrize("text", ["(" * 5000, "a = " + "-" * 90_000 + "1", "x" * 600_000, "\0"])
def test_a_configuration_that_is_none_says_nothing(text):
    assert parsed(text) in ({}, {"": 1})


@pytest.mark.parametrize("beside", ["projector.0.weight", "classifier.weight", "predictor.weight"])
def test_only_solo_learns_own_method_hints_at_its_stem(tmp_path, beside):
    """Any module of Lightning has these names, and most pad a 3x3 stem by one pixel."""
    small = {**ONLINE, "conv1.weight": torch.tensor(0.5).expand(64, 3, 3, 3)}
    values = {
        "state_dict": {**behind("backbone.", small), **head(beside)},
        "pytorch-lightning_version": "2.6",
    }
    found = read_backbone(saved(tmp_path / "a.ckpt", values))
    assert (found.source_format, found.stem) == ("Lightning", "cifar")
    assert levels(found)["stem"] == ASSUMED
    found = read_backbone(
        saved(tmp_path / "b.ckpt", {**values, "hyper_parameters": {"method": "byol"}})
    )
    assert (found.source_format, found.stem) == ("solo-learn", "cifar_published")
    assert levels(found)["stem"] == INFERRED


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


CIFAR = "mean=[125.307, 122.961, 113.8575], std=[62.985, 62.0925, 66.708]"
TOLD_OF_A_FILE = [
    ({"pixels": "unit"}, r"--pixels unit: .*in\.pth already states RGB, mean \[125\.307, .*omit"),
    ({"pixels": "caffe"}, r"--pixels caffe: .*already states RGB, mean.*omit --pixels"),
    ({"method": "SimSiam"}, r"--method 'SimSiam': .* already states BYOL, .*model\.type=BYOL"),
    ({"epochs": 4}, r"--epochs 4: .* already states 5, .*meta\.epoch"),
    ({"pixels": "cifar10", "method": "BYOL", "epochs": 5}, None),
]


@pytest.mark.parametrize(("told", "message"), TOLD_OF_A_FILE)
def test_what_a_file_states_is_not_overridden(tmp_path, told, message):
    """By none of the commands; the same value is no contradiction, and no weaker for it."""
    preprocessor = f"data_preprocessor=dict({CIFAR}, to_rgb=True)"
    values = {
        "meta": {"epoch": 5, "cfg": f"model = dict(type='BYOL', {preprocessor})"},
        "state_dict": behind("backbone.", backbone_state()),
    }
    file, given = saved(tmp_path / "in.pth", values), CheckpointMetadata(**told)
    if message is not None:
        for read in (
            lambda: convert(file, tmp_path / "out.safetensors", given=given),
            lambda: load_evaluated_backbone(str(file), ModelConfig(), given=given),
        ):
            with pytest.raises(UserError, match=message):
                read()
        return
    before = read_backbone(file)
    after = with_metadata(before, given)
    assert (after.settings.pixel_std, after.method) == ((62.985, 62.0925, 66.708), "BYOL")
    facts = levels(after)
    assert facts == levels(before) | {"strides": TOLD}  # which the file does not state
    assert {facts[fact] for fact in ("pixels", "channels", "method")} == {READ}
    assert after.pretrain_run["epochs"] == 5


@pytest.mark.parametrize(("pixels", "channels"), [("imagenet", "RGB"), ("caffe", "BGR")])
def test_only_what_is_known_can_be_contradicted(tmp_path, pixels, channels):
    """Statistics that a preprocessor states without an order of channels, which is the user's."""
    statistics = {
        "imagenet": "mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]",
        "caffe": "mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0]",
    }
    text = f"model = dict(data_preprocessor=dict({statistics[pixels]}))"
    values = {"meta": {"cfg": text}, "state_dict": behind("backbone.", ONLINE)}
    found = read_backbone(saved(tmp_path / "in.pth", values))
    told = with_metadata(found, CheckpointMetadata(pixels=pixels)).settings
    assert told.channels == channels
    assert (told.pixels_source.level, told.channels_source.level) == (READ, TOLD)


@pytest.mark.parametrize("run", [{"id": "7", "name": "mine"}, {"id": "7"}])
def test_a_run_without_a_name_is_called_by_its_id(tmp_path, run):
    facts = {"pretrain_run": json.dumps(run), "method": "INTL"}
    save_file(backbone_state(), tmp_path / "in.safetensors", facts)
    named = "'mine'" if "name" in run else "7"
    with pytest.raises(UserError, match=rf"is from run {named}; leave --name"):
        convert(
            tmp_path / "in.safetensors", tmp_path / "o.pth", given=CheckpointMetadata(name="other")
        )


def test_what_an_earlier_conversion_was_told_stays_beside_what_is_told_now(tmp_path):
    first = CheckpointMetadata(name="mine_lr0.1", dataset="my images")
    network = torchvision.models.resnet18()
    network(torch.rand(4, 3, 64, 64))  # statistics of its batch norms are no longer the first
    file, once = saved(tmp_path / "in_v0.2.pth.tar", network.state_dict()), tmp_path / "once.pth"
    convert(file, once, given=first)
    for given, name in ((CheckpointMetadata(epochs=7), "mine_lr0.1"), (first, "mine_lr0.1")):
        run = with_metadata(read_backbone(once), given).pretrain_run
        assert (run["name"], run["dataset"]) == (name, "my images")
        assert run["epochs"] == (7 if given.epochs else "?")
    unnamed = with_metadata(read_backbone(file), CheckpointMetadata(epochs=7)).pretrain_run
    assert (unnamed["name"], unnamed["dataset"]) == ("in_v0.2", "unknown data")


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"epochs": 0}, r"--epochs 0: expected .* 1 or more"),
        ({"epochs": -5}, r"--epochs -5: expected"),
        ({"method": ""}, r"--method '': expected a name"),
        ({"name": " "}, r"--name ' ': expected a name"),
    ],
)
def test_values_that_say_nothing_are_refused(tmp_path, told, message):
    file = saved(tmp_path / "in.pth", ONLINE)
    with pytest.raises(UserError, match=message):
        with_metadata(read_backbone(file), CheckpointMetadata(**told))


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


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        *((name, "supervised") for name in ("supervised", "Supervised (ImageNet)")),
        *((name, "supervised") for name in ("supervised-MSRA", "supervised baseline")),
        *((f"{word}-supervised", "pretrained") for word in ("self", "Semi", "weakly")),
        *((name, "pretrained") for name in ("MoCo v2", None)),
    ],
)
def test_baselines_are_named_supervised_by_their_first_word(method, kind):
    assert initialization("a" * 64, {"method": method}).kind == kind
