from __future__ import annotations

import json

import pytest
from detectron2.config import CfgNode, get_cfg

from detection.checks import check_settings
from detection.config import CONFIGS, as_dict, load_config, number_of_classes, schedule_name
from detection.weights import follow_settings
from intl_transfer.conversion.settings import CAFFE, config_values
from intl_transfer.data.detection_roles import classes_in
from intl_transfer.errors import UserError
from intl_transfer.results.protocols import protocols
from intl_transfer.runs.architectures import architecture
from intl_transfer.runs.settings import deciding
from scripts import write_protocols

COCO_SIZES = (640, 672, 704, 736, 768, 800)
VOC_SIZES = (480, 512, 544, 576, 608, *COCO_SIZES)
COCO_SETS = (("coco_2017_train",), ("coco_2017_val",))
VOC_SETS = (("voc_2007_trainval", "voc_2012_trainval"), ("voc_2007_test",))


# Published protocol: schedule, iterations, steps, warm-up, masks, classes, sizes, sets.
ONE_X = ("1x", 90_000, (60_000, 80_000), 1000, True, 80, COCO_SIZES, COCO_SETS)
TWO_X = ("2x", 180_000, (120_000, 160_000), 1000, True, 80, COCO_SIZES, COCO_SETS)
VOC = ("24k", 24_000, (18_000, 22_000), 100, False, 20, VOC_SIZES, VOC_SETS)
RECIPES = {
    "coco_R50_C4_1x": ("C4", *ONE_X),
    "coco_R50_C4_2x": ("C4", *TWO_X),
    "coco_R50_FPN_1x": ("FPN", *ONE_X),
    "coco_R50_FPN_2x": ("FPN", *TWO_X),
    "voc_R50_C4": ("C4", *VOC),
    "voc_R50_FPN": ("FPN", *VOC),
    "coco_R50_RetinaNet_1x": ("RetinaNet", *ONE_X[:4], False, *ONE_X[5:]),
    "coco_R50_RetinaNet_2x": ("RetinaNet", *TWO_X[:4], False, *TWO_X[5:]),
}
# Weights, stages frozen, norm, share of the labels.
VARIANTS = {
    "": ("weights/intl_r50.pth", 0, "naiveSyncBN", 1.0),
    "_scratch": ("random", 0, "naiveSyncBN", 1.0),
    "_supervised": ("weights/supervised_r50.pth", 0, "naiveSyncBN", 1.0),
    "_supervised_msra": ("weights/supervised_msra_r50.pth", 0, "naiveSyncBN", 1.0),
    "_frozen": ("weights/intl_r50.pth", 5, "naiveSyncBN", 1.0),
    # INTL's published fine-tuning files are of C4.
    "_intl": ("weights/intl_r50.pth", 0, "SyncBN", 1.0),
    "_1pct": ("weights/intl_r50.pth", 0, "naiveSyncBN", 0.01),
    "_5pct": ("weights/intl_r50.pth", 0, "naiveSyncBN", 0.05),
    "_10pct": ("weights/intl_r50.pth", 0, "naiveSyncBN", 0.1),
}
# As Detectron2's defaults have them, which its supervised baselines from MSRA take.
MSRA = ("BGR", [103.53, 116.28, 123.675], [1.0, 1.0, 1.0], True)
TORCHVISION = ("RGB", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375], False)


def exists(recipe, variant):
    if variant == "_intl":
        return "C4" in recipe
    return "pct" not in variant or (recipe.startswith("coco") and recipe.endswith("1x"))


