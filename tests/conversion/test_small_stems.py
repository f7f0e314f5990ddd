"""Networks for small images: two stems with the same weights, and which of them a file means."""

from __future__ import annotations

import json

import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from intl_transfer.cli import main
from intl_transfer.conversion import convert, read_backbone
from intl_transfer.conversion.pipeline import CheckpointMetadata
from intl_transfer.data.statistics import STATISTICS, Statistics, statistics_of
from intl_transfer.errors import UserError
from intl_transfer.evaluation.backbone import load_evaluated_backbone
from intl_transfer.evaluation.config import ModelConfig
from tests.conversion.layouts import projector

CIFAR10 = STATISTICS["cifar10"]


class Padded(nn.Module):
    """A ResNet-18 for CIFAR with a layer of zeros before its stem, as INTL's authors build it."""

    def __init__(self):
        super().__init__()
        inner = torchvision.models.resnet18(weights=None)
        self.padding = nn.ConstantPad2d(1, 0.0)
        self.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        for name in ("bn1", "relu", "layer1", "layer2", "layer3", "layer4", "avgpool"):
            setattr(self, name, getattr(inner, name))
        self.maps = []

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(self.padding(x))))
        self.maps = [x.shape[-1]]
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(self, name)(x)
            self.maps.append(x.shape[-1])
        return torch.flatten(self.avgpool(x), 1)


def trained(seed):
    torch.manual_seed(seed)
    network = Padded().train()
    with torch.no_grad():
        for _ in range(2):
            network(torch.randn(8, 3, 32, 32))
    return network.eval()


@pytest.fixture(scope="module")
def networks():
    return trained(0), trained(1)


@pytest.fixture(scope="module")
def checkpoint(networks, tmp_path_factory):
    """As their cifar/main.py saves it, of the variant with a moving average."""
    state = {}
    for prefix, network in zip(("backbone", "momentum_backbone"), networks, strict=True):
        state |= {f"module.{prefix}.{k}": v for k, v in network.state_dict().items()}
        head = "projection" if prefix == "backbone" else "momentum_projection"
        state |= projector(f"module.{head}.")
    file = tmp_path_factory.mktemp("authors") / "ckpt_INTL_Cifar.pth.tar"
    torch.save({"epoch": 1000, "arch": "resnet18", "state_dict": state, "optimizer": {}}, file)
    return file


def features(subject):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return subject.network.eval()(images)


def expected(network):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return network(images)


@pytest.mark.parametrize("branch", ["online", "target"])
def test_the_authors_cifar_networks_give_their_features(checkpoint, networks, tmp_path, branch):
    network = networks[branch == "target"]
    out = tmp_path / "intl_cifar.safetensors"
    report = convert(checkpoint, out, branch, given=CheckpointMetadata(pixels="cifar10"))
    assert (report["provenance"]["stem"], report["provenance"]["stem_source"]) == (
        "cifar_published",
        "the format",
    )
    for file in (checkpoint, out):  # as it is, and converted
        subject = load_evaluated_backbone(
            str(file), ModelConfig(), branch if file == checkpoint else None
        )
        torch.testing.assert_close(features(subject), expected(network), rtol=1e-5, atol=1e-6)
        assert subject.stem == "cifar_published"
        assert subject.stem_source is not None
    assert network.maps == [34, 34, 17, 9, 5]
    pixels = subject.initialization["provenance"]["pixels"]
    assert pixels["mean"] == pytest.approx([255 * value for value in CIFAR10.mean])
    assert pixels["source"] == "--pixels cifar10"
    # The other stem takes the same weights and gives other features.
    clean = load_evaluated_backbone(
        str(checkpoint), ModelConfig(), branch, CheckpointMetadata(stem="cifar")
    )
    assert clean.stem == "cifar"
    assert float((features(clean) - expected(network)).norm() / expected(network).norm()) > 0.02


def test_what_was_assumed_stays_assumed_when_converted(checkpoint, tmp_path):
    out = tmp_path / "assumed.safetensors"
    report = convert(checkpoint, out)
    assert report["config_source"] is None
    assert read_backbone(out).settings.source is None
    # A network for small images is then given the statistics of the data set.
    subject = load_evaluated_backbone(str(out), ModelConfig(), statistics=CIFAR10)
    assert subject.settings.pixel_mean == pytest.approx([255 * v for v in CIFAR10.mean])
    assert "set them with --pixels" in " ".join(subject.assumptions())
    assert subject.initialization["provenance"]["pixels"]["source"] is None


def test_a_file_that_does_not_say_is_assumed_to_have_the_clean_stem(networks, tmp_path):
    state = {k: v.clone() for k, v in networks[0].state_dict().items()}
    bare = tmp_path / "bare.pth"
    torch.save({"net": {f"visual.{k}": v for k, v in state.items()}}, bare)
    subject = load_evaluated_backbone(str(bare), ModelConfig())
    assert (subject.stem, subject.stem_source) == ("cifar", None)
    assert any("set it with --stem" in text for text in subject.assumptions())
    reported = load_evaluated_backbone(
        str(bare), ModelConfig(), None, CheckpointMetadata(stem="cifar_published")
    )
    torch.testing.assert_close(features(reported), expected(networks[0]), rtol=1e-5, atol=1e-6)
    assert reported.stem_source == "--stem cifar_published"
    # Neither becomes more certain by being converted.
    for stem in (None, "cifar_published"):
        out = tmp_path / f"{stem}.safetensors"
        convert(bare, out, given=CheckpointMetadata(stem=stem))
        again = load_evaluated_backbone(str(out), ModelConfig())
        assert (again.stem, again.stem_source is None) == (stem or "cifar", stem is None)


