from __future__ import annotations

import argparse

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler

from detection.config import CONFIGS, as_dict, load_config, schedule_name
from detection.roi_heads import Res5ROIHeadsExtraNorm
from detection.scaling import batch_that_fits, scale_to_batch
from detection.settings import CONFIGURED_BATCH, refuse_contradictions, resolve
from intl_transfer.devices import Gpus
from intl_transfer.errors import UserError
from intl_transfer.runs import write_json
from intl_transfer.runs.changes import Continuation
from tests.detection.conftest import TINY


def arguments(**given):
    defaults = {
        "config": "coco_R50_C4_1x",
        "weights": None,
        "output_dir": None,
        "seed": None,
        "lr": None,
        "norm": None,
        "scale_to_batch": None,
        "resume": False,
        "eval_only": False,
        "check_expected": False,
        "num_gpus": 1,
        "num_machines": 1,
        "opts": [],
    }
    return argparse.Namespace(**{**defaults, **given})


def test_a_smaller_batch_sees_as_many_images_at_a_smaller_rate():
    published, cfg = load_config("coco_R50_C4_1x"), load_config("coco_R50_C4_1x")
    scale_to_batch(cfg, 4)
    solver = cfg.SOLVER
    assert (4, pytest.approx(0.005)) == (solver.IMS_PER_BATCH, solver.BASE_LR)
    assert (solver.MAX_ITER, solver.STEPS) == (360_000, (240_000, 320_000))
    assert solver.WARMUP_ITERS == 4000
    assert cfg.TEST.PRECISE_BN.NUM_ITER == 4 * published.TEST.PRECISE_BN.NUM_ITER
    assert schedule_name(cfg) == "1x-batch4"
    scale_to_batch(cfg, 16)
    assert cfg.SOLVER == published.SOLVER
    assert cfg.TEST == published.TEST


