"""``--check-expected``: what recipes name, what is refused before a run, the verdict after."""

from __future__ import annotations

import logging

import pytest
from detectron2.evaluation import verify_results

from detection.config import CONFIGS, load_config
from detection.expected import (
    check_expected,
    check_expected_end,
    check_expected_start,
    is_requested,
)
from detection.settings import resolve
from intl_transfer.errors import UserError
from intl_transfer.results.published import published_detection
from intl_transfer.runs import read_manifest
from intl_transfer.runs.records import Initialization, PretrainRun, Provenance
from tests.detection.conftest import TINY, train_net
from tests.detection.test_settings import arguments

KEY = "TEST.EXPECTED_RESULTS"


def requested(config, *opts, **given):
    words = arguments(config=config, weights="random", opts=list(opts), check_expected=True)
    for name, value in given.items():
        setattr(words, name, value)
    check_expected(resolve(words), words)


def expected(name):
    return load_config(name).TEST.EXPECTED_RESULTS


def test_figures_of_recipes_are_published_ones():
    """Each is the AP of a published row of its schedule; no file inherits another's."""
    tasks = {"bbox": ("box", "voc"), "segm": ("mask",)}
    rows = published_detection()
    found = []
    for path in CONFIGS.glob("*.yaml"):
        if "EXPECTED_RESULTS" not in path.read_text():
            assert not expected(path.name), path.name
            continue
        found.append(path.stem)
        schedule = {"coco": path.stem.split("_")[3], "voc": "24k"}[path.stem.split("_")[0]]
        start = "Scratch" if "scratch" in path.stem else "Supervised IN-1k"
        methods = {"INTL"} if path.stem.endswith("intl") else {start, "Random init"}
        for task, metric, value, tolerance in expected(path.name):
            names = [t for t in tasks[task] if (t == "voc") == path.stem.startswith("voc")]
            figures = [
                row.metrics[names[0], metric].mean
                for row in rows
                if row.method in methods
                # VOC from scratch and INTL's rows do not name the schedule.
                and (row.schedule == schedule or start == "Scratch" or "INTL" in methods)
                and (names[0], metric) in row.metrics
            ]
            assert value in figures, (path.stem, task, value, figures)
            assert 0 < tolerance < 1
        epochs = {row.epochs for row in rows if row.method in methods} if "INTL" in methods else {0}
        start = load_config(path.name).TEST.EXPECTED_START
        assert {start.EPOCHS} == epochs
        assert methods & {*start.METHODS} or {start.METHODS[0]} in ({"random"}, {"supervised"})
    assert len(found) == 7


def test_what_cannot_be_compared_is_refused_before_anything_is_built():
    requested("coco_R50_C4_1x_scratch")
    requested("coco_R50_C4_1x_scratch", "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "1")
    with pytest.raises(UserError, match=r"coco_R50_C4_1x names no TEST\.EXPECTED"):
        requested("coco_R50_C4_1x")
    with pytest.raises(UserError, match=r"as it is, .*SOLVER.MAX_ITER"):
        requested("coco_R50_C4_1x_scratch", "SOLVER.MAX_ITER", "500", "SOLVER.STEPS", "(100,)")
    with pytest.raises(UserError, match=r"as it is, .*SOLVER.BASE_LR"):
        requested("coco_R50_C4_1x_scratch", lr=0.01)
    # Figures of one's own are for settings of one's own.
    own = "[['bbox', 'AP', 1.0, 0.5]]"
    requested("coco_R50_C4_1x", KEY, own, "SOLVER.MAX_ITER", "90001", check_expected=False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("CONTROL.SHUFFLE_LABELS", "True"),
        ("CONTROL.NOISE", "1.0"),
        ("MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]"),
        ("SOLVER.IMS_PER_BATCH", "8"),
    ],
)
def test_controls_and_other_pixels_are_not_compared(key, value):
    with pytest.raises(UserError, match=f"as it is, .*{key}"):
        requested("voc_R50_C4_scratch", key, value)


