"""Four spellings of a ResNet behind any prefix, and a file's networks offered by name."""

from __future__ import annotations

import json
import re
import warnings

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.optim.swa_utils import AveragedModel

from intl_transfer.cli import main
from intl_transfer.conversion import convert, read_backbone
from intl_transfer.conversion.namings import NAMINGS, SMALL_SEQUENTIAL
from intl_transfer.errors import UserError
from intl_transfer.evaluation.backbone import load_evaluated_backbone
from intl_transfer.evaluation.config import ModelConfig
from tests.conversion.layouts import behind, detectron2, numbered, projector, small_state
from tests.conversion.test_conversion import backbone_state, same
from tests.conversion.test_formats import equal

ONLINE, TARGET = small_state(1), small_state(2)
READ = "read from its configuration"


def transformers(state):
    """By replacement, as transformers' convert_resnet_to_pytorch.py pairs the modules."""
    made = {}
    for old, value in state.items():
        key = re.sub(r"^(conv|bn)1\.", r"embedder.embedder.\1.", old)
        key = re.sub(
            r"^layer(\d)\.(\d+)\.",
            lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.",
            key,
        )
        key = re.sub(
            r"\.(conv|bn)(\d)\.", lambda m: f".layer.{int(m[2]) - 1}.{m[1]}.", key
        ).replace("downsample.0", "shortcut.conv")
        key = key.replace("downsample.1", "shortcut.bn")
        made[re.sub(r"\.bn\.", ".normalization.", re.sub(r"\.conv\.", ".convolution.", key))] = (
            value
        )
    return made


SPELLINGS = {
    "torchvision": dict,
    "sequential": numbered,
    "detectron2": detectron2,
    "transformers": transformers,
    "shortcut": lambda state: {
        key.replace("downsample", "shortcut"): value for key, value in state.items()
    },
}
PREFIXES = ["", "backbone.0.", "encoder.bottom_up.", "module.backbone.bottom_up.", "a/b/net.x."]


def saved(path, values):
    torch.save(values, path)
    return path


def placed(prefix, state):
    """Behind a prefix, in dictionaries where it has any."""
    *folders, last = prefix.split("/")
    values = behind(last, state)
    for folder in reversed(folders):
        values = {folder: values}
    return values


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_behind_every_prefix(tmp_path, spelling, prefix):
    state = SPELLINGS[spelling](ONLINE)
    equal(read_backbone(saved(tmp_path / "a.pth", placed(prefix, state))).state, ONLINE)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("prefixes", [("s_net.", "teacher_net."), ("m/student.", "m/teacher.")])
def test_pairs_are_offered_by_name(tmp_path, spelling, prefixes):
    made = SPELLINGS[spelling]
    values = {}
    for prefix, state in zip(prefixes, (ONLINE, TARGET), strict=True):
        folder, _, last = prefix.rpartition("/")
        inner = values.setdefault(folder, {}) if folder else values
        inner.update(behind(last, made(state)))
    file = saved(tmp_path / "a.pth", values)
    with pytest.raises(UserError) as caught:
        read_backbone(file)
    for prefix in prefixes:
        assert f"'{prefix}' (1" in str(caught.value)  # and how many tensors
    assert "OUT --branch" in str(caught.value)
    for branch, state in (
        (prefixes[0], ONLINE),
        (prefixes[1], TARGET),
        ("online", ONLINE),
        ("target", TARGET),
        ("teacher", TARGET),
        (prefixes[1].rstrip("."), TARGET),
    ):
        found = read_backbone(file, branch)
        equal(found.state, state)
        assert found.evidence()["branch"].level == "told by the user"


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("beside", ["ema_state", "ema", "model_ema"])
def test_an_average_beside_the_model_is_never_taken_without_a_word(tmp_path, spelling, beside):
    made = SPELLINGS[spelling]
    whole = "backbone.bottom_up." if spelling == "detectron2" else ""
    values = {"model": behind(whole, made(ONLINE)), beside: behind(whole, made(TARGET))}
    file = saved(tmp_path / "a.pth", values)
    found = read_backbone(file)
    assert found.branches == ("online", "target")
    equal(found.state, ONLINE)
    equal(read_backbone(file, "target").state, TARGET)
    equal(read_backbone(file, "online").state, ONLINE)


