from __future__ import annotations

import pytest

from detection.config import CONFIGS, as_dict, load_config, schedule_name
from intl_transfer.errors import UserError

COCO_SIZES = (640, 672, 704, 736, 768, 800)
VOC_SIZES = (480, 512, 544, 576, 608, *COCO_SIZES)


@pytest.mark.parametrize(
    ("name", "schedule", "iterations", "steps", "mask", "classes", "sizes", "train", "test"),
    [
        (
            *("coco_R50_C4.yaml", "2x", 180_000, (120_000, 160_000), True, 80, COCO_SIZES),
            *(("coco_2017_train",), ("coco_2017_val",)),
        ),
        (
            *("coco_R50_C4_1x", "1x", 90_000, (60_000, 80_000), True, 80, COCO_SIZES),
            *(("coco_2017_train",), ("coco_2017_val",)),
        ),
        (
            *("voc_R50_C4", "24k", 24_000, (18_000, 22_000), False, 20, VOC_SIZES),
            *(("voc_2007_trainval", "voc_2012_trainval"), ("voc_2007_test",)),
        ),
    ],
)
def test_published_protocols(name, schedule, iterations, steps, mask, classes, sizes, train, test):
    cfg = load_config(name)
    assert schedule_name(cfg) == schedule
    assert (cfg.SOLVER.MAX_ITER, tuple(cfg.SOLVER.STEPS)) == (iterations, steps)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (16, 0.02)
    assert mask == cfg.MODEL.MASK_ON
    assert classes == cfg.MODEL.ROI_HEADS.NUM_CLASSES
    assert (tuple(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MIN_SIZE_TEST) == (sizes, 800)
    assert (tuple(cfg.DATASETS.TRAIN), tuple(cfg.DATASETS.TEST)) == (train, test)
    assert cfg.INPUT.FORMAT == "RGB"
    assert list(cfg.MODEL.PIXEL_MEAN) == [123.675, 116.28, 103.53]
    assert list(cfg.MODEL.PIXEL_STD) == [58.395, 57.12, 57.375]
    assert cfg.MODEL.RESNETS.DEPTH == 50
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1 is False
    assert cfg.MODEL.RESNETS.NORM == "naiveSyncBN"
    assert cfg.MODEL.BACKBONE.FREEZE_AT == 0
    assert cfg.MODEL.ROI_HEADS.NAME == "Res5ROIHeadsExtraNorm"
    assert (cfg.MODEL.RPN.PRE_NMS_TOPK_TEST, cfg.MODEL.RPN.POST_NMS_TOPK_TEST) == (6000, 1000)
    assert cfg.TEST.PRECISE_BN.ENABLED is True
    if schedule == "24k":
        assert cfg.SOLVER.WARMUP_ITERS == 100


def test_a_changed_schedule_loses_its_name():
    assert schedule_name(load_config("coco_R50_C4", ["SOLVER.IMS_PER_BATCH", "8"])) == "coco-180000"
    assert schedule_name(load_config("coco_R50_C4", ["SOLVER.MAX_ITER", "90000"])) == "coco-90000"
    assert schedule_name(load_config("shapes_voc_R18_C4")).startswith("shapes-")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_file_resolves(path):
    cfg = load_config(str(path))
    assert isinstance(as_dict(cfg)["SOLVER"]["STEPS"], list)
    if "shapes" in path.stem:
        assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 8
        assert ("R18" in path.stem) == (cfg.MODEL.RESNETS.DEPTH == 18)


def test_typos_name_what_is_near(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'coco_R50_C4'"):
        load_config("coco_R50_C")
    with pytest.raises(UserError, match=r"no key 'SOLVER\.BASE_LRR'.*SOLVER\.BASE_LR"):
        load_config("coco_R50_C4", ["SOLVER.BASE_LRR", "1"])
    (tmp_path / "typo.yaml").write_text("SOLVER: {MAX_ITERS: 3}\n")
    with pytest.raises(UserError, match=r"typo\.yaml: no key .*MAX_ITERS.*SOLVER\.MAX_ITER"):
        load_config(str(tmp_path / "typo.yaml"))
    with pytest.raises(UserError, match="Type mismatch"):
        load_config("coco_R50_C4", ["SOLVER.MAX_ITER", "many"])
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
