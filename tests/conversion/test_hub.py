"""Folders that timm and transformers load without an edit, and that come back."""

from __future__ import annotations

import json

import pytest
import timm
import torch
import yaml

from intl_transfer.conversion import convert, read_backbone
from intl_transfer.conversion.pipeline import Told
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


def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))


def test_timm_loads_the_folder(tmp_path, source):
    file, expected = source
    told = Told(pixels="cifar10", method="BYOL")
    convert(file, tmp_path / "model.safetensors", to="timm", told=told)
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
    again = convert(file, tmp_path / "model.safetensors", to="timm", told=told)
    assert again["converted_before"]


def test_transformers_loads_the_folder(tmp_path, source):
    transformers = pytest.importorskip("transformers")
    file, expected = source
    convert(file, tmp_path / "model.safetensors", to="transformers")
    model, loaded = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loaded[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    # What AutoBackbone builds; itself, it asks the hub for the folder's name in this version.
    backbone = transformers.ResNetBackbone.from_pretrained(tmp_path, out_features=["stage4"])
    with torch.no_grad():
        assert relative_error(expected, model.eval()(images()).last_hidden_state) < 1e-5
        (last,) = backbone.eval()(images()).feature_maps
    assert relative_error(expected, last) < 1e-5
    same(read_backbone(tmp_path).state, read_backbone(file).state)


def test_what_the_libraries_have_not_is_refused(tmp_path, source):
    file, _ = source
    out = tmp_path / "model.safetensors"
    for to in ("timm", "transformers"):
        with pytest.raises(UserError, match="loads images as RGB"):
            convert(file, out, to=to, told=Told(pixels="caffe"))
        with pytest.raises(UserError, match=r"loads a folder; give .*out/model\.safetensors"):
            convert(file, tmp_path / "out.safetensors", to=to)
    (tmp_path / "config.json").write_text(json.dumps({"mine": 1}))
    with pytest.raises(UserError, match=r"config\.json exists already"):
        convert(file, out, to="timm")
    assert not out.exists()