@pytest.mark.parametrize("wrapped", [None, "state_dict"])
@pytest.mark.parametrize("is_parallel", [False, True])
def test_an_averaged_model_alone_is_the_target(tmp_path, capsys, wrapped, is_parallel):
    """As torch's own class saves it: `n_averaged` beside `module.*`."""
    network = torchvision.models.resnet18()
    network.load_state_dict(backbone_state(), strict=False)
    inner = torch.nn.ModuleDict({"module": network}) if is_parallel else network
    state = AveragedModel(inner).state_dict()
    file = saved(tmp_path / "a.pth", {wrapped: state} if wrapped else state)
    assert main(["convert", str(file), str(tmp_path / "b.safetensors")]) == 0
    screen = capsys.readouterr().out
    assert "laid out as torchvision, target (stated in the file" in screen
    assert "n_averaged" in screen
    found = read_backbone(file)
    assert (found.branch, found.branches) == ("target", ("target",))
    same(found.state, backbone_state())
    again = read_backbone(tmp_path / "b.safetensors")
    assert again.provenance["branch"] == "target"
    with pytest.raises(UserError, match=r"no branch 'online'; it has 'target'"):
        read_backbone(file, "online")


def test_an_averaged_model_has_no_method_of_its_own(tmp_path):
    """Its network was trained by one, and is not in the file."""
    state = behind("module.backbone.", ONLINE) | projector("module.projection.")
    assert read_backbone(saved(tmp_path / "a.pth", state)).method == "INTL"
    file = saved(tmp_path / "b.pth", state | {"n_averaged": torch.tensor(9)})
    found = read_backbone(file)
    assert (found.branch, found.method) == ("target", None)


def shadow(network):
    """As torch_ema and diffusers keep it: parameters by order."""
    return {
        "decay": 0.999,
        "num_updates": 3,
        "shadow_params": [parameter.detach().clone() for parameter in network.parameters()],
    }