def ours(state, path, **metadata):
    run = {"id": "1", "name": "c", "config_name": "c", "epochs": 9, "dataset": "cifar10", "seed": 0}
    facts = {"method": "INTL", "pretrain_run": json.dumps(run), **metadata}
    save_file({k: v.contiguous().clone() for k, v in state.items()}, str(path), facts)
    return path


def test_our_own_files_say_it_and_those_of_before_are_known(networks, tmp_path):
    state = networks[0].state_dict()
    numbers = Statistics((0.5, 0.4, 0.3), (0.25, 0.2, 0.1))
    new = ours(
        *(state, tmp_path / "new.safetensors"),
        stem="cifar_published",
        normalize=json.dumps(numbers.as_dict()),
    )
    found = read_backbone(new)
    assert (found.stem, found.settings.pixel_mean) == ("cifar_published", (127.5, 102.0, 76.5))
    assert found.settings.pixel_std == (63.75, 51.0, 25.5)
    assert "this project" in found.settings.source
    before = read_backbone(ours(state, tmp_path / "before.safetensors"))
    assert (before.stem, before.settings.pixel_mean) == ("cifar", (123.675, 116.28, 103.53))
    assert before.stem_source is not None
    with pytest.raises(UserError, match=r"already states that its stem is 'cifar_published'"):
        load_evaluated_backbone(str(new), ModelConfig(), None, CheckpointMetadata(stem="cifar"))
    odd = ours(state, tmp_path / "odd.safetensors", stem="cifar_of_tomorrow")
    with pytest.raises(UserError, match="states the stem 'cifar_of_tomorrow'"):
        read_backbone(odd)
    odd = ours(state, tmp_path / "odd.safetensors", normalize="[1, 2]")
    with pytest.raises(UserError, match=r"normalize is \[1, 2\]; expected imagenet"):
        read_backbone(odd)


def test_a_stem_that_a_file_cannot_have_is_refused(checkpoint, tmp_path, capsys):
    large = torchvision.models.resnet18(weights=None).state_dict()
    with torch.no_grad():
        large["bn1.running_mean"] += 1
    file = tmp_path / "large.pth"
    torch.save(large, file)
    with pytest.raises(UserError, match=r"the first convolution of .* is not 3x3"):
        load_evaluated_backbone(str(file), ModelConfig(), None, CheckpointMetadata(stem="cifar"))
    wrong = ours({k: v for k, v in large.items() if "fc" not in k}, tmp_path / "w.safetensors")
    assert read_backbone(wrong).stem == "imagenet"
    wrong = ours(
        *({k: v for k, v in large.items() if "fc" not in k}, tmp_path / "w.safetensors"),
        stem="cifar",
    )
    with pytest.raises(UserError, match="fits a first convolution of 7x7"):
        read_backbone(wrong)
    # Detectron2 has no such stem.
    assert main(["convert", str(checkpoint), str(tmp_path / "w.pth")]) == 2
    assert "a stem for small images" in capsys.readouterr().err
    assert not (tmp_path / "w.pth").exists()


def test_the_screen_tells_stem_and_statistics(checkpoint, tmp_path, capsys):
    out = tmp_path / "c.safetensors"
    assert main(["convert", str(checkpoint), str(out), "--pixels", "cifar100"]) == 0
    output = capsys.readouterr().out
    assert "normalized by CIFAR-100's mean and deviation" in output
    assert (
        "stem      3x3, padded by two pixels, as INTL's for CIFAR; inferred from names (the format)"
        in output
    )
    with safe_open(out, "pt") as file:
        config = json.loads(file.metadata()["config"])
    mean = STATISTICS["cifar100"].mean
    assert config["MODEL.PIXEL_MEAN"] == pytest.approx([255 * value for value in mean])
    assert load_file(out).keys() == read_backbone(out).state.keys()


@pytest.mark.parametrize(
    "value",
    [
        "imagnet",
        None,
        [0.5, 0.5, 0.5],
        {"mean": [0.5, 0.5, 0.5]},
        {"mean": [0.5, 0.5], "std": [1, 1]},
        {"mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]},
        {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.0]},
        {"mean": [0.5, 0.5, float("nan")], "std": [0.2, 0.2, 0.2]},
        {"mean": [0.5, 0.5, True], "std": [0.2, 0.2, 0.2]},
    ],
)
def test_what_is_no_statistics_is_refused(value):
    with pytest.raises(UserError, match="expected imagenet, cifar10, cifar100, or numbers"):
        statistics_of(value)