@pytest.mark.parametrize(
    ("recipe", "variant"), [(r, v) for r in RECIPES for v in VARIANTS if exists(r, v)]
)
def test_published_protocols(recipe, variant):
    cfg = load_config(recipe + variant)
    weights, frozen, norm, share = VARIANTS[variant]
    head, schedule, iterations, steps, warm_up, mask, classes, sizes, (train, test) = RECIPES[
        recipe
    ]
    assert schedule_name(cfg) == schedule
    assert (cfg.SOLVER.MAX_ITER, tuple(cfg.SOLVER.STEPS)) == (iterations, steps)
    rate = 0.01 if head == "RetinaNet" else 0.02
    assert (16, rate) == (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR)
    assert warm_up == cfg.SOLVER.WARMUP_ITERS
    assert mask == cfg.MODEL.MASK_ON
    assert classes == number_of_classes(cfg)
    assert (tuple(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MIN_SIZE_TEST) == (sizes, 800)
    assert (tuple(cfg.DATASETS.TRAIN), tuple(cfg.DATASETS.TEST)) == (train, test)
    pixels = (cfg.INPUT.FORMAT, list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD))
    expected = MSRA if variant.endswith("msra") else TORCHVISION
    assert (*pixels, cfg.MODEL.RESNETS.STRIDE_IN_1X1) == expected
    assert cfg.MODEL.RESNETS.DEPTH == 50
    assert norm == cfg.MODEL.RESNETS.NORM
    assert cfg.TEST.PRECISE_BN.ENABLED is True
    assert (weights, frozen) == (cfg.MODEL.WEIGHTS, cfg.MODEL.BACKBONE.FREEZE_AT)
    assert (share, 0, "") == tuple(cfg.DATASETS.LABELS.values())
    tops = (cfg.MODEL.RPN.PRE_NMS_TOPK_TEST, cfg.MODEL.RPN.POST_NMS_TOPK_TEST)
    if head == "C4":
        assert cfg.MODEL.ROI_HEADS.NAME == "Res5ROIHeadsExtraNorm"
        assert tops == (6000, 1000)
    else:  # moco#34: batch norm in backbone and pyramid only, heads as Detectron2's
        assert cfg.MODEL.FPN.NORM == "naiveSyncBN"
        assert cfg.MODEL.ROI_BOX_HEAD.NORM == cfg.MODEL.ROI_MASK_HEAD.NORM == ""
        assert cfg.MODEL.RETINANET.NORM == ""
    if head == "FPN":
        assert cfg.MODEL.BACKBONE.NAME == "build_resnet_fpn_backbone"
        assert tops == (1000, 1000)
    rcnn = "Mask R-CNN" if mask else "Faster R-CNN"
    assert architecture(cfg) == {
        "meta": "RetinaNet" if head == "RetinaNet" else rcnn,
        "backbone": "resnet50",
        "head": "FPN" if head == "RetinaNet" else head,
    }
    check_settings(cfg)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*_boxes.yaml")), ids=lambda p: p.stem)
def test_boxes_alone_are_all_that_differs(path):
    boxes, masks = load_config(str(path)), load_config(path.stem.removesuffix("_boxes"))
    assert (boxes.MODEL.MASK_ON, masks.MODEL.MASK_ON) == (False, True)
    assert architecture(boxes)["meta"] == "Faster R-CNN"
    masks.MODEL.MASK_ON = False
    assert boxes == masks


def test_a_wide_backbone_has_its_own_name():
    cfg = load_config("coco_R50_C4", ["MODEL.RESNETS.WIDTH_PER_GROUP", "128"])
    assert architecture(cfg)["backbone"] == "wide_resnet50_2"


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("COCO-Detection/retinanet_R_50_FPN_1x", ("RetinaNet", "resnet50", "FPN")),
        ("COCO-Detection/faster_rcnn_R_50_C4_1x", ("Faster R-CNN", "resnet50", "C4")),
        ("COCO-Detection/faster_rcnn_R_50_DC5_1x", ("Faster R-CNN", "resnet50", "DC5")),
        ("COCO-Detection/fast_rcnn_R_50_FPN_1x", ("Fast R-CNN", "resnet50", "FPN")),
        ("COCO-Detection/rpn_R_50_FPN_1x", ("RPN", "resnet50", "FPN")),
        (
            "COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x",
            ("Faster R-CNN", "resnext101_32x8d", "FPN"),
        ),
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", ("Mask R-CNN", "resnet50", "FPN")),
        ("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x", ("Keypoint R-CNN", "resnet50", "FPN")),
        ("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x", ("Panoptic FPN", "resnet50", "FPN")),
        ("Misc/cascade_mask_rcnn_R_50_FPN_1x", ("Cascade Mask R-CNN", "resnet50", "FPN")),
        ("Misc/semantic_R_50_FPN_1x", ("Semantic FPN", "resnet50", "FPN")),
        (
            "Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5",
            ("Mask R-CNN", "resnet50-deformable", "FPN"),
        ),
    ],
)
def test_detectors_are_named_as_what_they_are(file, expected):
    """Those of Detectron2's model zoo, whose files are called after them."""
    found = architecture(zoo(f"{file}.yaml"))
    assert (found.meta, found.backbone, found.head) == expected


