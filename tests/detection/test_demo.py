from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from detection.config import load_config
from detection.demo import Detector, class_names, demonstrate, open_upright
from intl_transfer.errors import UserError
from tests.detection.conftest import TINY

OVERRIDES = [*TINY, "MODEL.DEVICE", "cpu", "TEST.DETECTIONS_PER_IMAGE", "8"]
CONFIG = "shapes_coco_R18_C4"


def photograph(width=90, height=60) -> Image.Image:
    """Something whose corners differ."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (250, 20, 20)
    pixels[height // 2 :, width // 2 :] = (20, 20, 250)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory: an untrained detector that finds something everywhere."""
    folder = tmp_path_factory.mktemp("run")
    cfg = load_config(CONFIG, OVERRIDES)
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():  # sure of class 2
        model.roi_heads.box_predictor.cls_score.bias[2] += 8
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    per_class = {f"name {i}": 1.0 for i in range(8)}
    metrics = {"box": {"AP": 1.0, "per_class": per_class}}
    results = {"stage": "detection", "seed": 0, "metrics": metrics, "initialization": {}}
    results |= {"dataset": {"name": "d"}, "architecture": {"backbone": "resnet18"}}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_pictures_of_every_mode_are_read_upright(tmp_path):
    image = photograph()
    expected = np.asarray(image).astype(int)
    for orientation, turn in ((6, Image.Transpose.ROTATE_90), (3, Image.Transpose.ROTATE_180)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = tmp_path / f"turned{orientation}.png"
        image.transpose(turn).save(file, exif=exif)
        assert (np.asarray(open_upright(str(file))) == expected).all()
    for mode in ("L", "RGBA", "P", "1"):
        file = tmp_path / f"{mode}.png"
        image.convert(mode).save(file)
        upright = open_upright(str(file))
        assert (upright.mode, upright.size) == ("RGB", (90, 60))
    assert np.abs(np.asarray(open_upright(str(tmp_path / "RGBA.png"))) - expected).max() == 0


def test_finds_says_and_draws(run, tmp_path, capsys):
    for name, size in (("a.png", (90, 60)), ("tiny.png", (1, 1)), ("line.png", (2500, 1))):
        photograph(*size).save(tmp_path / name)
    (tmp_path / "other").mkdir()
    photograph().convert("L").save(tmp_path / "other" / "a.jpg")
    files = [str(tmp_path / f) for f in ("a.png", "other/a.jpg", "tiny.png", "line.png")]
    out = tmp_path / "out"
    written = demonstrate(files, str(run), None, folder=out)
    assert [f.name for f in written] == [
        *("a_detections.png", "a_detections_2.png"),
        *("tiny_detections.png", "line_detections.png"),
    ]
    output = capsys.readouterr().out
    assert re.search(r"a\.png \(90 x 60\): [1-8] found, drawn in .*a_detections\.png", output)
    found = re.findall(r"^  name 2 (\d\.\d\d)  x (\d+) to (\d+), y (\d+) to (\d+)$", output, re.M)
    assert found
    for score, x0, x1, y0, y1 in found[:3]:
        assert float(score) >= 0.5
        assert 0 <= int(x0) <= int(x1) <= 90
        assert 0 <= int(y0) <= int(y1) <= 90
    with Image.open(written[0]) as drawn:
        assert drawn.size == (480, 320)  # small pictures are enlarged
        plain = photograph().resize((480, 320), Image.Resampling.LANCZOS)
        assert np.abs(np.asarray(drawn).astype(int) - np.asarray(plain)).max() > 100


def test_detections_are_the_models_own(run):
    """As Detectron2's predictor has them, for a picture that needs no reduction."""
    from detectron2.engine import DefaultPredictor

    cfg = load_config(str(run / "config.yaml"))
    cfg.MODEL.WEIGHTS = str(run / "model_final.pth")
    image = photograph(600, 480)
    objects = Detector(cfg, ["a"])(image)
    expected = DefaultPredictor(cfg)(np.asarray(image)[:, :, ::-1])["instances"]
    assert len(objects) == len(expected) > 0
    for object_, box, score, label in zip(
        objects, expected.pred_boxes, expected.scores, expected.pred_classes, strict=True
    ):
        assert object_.box == pytest.approx(box.tolist(), abs=1e-3)
        assert (object_.score, object_.label) == (pytest.approx(float(score)), int(label))


def test_names_come_from_the_run_or_the_data_set(run, registered, tmp_path):
    cfg = load_config(CONFIG, OVERRIDES)
    alone = tmp_path / "model_final.pth"
    assert class_names(cfg, {}, run / "model_final.pth") == [f"name {i}" for i in range(8)]
    assert class_names(cfg, {}, alone)[0] == "disc"
    cfg.DATASETS.TEST = ("coco_2017_val",)
    assert class_names(cfg, {}, alone)[:2] == ["person", "bicycle"]
    cfg.DATASETS.TEST = ("unknown",)
    cfg.MODEL.WEIGHTS = str(run / "model_final.pth")
    assert Detector(cfg, class_names(cfg, {}, alone)).classes[7] == "class 7"


@pytest.mark.parametrize(
    ("picture", "weights", "config", "message"),
    [
        ("a.png", None, CONFIG, "needs a fine-tuned detector"),
        ("a.png", "random", CONFIG, "needs a fine-tuned detector"),
        ("a.png", "gone.pth", CONFIG, "weights not found: looked for gone.pth"),
        ("a.png", "gone.pth", None, "also needs --config"),
        ("a.png", "empty", CONFIG, "empty contains no checkpoint"),
        ("a.png", "RUN", "shapes_coco_R50_C4", "not a complete detector of this configuration"),
        ("gone.png", "RUN", None, "no image gone.png"),
        ("empty", "RUN", None, "empty is a folder"),
        ("text.jpg", "RUN", None, "text.jpg cannot be read as an image"),
    ],
)
def test_what_cannot_work_is_said(run, tmp_path, monkeypatch, picture, weights, config, message):
    monkeypatch.chdir(tmp_path)
    photograph().save("a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(UserError, match=message):
        demonstrate([picture], str(run) if weights == "RUN" else weights, config)
    assert not list(tmp_path.glob("*_detections*"))