def rates(cfg):
    """The learning rate of every iteration."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    schedule = build_lr_scheduler(cfg, optimizer)
    for _ in range(cfg.SOLVER.MAX_ITER):
        yield optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()


def test_after_as_many_images_the_rate_is_that_of_the_schedule_to_the_factor():
    whole = list(rates(load_config("shapes_coco_R18_C4")))
    half = load_config("shapes_coco_R18_C4")
    scale_to_batch(half, half.SOLVER.IMS_PER_BATCH // 2)
    found = list(rates(half))
    assert found[::2] == pytest.approx([rate / 2 for rate in whole], rel=1e-6)


def test_batches_beyond_the_published_one_and_impossible_ones():
    cfg = load_config("voc_R50_C4")
    scale_to_batch(cfg, 64)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (6000, (4500, 5500))
    assert pytest.approx(0.08) == cfg.SOLVER.BASE_LR
    assert schedule_name(cfg) == "24k-batch64"
    with pytest.raises(UserError, match="a batch of 0"):
        scale_to_batch(cfg, 0)


@pytest.mark.parametrize(
    ("gpus", "memory", "expected"),
    [
        (8, 32, 16),  # as published
        (1, float("inf"), 16),
        (3, float("inf"), 15),  # cannot share 16
        (24, float("inf"), 24),  # an image each
        (8, 1, 8),  # one image a GPU whatever its size
    ],
)
def test_the_batch_changes_only_where_it_must(gpus, memory, expected):
    assert batch_that_fits(load_config("coco_R50_C4_1x"), gpus, memory) == expected


def test_small_gpus_take_fewer_images():
    c4, fpn = load_config("coco_R50_C4_1x"), load_config("coco_R50_FPN_1x")
    fits = [batch_that_fits(c4, 2, memory) for memory in (12, 24, 48, 96, 1000)]
    assert fits == sorted(fits)
    assert fits[0] < fits[1] < 16
    assert fits[-1] == 16
    assert batch_that_fits(fpn, 2, 24) > batch_that_fits(c4, 2, 24)
    assert batch_that_fits(load_config("shapes_coco_R50_C4"), 1, 12) == 4


def test_the_command_line_decides(capsys):
    cfg = resolve(arguments(lr=0.3, scale_to_batch=8, norm="BN", seed=4, weights="random"))
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SEED) == (0.3, 180_000, 4)
    assert (cfg.MODEL.RESNETS.NORM, cfg.MODEL.WEIGHTS) == ("BN", "")
    assert cfg.OUTPUT_DIR == "runs/detection/coco_R50_C4_1x_random_seed4"
    out = capsys.readouterr().out
    assert "batch 16 -> 8, learning rate 0.01, 180000 iterations, steps (120000, 160000)" in out
    cfg = resolve(arguments(config="coco_R50_FPN_1x_scratch", norm="SyncBN"))
    assert (cfg.MODEL.FPN.NORM, cfg.MODEL.RESNETS.NORM) == ("SyncBN", "SyncBN")
    assert cfg.MODEL.WEIGHTS == ""
    assert resolve(arguments()).MODEL.WEIGHTS == "weights/intl_r50.pth"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": -1}, "--seed -1: expected 0 or more"),
        ({"opts": ["SEED", "-1"]}, "^SEED -1: expected 0 or more"),
        ({"seed": 2**32}, "--seed 4294967296: expected 0 or more, up to 4294967295"),
        ({"lr": 0.0}, "--lr 0.0: expected a positive"),
        ({"lr": float("nan")}, "--lr nan: expected a positive"),
        ({"scale_to_batch": -3}, "a batch of -3"),
        (
            {"config": "shapes_coco_R18_C4", "scale_to_batch": 2048},
            r"^scaled from \d+ to 2048 images per batch: SOLVER\.STEPS is \[0\]; expected whole",
        ),
        ({"opts": ["MODEL.WEIGHTS", ""]}, "MODEL.WEIGHTS is empty"),
        ({"opts": ["SOLVER.AMP.ENABLED", "True"]}, "needs a GPU"),
        ({"opts": ["SOLVER.REFERENCE_WORLD_SIZE", "8"]}, "use --scale-to-batch"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a CPU cannot do")
def test_what_cannot_be_is_said(given, message):
    with pytest.raises(UserError, match=message):
        resolve(arguments(**given))


@pytest.mark.parametrize(
    ("word", "value", "key"),
    [
        ("seed", 3, "SEED"),
        ("lr", 0.5, "SOLVER.BASE_LR"),
        ("norm", "BN", "MODEL.RESNETS.NORM"),
        ("norm", "BN", "MODEL.FPN.NORM"),
        ("weights", "w.pth", "MODEL.WEIGHTS"),
        ("output_dir", "out", "OUTPUT_DIR"),
    ],
)
def test_an_option_is_its_setting_and_neither_overrides_the_other(tmp_path, word, value, key):
    """Against yacs, which reads a file and pairs by itself."""

    def value_of(cfg):
        for part in key.split("."):
            cfg = cfg[part]
        return cfg

    name = "coco_R50_FPN_1x"
    own = tmp_path / "own.yaml"
    base = [
        f'_BASE_: "{CONFIGS / name}.yaml"',
        f"OUTPUT_DIR: {tmp_path}",
        "MODEL: {WEIGHTS: a.pth}",
    ]
    own.write_text("\n".join(base))
    expected = load_config(str(own), [key, str(value)])
    pair = [key, str(value)]
    as_option = arguments(config=str(own), **{word: value})
    as_pair = arguments(config=str(own), opts=pair)
    both = arguments(config=str(own), opts=pair, **{word: value})
    for given in (as_option, as_pair, both):
        refuse_contradictions(given)
        assert value_of(resolve(given)) == value_of(expected) == value
    as_pair.eval_only = True
    assert value_of(resolve(as_pair)) == value
    in_file = tmp_path / "file.yaml"
    in_file.write_text(expected.dump())
    assert value_of(resolve(arguments(config=str(in_file)))) == value
    other = {"seed": 4, "lr": 0.25}.get(word, "SyncBN")
    flag = f"--{word.replace('_', '-')}"
    with pytest.raises(UserError, match=rf"^{flag} {other} and {key} {value} set the same"):
        refuse_contradictions(arguments(config=str(own), opts=pair, **{word: other}))


def test_random_weights_are_no_weights():
    refuse_contradictions(arguments(weights="random", opts=["MODEL.WEIGHTS", ""]))
    with pytest.raises(UserError, match=r"--weights random and MODEL\.WEIGHTS x\.pth set the same"):
        refuse_contradictions(arguments(weights="random", opts=["MODEL.WEIGHTS", "x.pth"]))


def test_fewer_gpus_than_asked_for_are_used_and_it_is_said(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("detection.settings.gpus", lambda: Gpus(("a", "b", "c")))
    memory = argparse.Namespace(total_memory=80e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: memory)
    given = arguments(num_gpus=8)
    cfg = resolve(given)
    out = capsys.readouterr().out
    assert given.num_gpus == 3
    assert "--num-gpus 8: 3 GPU(s) found, using these" in out
    assert "(to force it: --scale-to-batch 16)" in out
    assert cfg.SOLVER.IMS_PER_BATCH == 15
    with pytest.raises(UserError, match="all machines of a run need as many"):
        resolve(arguments(num_gpus=8, num_machines=2))


def test_a_run_keeps_its_batch_when_it_is_resumed(tmp_path, monkeypatch):
    before = {"id": "x", "name": "x", "seed": 0}
    solver = {"SOLVER": {"IMS_PER_BATCH": 8}}
    manifest = {"schema": 1, "stage": "detection", "status": "interrupted", "config": solver}
    write_json(tmp_path / "manifest.json", {**before, **manifest, "inputs": [], "sessions": []})
    cfg = resolve(arguments(output_dir=str(tmp_path)))
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER) == (8, 180_000)
    assert resolve(arguments(output_dir=str(tmp_path / "new"))).SOLVER.IMS_PER_BATCH == 16
    evaluated = resolve(arguments(output_dir=str(tmp_path), eval_only=True))
    assert evaluated.SOLVER.IMS_PER_BATCH == 16


def test_another_batch_of_a_continued_run_stands_and_a_scaled_one_is_kept(tmp_path):
    before = {"id": "x", "name": "x", "seed": 0, "inputs": [], "sessions": []}

    def continued(*opts: str, **given):
        cfg = resolve(arguments(output_dir=str(tmp_path), opts=list(opts), **given))
        return cfg.SOLVER

    def begun(*opts: str, **given):
        """The manifest of a run begun so, in another folder that does not exist yet."""
        words = arguments(output_dir=str(tmp_path / "new"), opts=list(opts), **given)
        config = as_dict(resolve(words))
        details = {CONFIGURED_BATCH: words.configured_batch}
        manifest = {"schema": 1, "stage": "detection", "status": "interrupted", "config": config}
        write_json(tmp_path / "manifest.json", {**before, **manifest, "details": details})

    own = ["SOLVER.IMS_PER_BATCH", "6", "SOLVER.BASE_LR", "0.04", "SOLVER.MAX_ITER", "20"]
    begun("SOLVER.IMS_PER_BATCH", "2")
    solver = continued(*own, allow_config_change=True)
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER) == (6, 0.04, 20)
    with pytest.raises(UserError, match=r"SOLVER\.IMS_PER_BATCH: 2 before, 6 now"):
        Continuation(tmp_path, "detection", {"SOLVER": {"IMS_PER_BATCH": solver.IMS_PER_BATCH}})
    begun(*own, scale_to_batch=3)  # also if the same command does not say so again
    for more in ([], ["SOLVER.WEIGHT_DECAY", "0.5"]):
        solver = continued(*own, *more)
        assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER) == (3, 0.02, 40)
    assert continued(*own, scale_to_batch=6).IMS_PER_BATCH == 6


@pytest.mark.parametrize("name", ["shapes_coco_R18_C4", "shapes_coco_R18_FPN"])
def test_frozen_detectors_train_new_layers_only(name):
    options = ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.FREEZE_AT", "5", *TINY]
    model = build_model(load_config(name, options))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    pretrained = {n for n, _ in model.named_parameters() if ".res" in n or "stem" in n}
    extra = {n for n in pretrained if n.startswith("roi_heads.res5.norm")}
    assert trained & pretrained == extra
    assert any(n.startswith("proposal_generator") for n in trained)
    assert any("box_predictor" in n for n in trained)
    assert isinstance(model.roi_heads, Res5ROIHeadsExtraNorm) == ("C4" in name)
    model.train()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == (1 if "C4" in name else 8)  # after res5; lateral and output of 4 levels
