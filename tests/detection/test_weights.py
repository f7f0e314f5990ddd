from __future__ import annotations

import json
import pickle

import pytest
import torch
import yaml
from detectron2.modeling import build_model

from detection import train_net as train_net_module
from detection import weights
from detection.config import load_config
from detection.trainer import AtomicCheckpointer
from intl_transfer.conversion import convert, verify
from intl_transfer.conversion.pipeline import CheckpointMetadata
from intl_transfer.conversion.settings import CAFFE, IMAGENET, UNIT
from intl_transfer.errors import UserError
from intl_transfer.runs import sha256_file
from tests.conversion.layouts import caffe2
from tests.conversion.test_conversion import backbone_state
from tests.detection.conftest import TINY, train_net

DEPTHS = {"resnet18": "shapes_coco_R18", "resnet50": "shapes_coco_R50"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One network converted for each way of seeing images, and its state."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save(backbone_state("resnet18", seed=5), folder / "in18.pth")
    convert(folder / "in18.pth", folder / "imagenet.pth")
    convert(folder / "in18.pth", folder / "pickled.pkl")
    convert(folder / "in18.pth", folder / "unit.pth", given=CheckpointMetadata(pixels="unit"))
    torch.save(backbone_state("resnet50", seed=6), folder / "in50.pth")
    convert(folder / "in50.pth", folder / "caffe.pth", given=CheckpointMetadata(pixels="caffe"))
    return folder


def prepared(config, file, *overrides):
    """The configuration as train_net.py prepares it, and what it changed."""
    given = ["MODEL.DEVICE", "cpu", *TINY, *overrides]
    cfg = load_config(config, given)
    cfg.MODEL.WEIGHTS = str(file)
    content = weights.read_weights(str(file))
    return cfg, weights.follow_settings(cfg, content, weights.set_by_user(config, given))


def features(model, cfg, images):
    """Of a detector, from RGB images of 0 to 255 as its data loader hands them over."""
    if cfg.INPUT.FORMAT == "BGR":
        images = images.flip(1)
    inputs = [{"image": image} for image in images]
    resnet = getattr(model.backbone, "bottom_up", model.backbone)
    x = model.preprocess_image(inputs).tensor
    found = {"stem": (x := resnet.stem(x))}
    for name in ("res2", "res3", "res4", "res5"):
        stage = getattr(resnet, name, None)
        blocks = model.roi_heads.res5 if stage is None else stage
        for block, module in blocks.named_children():
            if block.isdigit():  # not the norm that the protocol adds after res5
                x = module(x)
        found[name] = x
    return found


@pytest.mark.parametrize(
    ("name", "depth", "head", "settings"),
    [
        ("imagenet.pth", "resnet18", "C4", IMAGENET),
        ("pickled.pkl", "resnet18", "C4", IMAGENET),
        ("imagenet.pth", "resnet18", "FPN", IMAGENET),
        ("unit.pth", "resnet18", "C4", UNIT),
        ("caffe.pth", "resnet50", "C4", CAFFE),
    ],
)
def test_the_detector_that_is_trained_has_the_sources_features(files, name, depth, head, settings):
    """From pixels to res5: colors, normalization, strides, and where the weights went."""
    config = f"{DEPTHS[depth]}_{head}"
    cfg, _ = prepared(config, files / name)
    model = build_model(cfg)
    AtomicCheckpointer(model).load(str(files / name))
    state = backbone_state(depth, seed=5 if depth == "resnet18" else 6)
    network = verify.torchvision_network(state, depth, settings)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 3, 64, 96), generator=generator).float()
    with torch.no_grad():
        expected = verify.torchvision_features(network, verify.normalized(images, settings))
        found = features(model.eval(), cfg, images)
    for stage in verify.STAGES:
        assert verify.relative_error(expected[stage], found[stage]) <= 1e-5, stage


def test_shipped_configurations_follow_the_weights(files):
    cfg, changed = prepared("shapes_coco_R18_C4", files / "imagenet.pth")
    assert changed == []
    cfg, changed = prepared("shapes_coco_R18_C4", files / "unit.pth")
    assert list(cfg.MODEL.PIXEL_STD) == [255.0] * 3
    assert changed == ["MODEL.PIXEL_MEAN [0.0, 0.0, 0.0]", "MODEL.PIXEL_STD [255.0, 255.0, 255.0]"]
    cfg, changed = prepared("shapes_coco_R50_C4", files / "caffe.pth")
    assert (cfg.INPUT.FORMAT, cfg.MODEL.RESNETS.STRIDE_IN_1X1) == ("BGR", True)
    assert "INPUT.FORMAT BGR" in changed