def test_the_authors_file_name_is_the_2x_schedule():
    assert load_config("coco_R50_C4.yaml") == load_config("coco_R50_C4_2x")


def test_the_pyramid_is_detectron2s_own():
    """Beyond the protocol, a pyramid's settings are those of Detectron2's model zoo."""
    from pathlib import Path

    import detectron2

    zoo = Path(detectron2.__file__).parent / "model_zoo" / "configs"
    if not zoo.exists():
        pytest.skip("this Detectron2 was installed without its model zoo's files")
    theirs, ours = load_config(str(zoo / "Base-RCNN-FPN.yaml")), load_config("coco_R50_FPN_1x")
    for node in ("RPN", "ANCHOR_GENERATOR", "ROI_HEADS", "ROI_BOX_HEAD", "ROI_MASK_HEAD"):
        assert ours.MODEL[node] == theirs.MODEL[node]
    assert ours.MODEL.FPN.IN_FEATURES == theirs.MODEL.FPN.IN_FEATURES


def zoo(file):
    from detectron2 import model_zoo

    try:
        return model_zoo.get_config(file)
    except RuntimeError:
        pytest.skip("this Detectron2 was installed without its model zoo's files")


def test_the_retinanet_is_detectron2s_own():
    theirs, ours = (
        zoo("COCO-Detection/retinanet_R_50_FPN_1x.yaml"),
        load_config("coco_R50_RetinaNet_1x"),
    )
    for node in ("RETINANET", "ANCHOR_GENERATOR"):
        assert as_dict(ours.MODEL[node]) == as_dict(theirs.MODEL[node])
    for key in ("OUT_FEATURES", "NUM_GROUPS", "WIDTH_PER_GROUP"):
        assert ours.MODEL.RESNETS[key] == theirs.MODEL.RESNETS[key]
    assert ours.MODEL.BACKBONE.NAME == theirs.MODEL.BACKBONE.NAME
    assert {**ours.MODEL.FPN, "NORM": ""} == {**theirs.MODEL.FPN}
    assert as_dict(ours.SOLVER) == as_dict(theirs.SOLVER)
    assert ours.INPUT.MIN_SIZE_TRAIN == theirs.INPUT.MIN_SIZE_TRAIN


def test_msras_weights_see_images_as_detectron2s_baselines_do():
    theirs = zoo("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml")
    ours = load_config("coco_R50_C4_1x_supervised_msra")
    assert "MSRA/R-50.pkl" in theirs.MODEL.WEIGHTS
    assert theirs.INPUT.FORMAT == ours.INPUT.FORMAT
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        assert theirs.MODEL[key] == ours.MODEL[key]
    assert theirs.MODEL.RESNETS.STRIDE_IN_1X1 == ours.MODEL.RESNETS.STRIDE_IN_1X1


def test_weights_and_their_variant_agree():
    """MSRA's weights change nothing in their own variant, and torchvision's variant to theirs."""
    settings = {"settings": {"values": config_values("resnet50", CAFFE), "source": "the file"}}
    own = load_config("coco_R50_FPN_1x_supervised_msra")
    assert follow_settings(own, settings, set()) == []
    other = load_config("coco_R50_FPN_1x_supervised")
    assert "INPUT.FORMAT BGR" in follow_settings(other, settings, set())
    for key in ("PIXEL_MEAN", "PIXEL_STD", "RESNETS"):
        assert other.MODEL[key] == own.MODEL[key]