def start(method, epochs=None, **stated):
    kind = method if method in ("random", "supervised") else "pretrained"
    run = PretrainRun(method=method, epochs=epochs, **stated)
    return Initialization(kind=kind, method=method, provenance=Provenance(pretrain_run=run))


@pytest.mark.parametrize(
    ("config", "right", "others"),
    [
        ("coco_R50_C4_1x_scratch", start("random"), [start("MoCo v2", 200), start("supervised")]),
        (
            *("coco_R50_C4_1x_supervised_msra", start("supervised")),
            [start("random"), start("INTL", 200), Initialization(), None],
        ),
        (
            *("coco_R50_C4_2x_intl", start("INTL", 200)),
            [
                *(start("BYOL", 200), start("INTL", 800), start("INTL"), start("INTL", "?")),
                start("INTL", 200, planned_epochs=800),  # a checkpoint of the middle
            ],
        ),
    ],
)
def test_figures_are_compared_with_those_of_their_own_weights_alone(config, right, others):
    words = arguments(config=config, check_expected=True)
    check_expected_start(load_config(config), words, right)
    for other in others:
        with pytest.raises(UserError, match=f"{config} says what to expect of weights by "):
            check_expected_start(load_config(config), words, other)
    changed = load_config(config, ["INPUT.FORMAT", "RGBA"])  # as the weights' file might say
    with pytest.raises(UserError, match=r"INPUT\.FORMAT"):
        check_expected_start(changed, words, right)


@pytest.mark.parametrize("done", [85000, None])
def test_figures_are_of_the_last_iteration(done):
    name = "coco_R50_C4_1x_scratch"
    words = arguments(config=name, weights="model.pth", check_expected=True)
    check_expected_end(load_config(name), words, 90000)
    found = "is of iteration 85000" if done else "does not state its iterations"
    with pytest.raises(UserError, match=f"after 90000 iterations; model.pth {found}"):
        check_expected_end(load_config(name), words, done)
    words.opts = [KEY, "[['bbox', 'AP', 1.0, 0.5]]"]
    check_expected_end(load_config(name), words, done)


@pytest.mark.parametrize(
    "row",
    [
        *("['box', 'AP', 1, 1]", "['bbox', 'AP', 1]", "['bbox', 'AP', 'x', 1]"),
        *("'bbox'", "['bbox', 'AP', 1, -1]"),
    ],
)
def test_another_form_is_refused(row):
    with pytest.raises(UserError, match=r"expected \[task, metric, value, tolerance\]"):
        requested("coco_R50_C4_1x", KEY, f"[{row}]")


def test_masks_that_are_not_evaluated_are_not_expected():
    with pytest.raises(UserError, match=r"MODEL\.MASK_ON is False"):
        requested("voc_R50_C4", KEY, "[['segm', 'AP', 1, 1]]")


def test_detectron2_decides_by_the_tolerance(caplog):
    cfg = load_config("coco_R50_C4_1x_scratch")
    near = {"bbox": {"AP": 26.1}, "segm": {"AP": 29.6}}
    with caplog.at_level(logging.INFO):
        assert verify_results(cfg, near)
    near["bbox"]["AP"] = 25.9
    with pytest.raises(SystemExit, match="1"):
        verify_results(cfg, near)
    assert not is_requested(arguments(check_expected=False))


@pytest.mark.slow
def test_a_run_ends_with_status_1_if_its_figures_are_others(data, tmp_path):
    """One iteration; its results are written all the same."""
    words = [
        *("--config", "shapes_voc_R18_C4", "--weights", "random", "--output-dir", tmp_path / "run"),
        *(*TINY, "SOLVER.MAX_ITER", "1", KEY, "[['bbox', 'AP', 150.0, 1.0]]"),
    ]
    done = train_net(data, *words, check=False)
    assert done.returncode == 1
    assert "Result verification failed" in done.stdout + done.stderr
    assert read_manifest(tmp_path / "run").status == "finished"
