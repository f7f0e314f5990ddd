"""What can be evaluated, and how it sees images."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from intl_transfer.conversion import convert
from intl_transfer.conversion.pipeline import CheckpointMetadata
from intl_transfer.conversion.settings import CAFFE, UNIT
from intl_transfer.conversion.verify import normalized
from intl_transfer.data.views import normalize
from intl_transfer.errors import UserError
from intl_transfer.evaluation.backbone import (
    EvaluatedBackbone,
    check_model,
    load_evaluated_backbone,
)
from intl_transfer.evaluation.config import ModelConfig
from intl_transfer.models import build_backbone

CPU = torch.device("cpu")
PIXELS = torch.randint(
    0, 256, (2, 5, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


@pytest.mark.parametrize("settings", [UNIT, CAFFE])
def test_images_are_as_the_weights_were_trained_to_see_them(settings):
    seen = EvaluatedBackbone(torch.nn.Identity(), 1, "resnet18", settings=settings).images(
        PIXELS, CPU
    )
    expected = normalized(PIXELS.permute(0, 3, 1, 2).float(), settings)
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-4)


def test_the_usual_images_are_those_of_pretraining():
    seen = EvaluatedBackbone(torch.nn.Identity(), 1, "resnet18").images(PIXELS, CPU)
    torch.testing.assert_close(seen, normalize(PIXELS, CPU), rtol=1e-5, atol=1e-5)


def test_a_file_and_what_is_told_of_it(trained):
    subject = load_evaluated_backbone(
        str(trained), ModelConfig(), None, CheckpointMetadata("MoCo v2", "m", 200, "ImageNet")
    )
    assert (subject.architecture, subject.width) == ("resnet18", 512)
    start = subject.initialization
    assert (start["kind"], start["method"]) == ("pretrained", "MoCo v2")
    assert start["provenance"]["pretrain_run"]["epochs"] == 200
    assert subject.inputs[0]["sha256"] == start["weights_sha256"]
    for key, value in load_file(trained).items():
        assert torch.equal(subject.network.state_dict()[key], value)


def test_a_converted_file_leads_back_to_its_source(trained, tmp_path):
    out = tmp_path / "w.pth"
    report = convert(trained, out, given=CheckpointMetadata("SimSiam", "s", 100, "ImageNet"))
    subject = load_evaluated_backbone(str(out), ModelConfig())
    start = subject.initialization
    assert start["weights_sha256"] == report["sha256"]
    assert start.provenance == report["provenance"]
    images = torch.randn(2, 3, 32, 32)
    direct = load_evaluated_backbone(str(trained), ModelConfig()).network.eval()
    with torch.no_grad():
        torch.testing.assert_close(subject.network.eval()(images), direct(images))


def test_a_stem_for_small_images_is_taken(tmp_path):
    network, _ = build_backbone("resnet18", "cifar")
    with torch.no_grad():
        network.train()(torch.randn(4, 3, 32, 32))
    path = tmp_path / "small.safetensors"
    run = {"name": "c", "id": "1", "epochs": 10, "dataset": "cifar10"}
    facts = {"pretrain_run": json.dumps(run), "method": "INTL"}
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, str(path), facts)
    subject = load_evaluated_backbone(str(path), ModelConfig())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(subject.network.eval()(images), network.eval()(images))
    assert (subject.initialization["method"], subject.stem) == ("INTL", "cifar")
    with pytest.raises(UserError, match="stem for small images"):
        convert(path, tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("backbone", "asked", "expected"),
    [
        ("resnet18", None, 1.0),
        ("resnet18", True, 0.0),
        ("resnet50", None, 0.0),
        ("resnet50", False, 1.0),
    ],
)
def test_random_weights_begin_as_pretraining_does(backbone, asked, expected):
    """Zero in a residual branch's last batch norm leaves random features without that branch."""
    model = ModelConfig(backbone, zero_init_residual=asked)
    network = load_evaluated_backbone("random", model).network
    last = "bn2" if backbone == "resnet18" else "bn3"
    for stage in (network.layer1, network.layer4):
        for block in stage:
            assert getattr(block, last).weight.detach().unique().tolist() == [expected]


def test_random_weights_and_none(tmp_path):
    torch.manual_seed(3)
    subject = load_evaluated_backbone("random", ModelConfig("resnet18", "cifar"))
    assert subject.initialization["kind"] == "random"
    assert subject.network.conv1.weight.shape[-1] == 3
    with pytest.raises(UserError, match="no such run or file"):
        load_evaluated_backbone(str(tmp_path / "nothing"), ModelConfig())
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match=r"text\.pth"):
        load_evaluated_backbone(str(tmp_path / "text.pth"), ModelConfig())


def test_an_architecture_that_is_not_the_weights_is_refused():
    subject = EvaluatedBackbone(torch.nn.Identity(), 1, "resnet18")
    check_model(subject, ModelConfig("resnet50"), [])  # a recipe's, for random weights
    check_model(subject, ModelConfig("resnet18"), ["model.backbone=resnet18"])
    for model, word in (
        (ModelConfig("resnet50"), "model.backbone=resnet50"),
        (ModelConfig("resnet18", "cifar"), "model.stem=cifar"),
    ):
        with pytest.raises(UserError, match=rf"'{word}' has no effect.* the weights have"):
            check_model(subject, model, [word])