def test_a_changed_schedule_loses_its_name():
    assert schedule_name(load_config("coco_R50_C4", ["SOLVER.MAX_ITER", "90000"])) == "coco-90000"
    assert schedule_name(load_config("shapes_voc_R18_C4")).startswith("shapes-")
    one_x = load_config("coco_R50_C4_1x", ["SOLVER.IMS_PER_BATCH", "8"])
    assert schedule_name(one_x) == "coco-90000"  # half the images
    voc = "('voc_2007_trainval',)", "('voc_2012_trainval', 'voc_2007_trainval')"
    names = [schedule_name(load_config("voc_R50_C4", ["DATASETS.TRAIN", sets])) for sets in voc]
    assert names == ["voc-24000", "24k"]  # fewer images; the order decides nothing
    on_tests = load_config("coco_R50_C4_1x", ["DATASETS.TRAIN", "('coco_2017_val',)"])
    assert schedule_name(on_tests) == "coco-90000"
    # As many images as the published 1x, in batches of 8.
    two_x = load_config("coco_R50_C4_2x", ["SOLVER.IMS_PER_BATCH", "8"])
    assert schedule_name(two_x) == "1x-batch8"


def test_protocols_of_published_results_are_those_of_the_recipes():
    written = json.loads(write_protocols.PLACE.read_text())
    assert written == json.loads(json.dumps(write_protocols.entries())), (
        "run scripts/write_protocols.py"
    )


@pytest.mark.parametrize(
    ("file", "recipe", "further"),
    [
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml", "coco_R50_C4_1x", set()),
        (
            *("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x.yaml", "coco_R50_C4_2x"),
            {"SOLVER.MAX_ITER", "SOLVER.STEPS"},
        ),
        (
            *("PascalVOC-Detection/faster_rcnn_R_50_C4.yaml", "voc_R50_C4"),
            {"SOLVER.MAX_ITER", "SOLVER.STEPS"},
        ),
    ],
)
def test_published_protocols_are_detectron2s_files_but_for_what_moco_changed(file, recipe, further):
    """Every layer trained, batch norm over all GPUs, one more in the head, precise statistics."""
    (published,) = (one for one in protocols() if one.recipe == recipe)
    changed = published.contradicted(deciding("detection", as_dict(zoo(file))))
    assert changed.keys() == {
        *("MODEL.BACKBONE.FREEZE_AT", "MODEL.RESNETS.NORM", "MODEL.ROI_HEADS.NAME"),
        *("TEST.PRECISE_BN.ENABLED", *further),
    }


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_file_resolves(path):
    cfg = load_config(str(path))
    assert isinstance(as_dict(cfg)["SOLVER"]["STEPS"], list)
    if "shapes" in path.stem:
        assert number_of_classes(cfg) == 8
        assert ("R18" in path.stem) == (cfg.MODEL.RESNETS.DEPTH == 18)


