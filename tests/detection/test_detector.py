"""Detectors that stand alone: a file moved anywhere is what it was in its folder."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from detection import detector
from detection.checkpoints import label
from detection.checks import check_settings
from detection.config import as_dict, config_of, load_config
from intl_transfer.conversion import load_backbone
from intl_transfer.errors import UserError
from intl_transfer.runs import read_manifest, read_results
from intl_transfer.runs.lock import directory_lock
from tests.detection.conftest import TINY, train_net

# Pixels and anchors that no configuration of the project has: what is not carried shows.
ODD = [
    *["INPUT.FORMAT", "BGR", "MODEL.PIXEL_MEAN", "[90.0,100.0,110.0]"],
    *["MODEL.PIXEL_STD", "[30.0,40.0,50.0]", "MODEL.ANCHOR_GENERATOR.SIZES", "[[16,48]]"],
    *["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"],
    *["TEST.DETECTIONS_PER_IMAGE", "60"],
]


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A finished run of a detector that finds something, and is right now and then by chance."""
    folder = tmp_path_factory.mktemp("detector") / "run"
    arguments = ["--config", "shapes_coco_R18_C4", "--weights", "random", "--output-dir", folder]
    train_net(data, *arguments, *TINY, *ODD, "SOLVER.MAX_ITER", "6")
    return folder