def test_what_the_user_said_must_agree(files, tmp_path):
    with pytest.raises(UserError) as caught:
        prepared("shapes_coco_R18_C4", files / "imagenet.pth", "INPUT.FORMAT", "BGR")
    assert "INPUT.FORMAT is BGR, the weights need RGB (known from the file)" in str(caught.value)
    own = tmp_path / "own.yaml"
    base = load_config("shapes_coco_R18_C4")
    values = yaml.safe_load(base.dump())
    values["INPUT"]["FORMAT"], values["MODEL"]["PIXEL_STD"] = "BGR", [1.0, 1.0, 1.0]
    own.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"INPUT\.FORMAT is BGR.*PIXEL_STD is \[1\.0, 1\.0, 1\.0\]"):
        prepared(str(own), files / "imagenet.pth")
    own.write_text("INPUT: {FORMAT: RGB}\n")
    cfg, _ = prepared(str(own), files / "imagenet.pth")
    # Detectron2's defaults are nobody's wish: they follow.
    assert list(cfg.MODEL.PIXEL_STD) == pytest.approx([58.395, 57.12, 57.375])
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1 is False
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS) == (18, 64)


def test_weights_of_another_depth_are_refused_early(files):
    with pytest.raises(UserError, match=r"another depth: MODEL\.RESNETS\.DEPTH is 50.* need 18"):
        prepared("shapes_coco_R50_C4", files / "imagenet.pth")


def test_a_fragment_beside_files_of_others(files, tmp_path):
    state = torch.load(files / "imagenet.pth", weights_only=True)["model"]
    torch.save({"model": state}, tmp_path / "theirs.pth")
    assert "settings" not in weights.read_weights(str(tmp_path / "theirs.pth"))
    (tmp_path / "theirs.yaml").write_text("INPUT: {FORMAT: BGR}\nMODEL: {MASK_ON: true}\n")
    found = weights.read_weights(str(tmp_path / "theirs.pth"))["settings"]
    assert found["values"] == {"INPUT.FORMAT": "BGR"}
    assert found["source"].endswith("theirs.yaml")
    (tmp_path / "theirs.yaml").write_text("INPUT: [\n")
    with pytest.raises(UserError, match=r"settings file of the weights: .*theirs\.yaml.*YAML"):
        weights.read_weights(str(tmp_path / "theirs.pth"))


def test_backbones_and_detectors_of_others(files, tmp_path):
    """Detectron2's names and nothing that `intl-transfer convert` adds; a detector as a pickle."""
    state = torch.load(files / "imagenet.pth", weights_only=True)["model"]
    torch.save({"model": state}, tmp_path / "theirs.pth")
    cfg, _ = prepared("shapes_coco_R18_C4", tmp_path / "theirs.pth")
    model = build_model(cfg)
    AtomicCheckpointer(model).load(str(tmp_path / "theirs.pth"))
    weights.check_loaded(model, state, "theirs.pth")
    whole = {key: value.numpy() for key, value in model.state_dict().items()}
    file = tmp_path / "model_final.pkl"
    file.write_bytes(pickle.dumps({"model": whole, "__author__": "Detectron2 Model Zoo"}))
    other = build_model(cfg)
    weights.load_detector(other, weights.read_weights(str(file))["model"], str(file))
    assert all(
        torch.equal(other.state_dict()[key], value) for key, value in model.state_dict().items()
    )


def test_content_and_hash_are_of_one_moment(files, tmp_path, monkeypatch):
    """A run recorded the hash of weights that had replaced those that it began with."""
    file = tmp_path / "w.pth"
    file.write_bytes((files / "imagenet.pth").read_bytes())
    assert weights.read_weights(str(file))["sha256"] == sha256_file(files / "imagenet.pth")

    other = tmp_path / "other.pth"
    other.write_bytes((files / "unit.pth").read_bytes())

    def replaced_first(path):
        other.replace(path)
        return sha256_file(path)

    monkeypatch.setattr(weights, "sha256_file", replaced_first)
    with pytest.raises(UserError, match=r"w\.pth was rewritten .*while it was read"):
        weights.read_weights(str(file))