def test_typos_name_what_is_near(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'coco_R50_C4'"):
        load_config("coco_R50_C")
    with pytest.raises(UserError, match=r"no key 'SOLVER\.BASE_LRR'.*SOLVER\.BASE_LR"):
        load_config("coco_R50_C4", ["SOLVER.BASE_LRR", "1"])
    (tmp_path / "typo.yaml").write_text("SOLVER: {MAX_ITERS: 3}\n")
    with pytest.raises(UserError, match=r"typo\.yaml: no key .*MAX_ITERS.*SOLVER\.MAX_ITER"):
        load_config(str(tmp_path / "typo.yaml"))
    with pytest.raises(
        UserError, match=r"MAX_ITER: expected a whole number, such as 180000; .*many"
    ):
        load_config("coco_R50_C4", ["SOLVER.MAX_ITER", "many"])
    with pytest.raises(UserError, match=r"a whole number, .*; found several values, \(1, 0\)"):
        load_config("coco_R50_C4", ["SOLVER.MAX_ITER", "1,000"])
    with pytest.raises(UserError, match="KEY VALUE pairs"):
        load_config("coco_R50_C4", ["SOLVER.MAX_ITER"])


def test_a_tag_that_runs_code_is_refused(tmp_path):
    mark = tmp_path / "ran"
    evil = tmp_path / "evil.yaml"
    evil.write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{mark}']\n")
    with pytest.raises(UserError, match="refused"):
        load_config(str(evil))
    child = tmp_path / "child.yaml"
    child.write_text('_BASE_: "evil.yaml"\n')
    with pytest.raises(UserError, match="refused"):
        load_config(str(child))
    assert not mark.exists()
    child.write_text('_BASE_: "absent.yaml"\n')
    with pytest.raises(UserError, match="_BASE_"):
        load_config(str(child))


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        ("https://localhost:1/x.yaml", r"_BASE_ is 'https://\S+', a URL; expected a file"),
        ("detectron2://x.yaml", "a URL"),
        ("absent.yaml", r"my\.yaml: _BASE_ is 'absent\.yaml'; there is no file"),
        ("my.yaml", r"_BASE_ is circular: my\.yaml -> my\.yaml"),
        ("other.yaml", r"is circular: my\.yaml -> other\.yaml -> my\.yaml"),
        ("binary.yaml", r"binary\.yaml, line 1: not UTF-8 text"),
        ("[1]", r"_BASE_ is 1; expected the name of a file"),
        ("value.yaml", r"SOLVER is a section; in its _BASE_ it is a value"),
    ],
)
def test_bases_that_cannot_be(tmp_path, base, reason):
    (tmp_path / "other.yaml").write_text("_BASE_: my.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff" * 20)
    (tmp_path / "value.yaml").write_text("SOLVER: 3")
    file = tmp_path / "my.yaml"
    file.write_text(f"_BASE_: {base}\nSOLVER: {{BASE_LR: 0.1}}\n")
    with pytest.raises(UserError, match=reason) as caught:
        load_config(str(file))
    assert "\n" not in str(caught.value)


def test_files_over_files_are_detectron2s(tmp_path):
    """The same values as fvcore's own reader gives for every configuration here."""
    for file in sorted(CONFIGS.glob("*.yaml")):
        expected = get_cfg()
        expected.CUSTOM_DATASETS = CfgNode(new_allowed=True)
        expected.SEED = 0
        expected.DATASETS.LABELS = CfgNode({"FRACTION": 1.0, "SEED": 0, "LIST": ""})
        expected.TEST.EXPECTED_START = CfgNode({"METHODS": [], "EPOCHS": 0})
        off = {"SHUFFLE_LABELS": False, "NOISE": 0.0, "PERMUTE_WEIGHTS": False}
        expected.CONTROL = CfgNode(off)
        expected.merge_from_other_cfg(CfgNode(CfgNode.load_yaml_with_base(str(file))))
        assert load_config(str(file)) == expected
        is_retina = expected.MODEL.META_ARCHITECTURE == "RetinaNet"
        head = "RETINANET" if is_retina else "ROI_HEADS"
        count = expected.MODEL[head].NUM_CLASSES
        assert classes_in(file) == (f"MODEL.{head}.NUM_CLASSES", count)


@pytest.mark.parametrize(
    "value", ["(" * 5000, "[" * 100_000, "9" * 10_000, "{" * 300, "\x00", "'" * 7, "()" * 9]
)
def test_overrides_of_any_kind_are_one_line(value):
    with pytest.raises(UserError, match=r"SOLVER\.BASE_LR"):
        load_config("shapes_coco_R18_C4", ["SOLVER.BASE_LR", value])


def test_the_home_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("OUTPUT_DIR: ~/run\n")
    cfg = load_config("~/mine.yaml", ["MODEL.WEIGHTS", "~/w.pth"])
    for found, name in ((cfg.OUTPUT_DIR, "run"), (cfg.MODEL.WEIGHTS, "w.pth")):
        assert found == f"{tmp_path}/{name}"