@pytest.fixture
def moved(run, tmp_path, monkeypatch):
    """Its file alone, under another name in another place."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(run / "model_final.pth", tmp_path / "elsewhere.pth"))


def detections(folder):
    return json.loads((folder / "coco_instances_results.json").read_text())


def flat(found):
    """Detections as rows of numbers, which two processes have alike to rounding."""
    return [[d["image_id"], d["category_id"], d["score"], *d["bbox"]] for d in found]


def test_a_file_says_what_it_is(run):
    content = torch.load(run / "model_final.pth", weights_only=True)
    manifest, results = read_manifest(run), read_results(run)
    record = detector.stated(content, run)
    assert record.config == manifest.config
    assert record.classes == list(results.metrics["box"]["per_class"])
    assert record.architecture == results.architecture
    assert record.initialization == results.initialization
    assert (record.run, record.seed) == (manifest.id, results.seed)
    train = manifest.dataset["shapes_coco_train"]
    assert record.dataset["shapes_coco_train"] == train
    # As converted weights say it, so that whatever reads these knows it too.
    assert content["config"]["INPUT.FORMAT"] == "BGR"
    backbone = load_backbone(run / "model_final.pth")
    expected = content["model"]["backbone.stem.conv1.weight"]
    assert torch.equal(backbone["conv1.weight"], expected)


@pytest.mark.parametrize("config", [None, "shapes_coco_R18_C4"])
def test_moved_out_of_its_folder_it_scores_the_same(run, moved, stage, config, capsys):
    named = [] if config is None else ["--config", config]
    assert stage("--weights", moved, "--eval-only", "--output-dir", "again", *named) == 0
    again, before = flat(detections(Path("again"))), flat(detections(run))
    assert np.array(again) == pytest.approx(np.array(before), rel=1e-4)
    record = json.loads(Path("again/evaluation.json").read_text())
    assert record["weights"]["iterations"] == read_results(run).iteration
    sizes = ("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST", "TEST.DETECTIONS_PER_IMAGE")
    assert [record["protocol"][key] for key in sizes] == [64, 64, 60]
    found = record["metrics"]
    for task, figures in read_results(run).metrics.items():
        assert found[task]["AP50"] == pytest.approx(figures["AP50"], abs=1e-2)
        assert list(found[task]["per_class"]) == list(figures["per_class"])
    output = capsys.readouterr().out
    assert ("as belongs to" in output) == (config is not None)
    if config:
        assert "MODEL.PIXEL_STD [30.0, 40.0, 50.0]" in output


def test_what_the_user_sets_of_a_test_stands_and_is_said(run, data, stage, tmp_path, capsys):
    """In their own file or on the command line; all else, also what is not in either, follows."""
    config, _ = own_set(data, tmp_path, without_masks)
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "INPUT": {"MIN_SIZE_TEST": 48}}))
    command = ["--weights", run, "--eval-only", "--config", config, "--output-dir", tmp_path / "o"]
    assert stage(*command, "MODEL.ROI_HEADS.NMS_THRESH_TEST", "0.25") == 0
    record = json.loads((tmp_path / "o" / "evaluation.json").read_text())
    own = detector.protocol(read_manifest(run).config)
    assert record["protocol"] == {
        **own,
        "INPUT.MIN_SIZE_TEST": 48,
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.25,
    }
    others = "INPUT.MIN_SIZE_TEST 48 (64), MODEL.ROI_HEADS.NMS_THRESH_TEST 0.25 (0.5)\n"
    assert f"its own test: {others}" in capsys.readouterr().out
    # Boxes alone are tested here, of the same detector.
    assert set(record["metrics"]) == {"box"}
    assert record["architecture"]["meta"] == "Mask R-CNN"


def without_masks(content):
    for one in content["annotations"]:
        del one["segmentation"]


def test_files_of_a_run_and_of_other_evaluations_are_not_replaced(run, stage, tmp_path, capsys):
    assert stage("--weights", run, "--eval-only", "--output-dir", run) == 2
    assert "is the directory of a run" in capsys.readouterr().err
    out = tmp_path / "out"
    with directory_lock(out):
        assert stage("--weights", run, "--eval-only", "--output-dir", out) == 2
    assert "is in use by process" in capsys.readouterr().err
    for file in ("a.pth", "model_0000005.pth"):
        content = torch.load(run / "model_final.pth", weights_only=True)
        torch.save({**content, "iteration": len(file)}, tmp_path / file)
    command = ["--eval-only", "--output-dir", out]
    assert stage("--weights", tmp_path / "a.pth", *command) == 0
    assert "was trained on these images" not in capsys.readouterr().out
    seen = ["DATASETS.TEST", "('shapes_coco_train',)"]
    assert stage("--weights", tmp_path / "a.pth", *command, *seen) == 0
    assert "was trained on these images ('shapes_coco_train')" in capsys.readouterr().out
    assert stage("--weights", tmp_path / "model_0000005.pth", *command) == 2
    assert f"is the evaluation of {tmp_path}/a.pth; its files" in capsys.readouterr().err
    assert label(tmp_path / "model_0000005.pth") == f"{tmp_path.name}_model_0000005"


def test_a_run_directory_is_a_detector(run, stage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = contents(run)
    torch.set_float32_matmul_precision("high")  # as by a variable of NVIDIA's containers
    assert stage("--weights", run, "--eval-only") == 0  # writes beside, not into, the run
    assert torch.get_float32_matmul_precision() == "highest"
    assert (tmp_path / "runs/evaluation/run_on_shapes_coco_val/evaluation.json").exists()
    assert contents(run) == before


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def own_set(data, tmp_path, change):
    """A configuration whose test set is the embedded one with other categories."""
    folder = data / "shapes" / "coco"
    content = json.loads((folder / "annotations" / "instances_val.json").read_text())
    change(content)
    (tmp_path / "own.json").write_text(json.dumps(content))
    own = {"LAYOUT": "coco", "JSON": str(tmp_path / "own.json"), "IMAGES": str(folder / "val")}
    values = {
        "_BASE_": str(Path(__file__).parents[2] / "configs/detection/shapes_coco_R18_C4.yaml"),
        "CUSTOM_DATASETS": {"renumbered": own},
        "DATASETS": {"TRAIN": ["renumbered"], "TEST": ["renumbered"]},
    }
    (tmp_path / "own.yaml").write_text(json.dumps(values))
    return tmp_path / "own.yaml", {c["id"]: c["name"] for c in content["categories"]}


def test_classes_are_matched_by_name(run, moved, data, stage, tmp_path, capsys):
    """Against the run's own detections, named through the annotation files."""
    before = own_set(data, tmp_path, lambda content: None)[1]
    expected = [(before[d["category_id"]], d) for d in detections(run)]
    rare = min({name for name, _ in expected}, key=[name for name, _ in expected].count)

    def reverse_and_drop(content):
        places = {c["id"]: 100 - c["id"] for c in content["categories"]}
        for one in content["categories"]:
            one["id"] = places[one["id"]]
        for one in content["annotations"]:
            one["category_id"] = places[one["category_id"]]
        dropped = next(c["id"] for c in content["categories"] if c["name"] == rare)
        content["categories"] = [c for c in content["categories"] if c["id"] != dropped]
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] != dropped]

    config, names = own_set(data, tmp_path, reverse_and_drop)
    arguments = ["--weights", moved, "--eval-only", "--output-dir", "other", "--config", config]
    assert stage(*arguments, *TINY, "TEST.DETECTIONS_PER_IMAGE", "60") == 0
    assert f"7 of the detector's 8; not in 'renumbered': {rare}" in capsys.readouterr().out
    found = [(names[d["category_id"]], d) for d in detections(Path("other"))]
    expected = [(name, d) for name, d in expected if name != rare]
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (_, one), (_, other) in zip(found, expected, strict=True):
        assert one["image_id"] == other["image_id"]
        assert one["score"] == pytest.approx(other["score"], rel=1e-4)
        assert one["bbox"] == pytest.approx(other["bbox"], rel=1e-4)
    assert 0 < len(found) < len(detections(run))