def test_a_fragment_of_other_weights_is_noticed(files, tmp_path):
    for suffix in (".pth", ".yaml"):
        (tmp_path / f"w{suffix}").write_bytes((files / f"imagenet{suffix}").read_bytes())
    read = weights.read_weights(str(tmp_path / "w.pth"))
    assert read["settings"]["values"]["MODEL.RESNETS.DEPTH"] == 18
    (tmp_path / "w.yaml").write_bytes((files / "caffe.yaml").read_bytes())
    with pytest.raises(UserError, match=r"w\.yaml says .*w\.pth was converted with"):
        weights.read_weights(str(tmp_path / "w.pth"))


def test_the_fragment_is_a_detectron2_configuration(files):
    from detectron2.config import get_cfg

    cfg = get_cfg()
    cfg.merge_from_file(str(files / "caffe.yaml"))
    assert (cfg.INPUT.FORMAT, cfg.MODEL.RESNETS.STRIDE_IN_1X1) == ("BGR", True)
    report = json.loads((files / "caffe.json").read_text())
    assert report["sha256"][:16] in (files / "caffe.yaml").read_text()


def test_weights_from_caffe_are_taken_as_they_are(tmp_path):
    state = backbone_state("resnet18", seed=7)
    blobs = {"model": caffe2(state, folded=True), "__author__": "Caffe2"}
    file = tmp_path / "R-18.pkl"
    file.write_bytes(pickle.dumps(blobs, protocol=2))
    content = weights.read_weights(str(file))
    assert content["settings"]["source"] == "inferred from names (Caffe2's names)"
    cfg, _ = prepared("shapes_coco_R18_C4", file)
    assert cfg.INPUT.FORMAT == "BGR"
    model = build_model(cfg)
    weights.check_backbone(model, content["model"], str(file))
    AtomicCheckpointer(model).load(str(file))
    weights.check_loaded(model, content["model"], str(file))
    assert torch.equal(model.backbone.stem.conv1.weight, state["conv1.weight"])


def test_pickles_that_would_run_code_run_none(tmp_path):
    import os

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    file = tmp_path / "w.pkl"
    file.write_bytes(pickle.dumps({"model": {}, "__author__": Evil()}))
    with pytest.warns(UserWarning, match=r"w\.pkl imports posix\.mkdir"):
        content = weights.read_weights(str(file))
    assert content["__author__"].name == "posix.mkdir"
    with pytest.warns(UserWarning, match=r"w\.pkl imports posix\.mkdir"):
        AtomicCheckpointer(torch.nn.Linear(1, 1)).load(str(file))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["imagenet.pth", "pickled.pkl", "theirs.pth", "unit.pth"])
@pytest.mark.parametrize("are_given", [False, True])
def test_train_net_says_what_is_assumed(
    stage, files, tmp_path, monkeypatch, capsys, name, are_given
):
    """Of converted weights that nothing was said of, as of others' without settings."""
    monkeypatch.setattr(train_net_module, "start_processes", lambda *arguments: 0)
    file = files / name
    if name == "theirs.pth":
        file = tmp_path / name
        state = torch.load(files / "imagenet.pth", weights_only=True)["model"]
        torch.save({"model": state}, file)
        report = json.loads((files / "imagenet.json").read_text())
    else:
        report = json.loads(file.with_suffix(".json").read_text())
    values = report["config"]
    mean, std = values["MODEL.PIXEL_MEAN"], values["MODEL.PIXEL_STD"]
    given = ["INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", str(mean), "MODEL.PIXEL_STD", str(std)]
    assert (
        stage(
            *(
                "--config",
                "shapes_coco_R18_C4",
                "--weights",
                file,
                "--output-dir",
                tmp_path / "run",
            ),
            *("MODEL.DEVICE", "cpu", *TINY, *(given if are_given else ())),
        )
        == 0
    )
    line = f"assumed: {file} does not state its image preprocessing; RGB, mean {mean}, deviation"
    is_assumed = report["config_source"] is None and not are_given
    assert (line in capsys.readouterr().out) == is_assumed
    assert is_assumed == (name != "unit.pth" and not are_given)


def test_train_net_says_what_contradicts(data, files, tmp_path):
    done = train_net(
        *(data, "--config", "shapes_coco_R18_C4", "--weights", files / "imagenet.pth"),
        *("--output-dir", tmp_path / "run", *TINY, "INPUT.FORMAT", "BGR"),
        check=False,
    )
    assert done.returncode == 2
    assert "error: the configuration contradicts" in done.stderr
    assert "INPUT.FORMAT is BGR, the weights need RGB" in done.stderr
    assert not (tmp_path / "run").exists()
