"""Files that the producers' own code wrote, against the producers' own forward pass."""

from __future__ import annotations

import pytest
import torch

from intl_transfer.conversion import convert, read_backbone
from intl_transfer.conversion.verify import (
    detectron2_backbone,
    relative_error,
    torchvision_features,
    torchvision_network,
)
from intl_transfer.errors import UserError
from tests.conversion.producers import PRODUCERS, fully_sharded, of_torchvision, resnet


def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", PRODUCERS)
def test_what_producers_write_gives_their_own_features(tmp_path, name):
    made = PRODUCERS[name](tmp_path)
    found = read_backbone(made.path)
    assert found.branches == made.branches
    assert found.method == made.method
    levels = {fact: source.level for fact, source in found.evidence().items()}
    assert made.evidence.items() <= levels.items()
    assert not levels.keys() & set(made.absent)
    report = convert(made.path, tmp_path / "out.pth")
    ours = detectron2_backbone(report["architecture"], tmp_path / "out.pth", found.settings)
    with torch.no_grad():
        theirs = made.features(images())
        assert relative_error(theirs, ours(images())["res5"]) < 1e-5
    if made.other is not None:
        average = read_backbone(made.path, made.branches[1])
        network = torchvision_network(average.state, report["architecture"], average.settings)
        with torch.no_grad():
            features = torchvision_features(network, images())["res5"]
        assert relative_error(made.other(images()), features) < 1e-5
        assert relative_error(theirs, features) > 1e-2


def test_transformers_loads_what_is_written_for_it(tmp_path):
    transformers = pytest.importorskip("transformers")
    network = resnet(13)
    torch.save(network.state_dict(), tmp_path / "in.pth")
    convert(tmp_path / "in.pth", tmp_path / "out.pth", to="transformers")
    written = torch.load(tmp_path / "out.pth", weights_only=True)
    config = transformers.ResNetConfig(
        depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic"
    )
    theirs = transformers.ResNetForImageClassification(config)
    loaded = theirs.load_state_dict(
        {k: v for k, v in written.items() if isinstance(v, torch.Tensor)}, strict=False
    )
    assert not loaded.unexpected_keys
    assert all(key.startswith("classifier.") for key in loaded.missing_keys)
    with torch.no_grad():
        found = theirs.eval().resnet(images()).last_hidden_state
    assert relative_error(of_torchvision(network)(images()), found) < 1e-5


def test_means_are_read_from_configurations(tmp_path):
    found = read_backbone(PRODUCERS["timm, save_for_hf"](tmp_path).path).settings
    assert found.pixel_mean == pytest.approx((127.5, 102, 76.5))
    (tmp_path / "mm").mkdir()
    found = read_backbone(PRODUCERS["mmengine, Runner"](tmp_path / "mm").path).settings
    assert (found.channels, found.pixel_mean) == ("BGR", (127.5, 127, 126))


def test_a_folder_of_distributed_checkpoints_and_parts_of_tensors(tmp_path):
    PRODUCERS["torch, DCP and dcp_to_torch_save"](tmp_path)
    with pytest.raises(UserError, match=r"dcp is a distributed checkpoint.*dcp_to_torch "):
        read_backbone(tmp_path / "dcp")
    (tmp_path / "fsdp").mkdir()
    fully_sharded(tmp_path / "fsdp")
    with pytest.raises(UserError, match=r"DTensor.*full_state_dict=True"):
        read_backbone(tmp_path / "fsdp" / "sharded.pth")


@pytest.mark.parametrize("own", ["of the model", "none", "of the model, another within"])
def test_of_two_data_preprocessors_the_runners_is_read(tmp_path, own):
    runner = pytest.importorskip("mmengine.runner")
    from mmengine.config import Config
    from mmengine.model import BaseModel
    from mmengine.registry import MODELS

    class Model(BaseModel):
        def __init__(self, more=None, **parts):
            super().__init__(**parts)
            self.backbone = resnet(5)

        def forward(self, inputs, data_samples=None, mode="tensor"):
            return self.backbone(inputs)

    half = {"mean": [127.5] * 3, "std": [100.0] * 3, "bgr_to_rgb": False}
    whole = {"mean": [123.0, 116.0, 103.0], "std": [58.0, 57.0, 56.0], "bgr_to_rgb": True}
    half, whole = ({"type": "ImgDataPreprocessor", **values} for values in (half, whole))
    config = {"model": {"type": "Owning"}, "data_preprocessor": whole}
    if own != "none":
        config["model"]["data_preprocessor"] = half
    if "another" in own:
        config["model"]["more"] = {"data_preprocessor": whole}
    places = {"default_scope": "mmengine", "work_dir": str(tmp_path), "log_level": "ERROR"}
    MODELS.register_module(name="Owning", module=Model, force=True)
    training = {
        "train_dataloader": {"dataset": [], "batch_size": 1, "sampler": None},
        "train_cfg": {"by_epoch": True, "max_epochs": 1},
        "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 1e-2}},
    }
    everything = {**config, **places, **training, "experiment_name": tmp_path.name}
    made = runner.Runner.from_cfg(Config(everything))
    made.save_checkpoint(str(tmp_path), "a.pth", save_optimizer=False, save_param_scheduler=False)
    found = read_backbone(tmp_path / "a.pth").settings
    if "another" in own:
        assert found.pixels_source.level == "assumed"
        return
    used = made.model.data_preprocessor
    assert list(found.pixel_mean) == used.mean.flatten().tolist()
    assert list(found.pixel_std) == used.std.flatten().tolist()
    # OpenCV loads BGR, which `bgr_to_rgb` turns around.
    assert found.channels == ("RGB" if used._channel_conversion else "BGR")