@pytest.mark.parametrize("how", ["list", "mmcv", "without dots"])
def test_averages_without_a_networks_names_are_told(tmp_path, how):
    network = torchvision.models.resnet18()
    network.load_state_dict(backbone_state(), strict=False)
    state = network.state_dict()
    values = {"state_dict": state, "optimizer": {"momentum_buffers": [torch.ones(3, 3)]}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_backbone(saved(tmp_path / "a.pth", values))
    if how == "list":
        values["ema"] = shadow(network)
    else:  # of buffers, whose names cannot have dots
        dot, beside = ("_", "ema_") if how == "mmcv" else ("", "model_ema.")
        averages = {beside + key.replace(".", dot): v for key, v in state.items()}
        values["state_dict"] = {**state, **averages}
    place = {"list": "ema/shadow_params", "mmcv": "ema_layer1_0_conv1_weight"}
    file = saved(tmp_path / "b.pth", values)
    named = place.get(how, "model_ema.layer10conv1weight")
    with pytest.warns(UserWarning, match=rf"b\.pth: .*moving average, .*{named}'\), .*not read"):
        same(read_backbone(file).state, backbone_state())


@pytest.mark.parametrize("is_flat", [False, True])
def test_an_optimizers_state_is_no_network(tmp_path, is_flat):
    """As torch.distributed.checkpoint gathers it, by the names of the network's tensors."""
    network = torchvision.models.resnet18()
    network.load_state_dict(backbone_state(), strict=False)
    optimizer = torch.optim.AdamW(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    network.load_state_dict(backbone_state(), strict=False)
    options = StateDictOptions(flatten_optimizer_state_dict=is_flat)
    model, state = get_state_dict(network, optimizer, options=options)
    for name in ("optim", "optimizer_state_dict", "optimizer"):
        file = saved(tmp_path / "a.pth", {"model": model, name: state})
        found = read_backbone(file)
        assert (found.branch, found.branches) == ("online", ("online",))
        same(found.state, backbone_state())
    gradients = {name: torch.ones_like(value) for name, value in model.items()}
    beside = {"grads": gradients, "exp_avg": gradients, "optim": {"state": gradients}}
    file = saved(tmp_path / "b.pth", {"model": model, **beside})
    same(read_backbone(file).state, backbone_state())
    values = {"model": model, "optimal": behind("", TARGET)}  # which is another network's name
    with pytest.raises(UserError, match="tensors of 2 ResNets"):
        read_backbone(saved(tmp_path / "c.pth", values))


def test_teacher_and_student_detectors(tmp_path):
    """As Unbiased Teacher saves them, in one dictionary."""
    values = {
        **behind("modelTeacher.backbone.bottom_up.", detectron2(TARGET)),
        **behind("modelStudent.backbone.bottom_up.", detectron2(ONLINE)),
    }
    file = saved(tmp_path / "a.pth", {"model": values})
    equal(read_backbone(file, "teacher").state, TARGET)
    equal(read_backbone(file, "model/modelStudent.backbone.bottom_up.").state, ONLINE)


def test_what_a_spelling_has_no_place_for_is_named_with_its_file(tmp_path):
    state = behind("encoder.bottom_up.", detectron2(ONLINE))
    state["encoder.bottom_up.res4.0.conv2_offset.weight"] = torch.ones(1)
    file = saved(tmp_path / "a.pth", state)
    with pytest.raises(UserError, match=r"a\.pth: 'res4\.0\.conv2_offset\.weight' has no place"):
        read_backbone(file)


def without_pool(children, has_relu=True):
    """As leftthomas/SimCLR builds a network for CIFAR: without max-pooling and classifier."""
    left_out = ("maxpool", "fc", *([] if has_relu else ["relu"]))
    return torch.nn.Sequential(*(module for name, module in children if name not in left_out))


@pytest.mark.parametrize("prefix", ["", "f.", "module.f."])
@pytest.mark.parametrize("has_relu", [True, False])
def test_numbers_of_a_network_without_max_pooling(tmp_path, prefix, has_relu):
    """Its stages are the four successive modules with blocks."""
    network = torchvision.models.resnet18()
    network.load_state_dict(backbone_state(), strict=False)
    network.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    made = without_pool(network.named_children(), has_relu).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    beside = {"g.0.weight": torch.ones(2, 2)}
    file = saved(tmp_path / "a.pth", behind(prefix, made.state_dict()) | beside)
    subject = load_evaluated_backbone(str(file), ModelConfig())
    assert subject.stem == "cifar"
    if not has_relu:
        made.insert(2, torch.nn.ReLU())  # its own forward pass applies it as a function
    with torch.no_grad():
        features = subject.network.eval()(images)
        torch.testing.assert_close(features, made(images).flatten(1), rtol=1e-5, atol=1e-6)


def test_numbers_without_max_pooling_are_not_a_large_stems(tmp_path):
    """Which of the modules has no number: that after which features differ, or a ReLU?"""
    state = without_pool(torchvision.models.resnet18().named_children()).state_dict()
    with pytest.raises(UserError, match=r"a\.pth: f\.0\.weight is 7x7, but the stages .* 3x3"):
        read_backbone(saved(tmp_path / "a.pth", behind("f.", state)))
    others = {f"unit.{n}.0.conv1.weight": torch.ones(1) for n in range(4)}
    equal(read_backbone(saved(tmp_path / "b.pth", ONLINE | others)).state, ONLINE)
    three = {key: v for key, v in numbered(ONLINE).items() if not key.startswith("7.")}
    with pytest.raises(UserError, match=r"no known ResNet has \(2, 2, 2, 0\) basic blocks"):
        read_backbone(saved(tmp_path / "c.pth", three))


@pytest.mark.parametrize("naming", [*NAMINGS, *SMALL_SEQUENTIAL.values()])
def test_spellings_go_there_and_back(naming):
    state = {k: v for k, v in small_state(0, "resnet50").items() if not k.endswith("tracked")}
    assert [naming.to_torchvision(naming.from_torchvision(name)) for name in state] == list(state)


def test_wrappers_within_names_are_none_of_their_own(tmp_path):
    """Of torch.compile and of activation checkpointing, around parts and the whole."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    network = torchvision.models.resnet18()
    network.load_state_dict(ONLINE, strict=False)
    network.layer1 = torch.compile(network.layer1)
    network.layer2[1] = checkpoint_wrapper(network.layer2[1])
    network.layer3 = checkpoint_wrapper(torch.compile(network.layer3))
    state = torch.compile(network).state_dict()
    assert sum("_orig_mod." in key[10:] or "_checkpoint_wrapped" in key for key in state) > 50
    equal(read_backbone(saved(tmp_path / "a.pth", {"model": state})).state, ONLINE)

    pair = {"net_s": behind("_orig_mod.", ONLINE), "net_teacher": behind("_orig_mod.", TARGET)}
    file = saved(tmp_path / "b.pth", pair)
    equal(read_backbone(file, "target").state, TARGET)
    for prefix in ("net_s/", "net_s/_orig_mod."):  # as listed, and as the file has it
        equal(read_backbone(file, prefix).state, ONLINE)


def test_names_that_differ_by_a_wrapper_alone_are_two_networks(tmp_path):
    both = {**behind("_orig_mod.", ONLINE), **TARGET}
    file = saved(tmp_path / "a.pth", {"model": both})
    equal(read_backbone(file, "model/_orig_mod.").state, ONLINE)
    equal(read_backbone(file, "model/").state, TARGET)


def test_shards_that_are_missing_or_lead_elsewhere(tmp_path):
    state = backbone_state()
    parts = {name: f"model-0000{1 + (name < 'layer3')}-of-00002.safetensors" for name in state}
    for file in sorted(set(parts.values())):
        save_file({k: v for k, v in state.items() if parts[k] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": parts}))
    same(read_backbone(tmp_path).state, state)
    report = convert(tmp_path, tmp_path.parent / "sharded.safetensors")
    assert str(index).endswith(report["provenance"]["source_path"])
    with pytest.raises(UserError, match=r"blocks in its four.*one of 2 files.*give the fol"):
        read_backbone(tmp_path / "model-00001-of-00002.safetensors")
    for wrong in ("../elsewhere.safetensors", "model-00009-of-00002.safetensors"):
        index.write_text(json.dumps({"weight_map": parts | {"conv1.weight": wrong}}))
        with pytest.raises(UserError, match=r"its file '.*' is not in"):
            read_backbone(tmp_path)


def test_of_a_tensor_in_two_shards_the_index_says_which_is_read(tmp_path):
    """A file of an earlier split may hold it, too; transformers reads by the index."""
    state = backbone_state()
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    parts = {name: files[name > "layer2"] for name in state}
    own = [{k: v for k, v in state.items() if parts[k] == file} for file in files]
    stale = {"conv1.weight": torch.ones_like(state["conv1.weight"])}
    save_file(own[0], tmp_path / files[0])
    save_file({**own[1], **stale}, tmp_path / files[1])
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": parts}))
    assert torch.equal(read_backbone(tmp_path).state["conv1.weight"], state["conv1.weight"])
    del own[0]["conv1.weight"]
    save_file(own[0], tmp_path / files[0])
    with pytest.raises(UserError, match=r"1 tensors are not in the files .*: conv1\.weight"):
        read_backbone(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "resnetblur50"}, r"its network is 'resnetblur50'"),
        ({"architecture": "resnet18", "model_args": {"act_layer": "gelu"}}, "act_layer=gelu"),
        ({"architecture": "resnet18", "model_args": {"aa_layer": "avg"}}, "aa_layer=avg"),
        ({"architecture": "resnet18", "model_args": {"act_layer": "ReLU", "in_chans": 3}}, None),
        ({"architecture": "resnet18", "pretrained_cfg": {"mean": [2, 2, 2], "std": 3}}, None),
        ({"architecture": ["resnet18"]}, None),
        ([], None),
    ],
)
def test_what_stands_beside_weights(tmp_path, config, message):
    save_file(backbone_state(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    if message is None:
        assert read_backbone(tmp_path).settings.pixels_source.level == "assumed"
    else:
        with pytest.raises(UserError, match=message):
            read_backbone(tmp_path)


@pytest.mark.parametrize(
    ("config", "level"),
    [
        (
            {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
            READ,
        ),
        ({"do_normalize": False, "do_rescale": True}, READ),
        (
            {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 256},
            READ,
        ),
        ({"image_mean": [99, 98, 97], "image_std": [9, 8, 7], "do_rescale": False}, READ),
        ({"do_normalize": False}, "assumed"),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": "x"}, "assumed"),
        ({}, "assumed"),
    ],
)
def test_images_are_taken_as_transformers_prepares_them(tmp_path, config, level):
    """Of any pixel, what Detectron2 computes is (factor * pixel - mean) / std."""
    save_file(transformers(backbone_state()), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    found = read_backbone(tmp_path).settings
    assert found.pixels_source.level == level
    if level == "assumed":
        return
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1
    mean, std = config.get("image_mean", [0] * 3), config.get("image_std", [1] * 3)
    for channel in range(3):
        expected = (factor * 200 - mean[channel]) / std[channel]
        ours = (200 - found.pixel_mean[channel]) / found.pixel_std[channel]
        assert ours == pytest.approx(expected, rel=1e-5)


def test_a_branch_is_called_as_the_listing_shows_it(tmp_path):
    """Also where other words stand for the two networks of a method: `teacher`, `ema`."""
    networks = {name: small_state(seed) for seed, name in enumerate(("a.", "b.", "teacher."), 1)}
    values = {key: v for name, state in networks.items() for key, v in behind(name, state).items()}
    file = saved(tmp_path / "in.pth", values)
    equal(read_backbone(file, "teacher").state, networks["teacher."])
    file = saved(tmp_path / "in.pth", {**networks["a."], **behind("average.", networks["b."])})
    with pytest.raises(UserError, match=r"the prefixes '' \(\d+ tensors\), 'average\.' \("):
        read_backbone(file)
    equal(read_backbone(file, "ema").state, networks["b."])