def test_classes_that_it_does_not_know_are_refused(moved, data, stage, tmp_path, capsys):
    def rename(content):
        content["categories"][0]["name"] = "disk"

    config, _ = own_set(data, tmp_path, rename)
    assert stage("--weights", moved, "--eval-only", "--config", config, *TINY) == 2
    output = capsys.readouterr().err
    assert "1 class(es) that the detector" in output
    assert "disk. Did you mean 'disc'" in output


def test_names_that_stand_twice_are_matched_in_order_alone():
    same = ["bird", "bird", "cat"]
    assert detector.match_classes(same, same, "f", "s") is None
    assert detector.match_classes(["a", "b"], ["b"], "f", "s") == [-1, 0]
    assert detector.match_classes(None, ["b"], "f", "s") is None
    with pytest.raises(UserError, match="'s' has several classes of the name 'bird'"):
        detector.match_classes(["cat", "bird"], same, "f", "s")


def test_test_time_augmentation_works(run, moved, stage):
    """One size without flips is the plain test; flips as well are another."""
    sizes = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64,)", "TEST.AUG.MAX_SIZE", "64"]
    command = ["--weights", moved, "--eval-only", "MODEL.ROI_HEADS.NMS_THRESH_TEST", "1.0"]
    few = [*command, "TEST.DETECTIONS_PER_IMAGE", "5"]
    found = {}
    for name, more in (
        ("plain", []),
        ("one", [*sizes, "TEST.AUG.FLIP", "False"]),
        ("flipped", sizes),
    ):
        assert stage(*few, *more, "--output-dir", name) == 0
        found[name] = np.array(sorted((d["image_id"], d["score"]) for d in detections(Path(name))))
    assert found["one"] == pytest.approx(found["plain"], rel=1e-4)
    assert found["flipped"] != pytest.approx(found["plain"], rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--eval-only", "--weights", "random"], "--eval-only needs a fine-tuned detector"),
        (["--eval-only"], "--eval-only needs a fine-tuned detector"),
        (["--eval-only", "--weights", "gone.pth"], "weights not found: looked for gone.pth"),
        (["--eval-only", "--weights", "."], ". contains no checkpoint"),
        (
            ["--config", "shapes_coco_R18_C4", "--weights", "random", "SOLVER.IMS_PER_BATCH", "0"],
            "SOLVER.IMS_PER_BATCH is 0; expected a whole number, at least 1",
        ),
        (
            ["--config", "shapes_coco_R18_C4", "--weights", "random", "DATASETS.TRAIN", "()"],
            "DATASETS.TRAIN is empty",
        ),
        (
            ["--config", "shapes_coco_R18_C4", "--weights", "random", "DATASETS.TEST", "()"],
            "DATASETS.TEST is (); expected one data set",
        ),
        (
            ["--config", "shapes_coco_R18_C4", "--weights", "random", "--num-machines", "0"],
            "--num-machines 0: expected at least 1",
        ),
        (
            ["--config", "shapes_coco_R18_C4", "--weights", "random", "--machine-rank", "1"],
            "--machine-rank 1: expected 0 to 0",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_said(stage, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert stage(*arguments) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.MAX_ITER", "0", "SOLVER.MAX_ITER is 0"),
        ("SOLVER.CHECKPOINT_PERIOD", "0", "SOLVER.CHECKPOINT_PERIOD is 0"),
        ("SOLVER.STEPS", "(200,100)", "in strictly ascending order"),
        ("SOLVER.BASE_LR", "0.0", "SOLVER.BASE_LR is 0.0; expected a finite number above 0"),
        ("SOLVER.BASE_LR", "float('nan')", "expected a number, such as"),
        ("SOLVER.WEIGHT_DECAY", "-0.1", "of 0 or more"),
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosine", "Did you mean 'WarmupCosineLR'"),
        ("SOLVER.WARMUP_METHOD", "cosine", "Known: linear, constant"),
        ("MODEL.RESNETS.NORM", "SyncBatchNorm", "Did you mean 'SyncBN'"),
        ("MODEL.RESNETS.DEPTH", "20", "expected one of 18, 34, 50, 101, 152"),
        ("MODEL.RESNETS.RES2_OUT_CHANNELS", "256", "a ResNet-18 has 64"),
        ("INPUT.MIN_SIZE_TRAIN", "()", "INPUT.MIN_SIZE_TRAIN is empty"),
        ("INPUT.FORMAT", "YUV-BT.601", "Known: RGB, BGR"),
        ("MODEL.PIXEL_STD", "[0.0,1.0,1.0]", "expected numbers above 0"),
        ("MODEL.META_ARCHITECTURE", "RetinaNets", "Did you mean 'RetinaNet'"),
        ("MODEL.META_ARCHITECTURE", "PanopticFPN", "would not be evaluated here"),
        ("MODEL.META_ARCHITECTURE", "RetinaNet", "detects only boxes; set MODEL.MASK_ON False"),
        ("MODEL.ROI_HEADS.NAME", "Res5ROIHead", "Did you mean 'Res5ROIHeads'"),
        ("MODEL.RPN.HEAD_NAME", "StdRPNHead", "Known: StandardRPNHead"),
        ("MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGen", "Did you mean 'DefaultAnchorGenera"),
        ("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsample", "Known: MaskRCNNConvUpsampleHead"),
        ("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvHead", "Known: FastRCNNConvFCHead, '' (none)"),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV3", "Did you mean 'ROIAlignV2'"),
        ("MODEL.RPN.BBOX_REG_LOSS_TYPE", "iou", "Known: smooth_l1, giou, diou, ciou"),
        ("MODEL.FPN.FUSE_TYPE", "mean", "Known: sum, avg"),
        ("INPUT.CROP.TYPE", "absolut", "Did you mean 'absolute'"),
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", "1.5", "expected a number from 0 to 1"),
        ("MODEL.KEYPOINT_ON", "True", "not supported here"),
        ("TEST.EVAL_PERIOD", "-1", "TEST.EVAL_PERIOD is -1"),
        ("MODEL.DEVICE", "gpu", "MODEL.DEVICE is 'gpu'; expected cpu or cuda"),
    ],
)
def test_settings_that_could_not_be_run(key, value, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_settings(load_config("shapes_coco_R18_C4", [key, value]))


def test_augmented_tests_of_one_stage_detectors_are_refused():
    changes = ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.MASK_ON", "False"]
    with pytest.raises(UserError, match=r"TEST\.AUG\.ENABLED: .* not RetinaNet"):
        check_settings(load_config("shapes_coco_R18_C4", [*changes, "TEST.AUG.ENABLED", "True"]))


def test_a_configuration_of_another_detectron2(capsys):
    """Keys that this one lacks are left out; said where they do something else there."""
    values = load_config("shapes_coco_R18_C4")
    stated = as_dict(values)
    stated["SOLVER"]["NUM_DECAYS_OF_LATER"] = 3
    stated["FLOAT32_PRECISION"] = ""  # of the main branch, and what v0.6 does
    assert config_of(stated, [], "m.pth") == values
    assert "ignored: SOLVER.NUM_DECAYS_OF_LATER\n" in capsys.readouterr().out
