"""Folders that timm and transformers load without an edit, and that come back."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision
import yaml
from torchvision.models.feature_extraction import create_feature_extractor

from intl_transfer.conversion import convert, read_backbone
from intl_transfer.conversion.pipeline import CheckpointMetadata
from intl_transfer.conversion.verify import relative_error
from intl_transfer.errors import UserError
from tests.conversion.producers import of_torchvision, resnet
from tests.conversion.test_conversion import same


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    network = resnet(21)
    file = tmp_path_factory.mktemp("source") / "in.pth"
    torch.save(network.state_dict(), file)
    return file, of_torchvision(network)(images())


def stages_of_torchvision(file):
    """The features after the stem and every stage, by torchvision's own network."""
    network = torchvision.models.resnet18()
    network.load_state_dict(torch.load(file, weights_only=True))
    taken = {"maxpool": "stem", **{f"layer{i}": f"stage{i}" for i in range(1, 5)}}
    with torch.no_grad():
        return create_feature_extractor(network.eval(), taken)(images())


def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))


def test_timm_loads_the_folder(tmp_path, source):
    file, expected = source
    reported = CheckpointMetadata(pixels="cifar10", method="BYOL")
    convert(file, tmp_path / "model.safetensors", to="timm", given=reported)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=0)
    with torch.no_grad():
        assert relative_error(expected, model.eval().forward_features(images())) < 1e-5
    assert model.pretrained_cfg["mean"] == pytest.approx((0.4914, 0.4822, 0.4465))
    found = read_backbone(tmp_path)
    same(found.state, read_backbone(file).state)
    assert (found.method, found.evidence()["method"].level) == ("BYOL", "told by the user")
    card = (tmp_path / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "timm"
    assert "| method | BYOL | told by the user (--method) |" in card
    assert str(tmp_path.parent) not in card + (tmp_path / "config.json").read_text()
    again = convert(file, tmp_path / "model.safetensors", to="timm", given=reported)
    assert again["converted_before"]


def test_transformers_loads_the_folder(tmp_path, source, monkeypatch):
    transformers = pytest.importorskip("transformers")
    file, expected = source
    convert(file, tmp_path / "model.safetensors", to="transformers")
    model, loaded = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loaded[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert relative_error(expected, model.eval()(images()).last_hidden_state) < 1e-5
    # AutoBackbone asks the hub whether it has the folder's name, and takes no for timm's: this is
    # what it answers once the folder is pushed.
    there = SimpleNamespace(repo_exists=lambda name: True)
    monkeypatch.setattr(transformers.models.auto.auto_factory, "hf_api", lambda: there)
    stages = ["stem", "stage1", "stage2", "stage3", "stage4"]
    for auto in (transformers.AutoBackbone, transformers.ResNetBackbone):
        backbone, loaded = auto.from_pretrained(
            tmp_path, out_features=stages, output_loading_info=True
        )
        assert type(backbone) is transformers.ResNetBackbone
        assert not any(loaded[key] for key in ("missing_keys", "mismatched_keys"))
        with torch.no_grad():
            found = dict(zip(stages, backbone.eval()(images()).feature_maps, strict=True))
        for name, theirs in stages_of_torchvision(file).items():
            assert relative_error(theirs, found[name]) < 1e-5
    same(read_backbone(tmp_path).state, read_backbone(file).state)


def test_what_the_libraries_have_not_is_refused(tmp_path, source):
    file, _ = source
    out = tmp_path / "model.safetensors"
    for to in ("timm", "transformers"):
        with pytest.raises(UserError, match="loads images as RGB"):
            convert(file, out, to=to, given=CheckpointMetadata(pixels="caffe"))
        with pytest.raises(UserError, match=r"loads a folder; give .*out/model\.safetensors"):
            convert(file, tmp_path / "out.safetensors", to=to)
    (tmp_path / "config.json").write_text(json.dumps({"mine": 1}))
    with pytest.raises(UserError, match=r"config\.json exists already"):
        convert(file, out, to="timm")
    assert not out.exists()
