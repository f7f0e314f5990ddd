from __future__ import annotations

import hashlib
import math
import re
import shutil
import statistics

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from intl_transfer.errors import UserError
from intl_transfer.results import TableOptions, build_tables, collect, render
from intl_transfer.results.layout import head
from intl_transfer.results.published import (
    published_detection,
    published_linear,
    published_small,
    read_published,
)
from intl_transfer.results.rows import _short
from intl_transfer.results.statistics import compare, holm, summarize
from tests.results.synthetic import (
    detection_run,
    figures,
    fixed,
    pretraining_run,
    recipe_config,
    start_of,
)

MADE = {"loss.iterations": 4, "optim.epochs": 20}
PLAN = {"name": "1x", "iterations": 90000, "batch_size": 16, "base_lr": 0.02}


def tables_of(root, published=False, **options):
    return build_tables(collect([root]), published, TableOptions(**options))


def test_one_row_for_all_seeds_of_an_initialization(tmp_path):
    pretraining_run(tmp_path)
    for seed, ap in enumerate((38.0, 38.4, 38.8)):
        detection_run(tmp_path, f"intl{seed}", ap, seed=seed)
    detection_run(tmp_path, "random0", 26.0, method="random init")
    (table,) = tables_of(tmp_path)
    assert [row.method for row in table.rows] == ["INTL", "random init"]
    intl, random = table.rows
    assert intl.n == 3
    assert intl.metrics["box", "AP"].mean == pytest.approx(38.4)
    assert intl.metrics["box", "AP"].std == pytest.approx(0.4)
    assert intl.notes == (
        "fine-tunings of one pretraining: the spread over pretrainings is not included",
    )
    assert intl.runs[0].parent == tmp_path / "pretrain"
    assert random.metrics["box", "AP"].std is None


def test_what_differs_is_never_mixed(tmp_path):
    detection_run(tmp_path, "a")
    twice = {**PLAN, "name": "2x", "iterations": 180000}
    detection_run(tmp_path, "b", schedule=twice, iteration=180000)
    detection_run(tmp_path, "c", schedule={**PLAN, "base_lr": 0.04})
    small = {"meta": "Mask R-CNN", "backbone": "resnet18", "head": "C4"}
    detection_run(tmp_path, "d", architecture=small)
    detection_run(tmp_path, "e", dataset={"name": "other_val", "layout": "coco"})
    detection_run(tmp_path, "f", schedule={**PLAN, "batch_size": 8})
    detection_run(tmp_path, "g", schedule={**PLAN, "scaled_from": 16})
    for layout in ("paper", "dataset"):
        tables = tables_of(tmp_path, layout=layout)
        assert len(tables) == 7
        assert all(len(table.rows) == 1 and table.rows[0].n == 1 for table in tables)
    assert any("scaled_from 16" in table.title for table in tables)


def test_settings_that_the_schedule_does_not_name_make_blocks_too(tmp_path):
    def config(freeze, seed, **more):
        backbone = {"BACKBONE": {"FREEZE_AT": freeze}, "WEIGHTS": f"w{seed}.pth"}
        return {"MODEL": backbone, "SEED": seed, "OUTPUT_DIR": f"out{seed}", **more}

    for seed in (0, 1):
        detection_run(tmp_path, f"a{seed}", seed=seed, config=config(0, seed))
        detection_run(tmp_path, f"b{seed}", seed=seed, config=config(5, seed))
    # Detectron2's main branch knows a setting more, at the value that v0.6 implies.
    detection_run(tmp_path, "a2", seed=2, config=config(0, 2, FLOAT32_PRECISION=""))
    tables = tables_of(tmp_path)
    assert sorted(table.rows[0].n for table in tables) == [2, 3]
    assert "MODEL.BACKBONE.FREEZE_AT 0" in tables[0].title + tables[1].title
    assert "MODEL.BACKBONE.FREEZE_AT 5" in tables[0].title + tables[1].title
    # One that nobody has said to be harmless decides, also where others lack it.
    detection_run(tmp_path, "a3", seed=3, config=config(0, 3, NEW={"X": 1}))
    titles = {table.title: table.rows[0].n for table in tables_of(tmp_path)}
    assert sorted(titles.values()) == [1, 2, 3]
    assert all("NEW.X 1" in t if n == 1 else "NEW.X not stated" in t for t, n in titles.items())


def test_a_row_across_data_sets(standard):
    tables = build_tables(collect([standard]), options=TableOptions(kinds=("detection",)))
    (table,) = tables
    assert table.tasks == ("box", "mask", "voc")
    assert [table.heading(task) for task in table.tasks] == ["COCO det.", "COCO seg.", "VOC"]
    intl = next(row for row in table.rows if row.method == "INTL")
    assert (intl.metrics["box", "AP"].n, intl.metrics["voc", "AP"].n) == (5, 3)
    assert table.count(intl) == "5, 3"
    assert len(intl.runs) == 8
    barlow = next(row for row in table.rows if row.method == "Barlow Twins")
    assert ("voc", "AP") not in barlow.metrics
    assert "schedule 1x (90000" in table.title
    assert "schedule 24k (24000" in table.title
    separate = build_tables(collect([standard]), options=TableOptions(layout="dataset"))
    assert [t.dataset for t in separate if t.family == "detection"] == [
        "coco_2017_val",
        "voc_2007_test",
    ]


def test_only_what_belongs_together_is_set_side_by_side(tmp_path):
    voc24k = {"name": "24k", "iterations": 24000, "batch_size": 16, "base_lr": 0.02}
    detection_run(tmp_path, "coco")
    detection_run(tmp_path, "voc", layout="voc")
    detection_run(tmp_path, "voc_lr", layout="voc", schedule={**voc24k, "base_lr": 0.04})
    tables = tables_of(tmp_path)
    assert [(t.dataset, t.tasks[-1]) for t in tables] == [
        ("coco_2017_val + voc_2007_test", "voc"),
        ("voc_2007_test", "voc"),
    ]
    assert "lr 0.04" in tables[1].title
    detection_run(tmp_path, "other", dataset={"name": "shapes_coco_val", "layout": "coco"})
    assert len(tables_of(tmp_path)) == 3  # another family: VOC does not join it


def test_the_last_evaluation_alone_is_read(tmp_path):
    run = detection_run(tmp_path, "run", 38.0)
    run.log(iteration=45000, evaluation={"box": {"AP": 60.0}})
    (table,) = tables_of(tmp_path)
    assert table.rows[0].metrics["box", "AP"].mean == 38.0


def sweep(root):
    for rate, values in {0.01: (36.0, 36.2), 0.02: (38.0, 38.4), 0.04: (37.9,)}.items():
        for seed, ap in enumerate(values):
            plan = {**PLAN, "base_lr": rate}
            detection_run(root, f"intl_{rate}_{seed}", ap, seed=seed, schedule=plan)
    detection_run(root, "random", 26.0, method="random init", schedule={**PLAN, "base_lr": 0.04})


def test_learning_rates_are_separate_unless_asked(tmp_path):
    sweep(tmp_path)
    tables = tables_of(tmp_path)
    assert [len(table.rows) for table in tables] == [1, 1, 2]


def test_the_best_learning_rate_and_how_it_was_chosen(tmp_path):
    sweep(tmp_path)
    (table,) = tables_of(tmp_path, lr_selection="best")
    assert "lr chosen for each row" in table.title
    intl, random = table.rows
    assert intl.n == 2
    assert intl.metrics["box", "AP"].mean == pytest.approx(38.2)
    assert intl.notes[-1] == (
        "lr 0.02 (n = 2), chosen out of 3 by mean box AP on coco_2017_val, the reported "
        "data: 0.01 (n = 2), 0.02 (n = 2), 0.04 (n = 1)"
    )
    assert random.notes == ("lr 0.04, the only one tried",)


def test_published_rows_stand_with_their_own_schedule_only(tmp_path):
    detection_run(tmp_path, "run")
    tables = tables_of(tmp_path, True, kinds=("detection",))
    ours = next(table for table in tables if table.dataset)
    assert {row.method for row in ours.rows if row.published} >= {"MoCo v2", "SimSiam, optimal"}
    assert all("SimSiam" in row.notes[0] for row in ours.rows if row.published)
    assert ours.rows[0].published is False
    moco = [
        r for t in tables for r in t.rows if r.method == "MoCo v2" and ("box", "AP") in r.metrics
    ]
    assert {r.metrics["box", "AP"].mean for r in moco} == {39.2, 41.0}
    assert sum(r.method == "MoCo v2" for r in ours.rows) == 1
    voc = next(t for t in tables if "24k" in t.title)
    row = next(r for r in voc.rows if r.method == "MoCo v2")
    assert (row.metrics["voc", "AP"].mean, row.metrics["voc", "AP"].std) == (57.0, 0.2)
    assert row.n == 5
    assert not any("shapes" in table.title for table in tables)


@pytest.mark.parametrize("layout", ["paper", "dataset"])
@pytest.mark.parametrize("sets", ["none", "coco", "both"])
def test_every_published_figure_is_shown_exactly_once(tmp_path, layout, sets):
    if sets != "none":
        detection_run(tmp_path, "coco")
    if sets == "both":
        detection_run(tmp_path, "voc", layout="voc")
    shown = [
        (row.method, row.detail, row.notes, column, summary.mean)
        for table in tables_of(tmp_path, True, layout=layout, kinds=("detection",))
        for row in table.rows
        if row.published
        for column, summary in row.metrics.items()
    ]
    assert len(shown) == len(set(shown)) == sum(len(e.metrics) for e in published_detection())


def test_published_rows_keep_away_from_what_is_not_the_standard(tmp_path):
    detection_run(tmp_path, "lr", schedule={**PLAN, "base_lr": 0.04})
    detection_run(tmp_path, "frozen", config={"MODEL": {"BACKBONE": {"FREEZE_AT": 5}}})
    detection_run(tmp_path, "extra", schedule={**PLAN, "scaled_from": 8})
    small = {"meta": "Mask R-CNN", "backbone": "resnet18", "head": "C4"}
    detection_run(tmp_path, "small", architecture=small)
    for table in tables_of(tmp_path, True):
        assert len({row.published for row in table.rows}) == 1, table.title


def test_a_frozen_variant_beside_it_does_not_keep_published_rows_from_the_standard(tmp_path):
    for name, stages in (("standard", 0), ("frozen", 5)):
        detection_run(tmp_path, name, config={"MODEL": {"BACKBONE": {"FREEZE_AT": stages}}})
    tables = [table for table in tables_of(tmp_path, True) if table.parts]
    assert {
        table.parts[0].further: any(row.published for row in table.rows) for table in tables
    } == {"MODEL.BACKBONE.FREEZE_AT 0": True, "MODEL.BACKBONE.FREEZE_AT 5": False}
    detection_run(tmp_path, "voc", layout="voc", config={"MODEL": {"BACKBONE": {"FREEZE_AT": 5}}})
    joined = {table.tasks: table.title for table in tables_of(tmp_path)}
    assert joined["box", "mask", "voc"].count("FREEZE_AT 5") == 2
    assert "FREEZE_AT 0" in joined["box", "mask"]
    # Alone, it is named too.
    frozen = tables_of(tmp_path / "frozen")
    assert "MODEL.BACKBONE.FREEZE_AT 5" in frozen[0].title


def test_the_published_file_is_sound():
    content = read_published()
    for entry in content["detection"]:
        assert entry["source"]
        assert entry["schedule"] in ("1x", "2x", "24k", "unknown")
        for task in ("box", "mask", "voc", "box_std", "mask_std", "voc_std"):
            assert len(entry.get(task, [1, 2, 3])) == 3
    assert len(published_detection()) == len(content["detection"]) == 20
    # In the file AP50 comes first: it is the largest of the three.
    for row in published_detection():
        for task in ("box", "mask", "voc"):
            if (task, "AP50") in row.metrics:
                assert row.metrics[task, "AP50"].mean > row.metrics[task, "AP75"].mean
    assert len(published_linear()) == len(content["imagenet_linear_top1"]) == 9
    small = published_small()
    assert {row.method for row in small if not row.epochs} == {
        *("INTL", "CW-RGP", "CW-RGP, four views")
    }
    # solo-learn's figures on CIFAR are of online heads, those on ImageNet-100 are not.
    for row in small:
        datasets = {dataset for dataset, _ in row.metrics}
        if row.epochs == 1000:
            assert row.evaluation == "online linear head"
            assert datasets <= {"cifar10", "cifar100"}
        if row.epochs == 400:
            assert (row.evaluation, datasets) == ("offline linear evaluation", {"imagenet100"})
    figures = sum(v is not None for e in content["small_datasets"] for v in e["values"])
    assert sum(len(row.metrics) for row in small) == figures


def pairs(root, baseline=(38.0, 38.4, 38.8), other=(39.1, 39.4, 39.9), seeds=(0, 1, 2)):
    for seed, ap in enumerate(baseline):
        detection_run(root, f"base{seed}", ap, method="MoCo v2", seed=seed)
    for seed, ap in zip(seeds, other, strict=True):
        detection_run(root, f"intl{seed}", ap, seed=seed)


def test_the_baseline_is_tested_over_seeds_with_holms_correction(tmp_path):
    pairs(tmp_path)
    for columns in (("box",), ("box.AP50",), ()):  # what is shown changes no claim
        (table,) = tables_of(tmp_path, baseline="MoCo v2", columns=columns)
        assert table.rows[0].marks["box", "AP"].comparison.family == 1
    intl, moco = table.rows
    assert moco.baseline
    assert not intl.baseline
    found = intl.marks["box", "AP"].comparison
    expected = stats.ttest_rel([39.1, 39.4, 39.9], [38.0, 38.4, 38.8]).pvalue
    assert found.test == "paired"
    assert found.p == pytest.approx(expected)
    interval = stats.ttest_rel([39.1, 39.4, 39.9], [38.0, 38.4, 38.8]).confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    # One row is compared, in AP alone; AP50 and AP75 are not tested.
    assert found.p_holm == pytest.approx(expected)
    assert found.significant()
    assert {c for c, mark in intl.marks.items() if mark.comparison} == {
        ("box", "AP"),
        ("mask", "AP"),
    }
    assert "paired over seeds, Holm over the 1 row of each of" in table.legend[-2]
    limit = (interval.high - interval.low) / 2
    assert f"n = 3: differences of COCO det. AP below {limit:.1f} are not" in table.legend[-1]
    assert "39.5 ± 0.4 ↑" in render([table], "md")
    assert "39.5 +1.1 [" in render([table], "md", spread="difference")


def test_no_mark_contradicts_what_is_said_to_be_resolved(tmp_path):
    """Seeds spread by points, which cancel in the differences that are tested."""
    for seed, base in enumerate((30.0, 33.0, 28.0, 35.0)):
        detection_run(tmp_path, f"base{seed}", base, method="MoCo v2", seed=seed)
        near = base + 0.3 + 0.02 * (seed % 2)
        detection_run(tmp_path, f"near{seed}", near, seed=seed)
        detection_run(tmp_path, f"far{seed}", base + seed, method="BYOL", seed=seed)
    (table,) = tables_of(tmp_path, baseline="MoCo v2", columns=("box.AP",))
    tests = {row.method: row.marks["box", "AP"].comparison for row in table.rows if row.marks}
    assert tests["INTL"].significant()
    assert tests["INTL"].difference > tests["INTL"].resolution
    halves = [stats.t.ppf(0.975, 3) * np.std(x, ddof=1) / 2 for x in ([0, 0.02] * 2, range(4))]
    assert [tests[name].resolution for name in ("INTL", "BYOL")] == pytest.approx(halves)
    expected = f"below {halves[0]:.2f} to {halves[1]:.2f}, depending on the row, are not resolved"
    assert expected in table.legend[-1]


def test_a_selected_rate_pays_for_the_selection(tmp_path):
    """Its p value counts the pairs of rates: on both sides, of which the best are compared."""
    rng = np.random.default_rng(0)
    for seed in range(4):
        for rate in (0.01, 0.02, 0.04):
            name, plan = f"{rate}{seed}", {**PLAN, "base_lr": rate}
            detection_run(tmp_path, f"a{name}", rng.normal(39, 0.3), seed=seed, schedule=plan)
            if rate < 0.04:
                ap = rng.normal(38, 0.3)
                detection_run(tmp_path, f"b{name}", ap, method="MoCo v2", seed=seed, schedule=plan)
        detection_run(tmp_path, f"c{seed}", rng.normal(37, 0.3), method="BYOL", seed=seed)
    options = {"baseline": "MoCo v2", "columns": ("box.AP",)}
    (table,) = tables_of(tmp_path, lr_selection="best", **options)
    tests = {row.method: row.marks["box", "AP"].comparison for row in table.rows if row.marks}
    assert {name: test.tried for name, test in tests.items()} == {"INTL": 6, "BYOL": 2}
    p = [min(1, tests[name].p * tests[name].tried) for name in ("INTL", "BYOL")]
    expected = multipletests(p, method="holm")[1]
    assert [tests[name].p_holm for name in ("INTL", "BYOL")] == pytest.approx(expected)
    assert any(
        "p times the pairs of learning rates tried (2-6), Holm" in one for one in table.legend
    )
    for one in tables_of(tmp_path, **options):
        assert not any("learning rates tried" in text for text in one.legend)


def test_other_seeds_are_tested_by_welch(tmp_path):
    pairs(tmp_path, seeds=(5, 6, 7))
    (table,) = tables_of(tmp_path, baseline="MoCo v2", columns=("box.AP",))
    found = table.rows[0].marks["box", "AP"].comparison
    expected = stats.ttest_ind([39.1, 39.4, 39.9], [38.0, 38.4, 38.8], equal_var=False)
    assert (found.test, found.p) == ("welch", pytest.approx(expected.pvalue))
    interval = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    (table,) = tables_of(tmp_path, baseline="MoCo v2", columns=("box.AP",), test="paired")
    assert table.rows[0].marks["box", "AP"].comparison is None
    assert "No row could be tested" in table.legend[-1]


def test_the_best_is_marked_and_nothing_is_said_of_the_others(tmp_path):
    for seed in range(4):
        wave = (0.1, -0.2, 0.2, -0.1)[seed]
        detection_run(tmp_path, f"a{seed}", 39.0 + wave, seed=seed)
        detection_run(tmp_path, f"b{seed}", 38.95 - wave, method="MoCo v2", seed=seed)
        detection_run(tmp_path, f"c{seed}", 30.0 + wave / 2, method="SimCLR", seed=seed)
    detection_run(tmp_path, "d", 38.9, method="BYOL")
    (table,) = tables_of(tmp_path)
    marks = {row.method: row.marks.get(("box", "AP")) for row in table.rows}
    assert marks["INTL"].best
    assert [marks[name] for name in ("MoCo v2", "SimCLR", "BYOL")] == [None] * 3
    detection_run(tmp_path, "lucky", 39.9, method="VICReg")
    (table,) = tables_of(tmp_path)
    assert "†: Highest by a single run, beside means of several: VICReg." in table.legend
    assert "**39.9†**" in render([table], "md")
    assert r"\bfseries 39.9 & {\scriptsize\,\textsuperscript{\dag}}" in render([table], "latex")
    assert "†" not in render(tables_of(tmp_path, rows=("method!=VICReg",)), "md")
    detection_run(tmp_path / "one", "run")
    assert tables_of(tmp_path / "one")[0].rows[0].marks == {}  # nothing to be better than


def test_equal_means_are_equally_good(tmp_path):
    for method, box in (("a", 30.0), ("b", 30.0), ("c", 20.0)):
        metrics = {"box": {"AP": box, "AP50": 50.0}}
        detection_run(tmp_path, method, method=method, metrics=metrics)
    (table,) = tables_of(tmp_path)
    assert [("box", "AP") in row.marks for row in table.rows] == [True, True, False]
    # Where all are equal, none is best.
    assert not any(("box", "AP50") in row.marks for row in table.rows)


def test_a_baseline_that_is_not_there(tmp_path):
    pairs(tmp_path)
    with pytest.raises(UserError, match=r"no measured row 'MoCo2'. Did you mean 'MoCo v2'"):
        tables_of(tmp_path, baseline="MoCo2")
    detection_run(tmp_path, "x", sha="b" * 64, method="INTL", initialization={
        "kind": "pretrained", "method": "INTL", "weights_sha256": "f" * 64, "provenance": None,
    })  # fmt: skip
    with pytest.raises(UserError, match=r"'INTL' fits 2 rows .*INTL \(weights ffffffff\)"):
        tables_of(tmp_path, baseline="INTL")
    (table,) = tables_of(tmp_path, baseline="INTL (weights*")
    assert [row.detail for row in table.rows if row.baseline] == ["weights ffffffff"]


def test_the_baseline_is_one_experiment_in_the_table_that_is_shown(tmp_path):
    """Named as there, in all of its columns; rows that were tested apart are tested alike."""
    runs = [("coco", 4, 38.0), ("coco", 8, 38.5), ("voc", 4, 57.0)]
    for layout, iterations, ap in runs:
        settings = {"loss.method": "intl", "loss.iterations": iterations}
        start = start_of("INTL", f"{iterations}" * 64, id=f"p{iterations}", settings=settings)
        for seed in range(3):
            name, value = f"{layout}{iterations}{seed}", ap + 0.1 * seed
            detection_run(tmp_path, name, value, seed=seed, layout=layout, initialization=start)
            if iterations == 4:
                other = value + 1 + 0.2 * (seed == 1)
                detection_run(
                    tmp_path, f"moco{name}", other, seed=seed, layout=layout, method="MoCo v2"
                )
    (table,) = tables_of(tmp_path, baseline="INTL, iterations 4")
    (row,) = [row for row in table.rows if row.baseline]
    assert (row.name, len(row.runs)) == ("INTL, iterations 4", 6)
    (moco,) = [row for row in table.rows if row.method == "MoCo v2"]
    apart = tables_of(tmp_path, baseline="INTL, iterations 4", layout="dataset")
    # In the table of VOC alone it is called INTL.
    assert [row.name for one in apart for row in one.rows if row.baseline] == [row.name, "INTL"]
    marks = [row.marks for one in apart for row in one.rows if row.method == "MoCo v2"]
    for column in (("box", "AP"), ("mask", "AP"), ("voc", "AP")):
        (expected,) = [found[column].comparison for found in marks if column in found]
        assert moco.marks[column].comparison == expected
    with pytest.raises(UserError, match=r"'INTL' fits 2 rows of .*INTL, iterations 8"):
        tables_of(tmp_path, baseline="INTL")
    # One experiment on each data set: no row is both.
    for seed in range(3):
        shutil.rmtree(tmp_path / f"coco4{seed}")
    with pytest.raises(UserError, match=r"'INTL' fits 2 rows of the table 'coco_2017_val.*voc_"):
        tables_of(tmp_path, baseline="INTL")
    (table,) = tables_of(tmp_path, baseline="INTL", rows=("schedule=1x",))
    assert [row.name for row in table.rows if row.baseline] == ["INTL"]


def test_fine_tunings_of_one_pretraining_are_not_independent(tmp_path):
    for pretraining in range(2):
        for seed in range(2):
            start = start_of("INTL", f"{pretraining}" * 64, seed=pretraining, settings=MADE)
            ap = 38 + seed + 4 * pretraining
            detection_run(tmp_path, f"p{pretraining}s{seed}", ap, seed=seed, initialization=start)
    (table,) = tables_of(tmp_path)
    (row,) = table.rows
    summary = row.metrics["box", "AP"]
    assert summary.values == (38.5, 42.5)  # means of each pretraining's fine-tunings
    assert summary.mean == 40.5
    assert summary.std == pytest.approx(statistics.stdev([38.5, 42.5]))
    assert summary.seeds == (0, 1)
    assert table.count(row) == "2 pretrainings × 2"
    assert "2 pretrainings × 2" in render([table], "md")
    assert r"2 pretrainings $\times$ 2" in render([table], "latex")
    # A third pretraining was fine-tuned once; one figure of it is missing.
    start = start_of("INTL", "2" * 64, seed=2, settings=MADE)
    metrics = {"box": {"AP": 50.0, "AP50": 60.0}}
    detection_run(tmp_path, "p2s0", initialization=start, metrics=metrics)
    (table,) = tables_of(tmp_path)
    (row,) = table.rows
    assert row.metrics["box", "AP"].values == (38.5, 42.5, 50.0)
    assert table.count(row) == "3 pretrainings × 1-2"
    assert "(n = 2 × 2)" in render([table], "md")


def test_pretrainings_are_what_is_tested(tmp_path):
    """Ten fine-tunings of two pretrainings are two observations, not ten."""
    values = {"INTL": (38.0, 40.0), "MoCo v2": (36.0, 37.0)}
    for method, means in values.items():
        for pretraining, mean in enumerate(means):
            sha = hashlib.sha256(f"{method}{pretraining}".encode()).hexdigest()
            start = start_of(method, sha, seed=pretraining, settings={**MADE, "data.name": method})
            for seed in range(5):
                detection_run(
                    tmp_path, f"{method}{pretraining}{seed}", mean + seed / 100 - 0.02,
                    method=method, seed=seed, initialization=start,
                )  # fmt: skip
    (table,) = tables_of(tmp_path, baseline="MoCo v2", columns=("box.AP",))
    found = table.rows[0].marks["box", "AP"].comparison
    expected = stats.ttest_rel(values["INTL"], values["MoCo v2"]).pvalue
    assert (found.test, found.p) == ("paired", pytest.approx(expected))


def test_columns_in_the_order_asked_for(standard):
    (table,) = build_tables(
        collect([standard]), options=TableOptions(columns=("voc.AP50", "box.APs", "mask"))
    )
    assert table.columns() == [
        *(("voc", "AP50"), ("box", "APs")),
        *(("mask", metric) for metric in ("AP50", "AP", "AP75")),
    ]
    assert "COCO det. APs" in render([table], "md")
    (table,) = build_tables(collect([standard]), options=TableOptions(columns=("AP",)))
    assert table.columns() == [("box", "AP"), ("mask", "AP"), ("voc", "AP")]
    with pytest.raises(UserError, match=r"no column 'box.AP5'. Did you mean .*'box.AP50'"):
        build_tables(collect([standard]), options=TableOptions(columns=("box.AP5",)))


def test_rows_by_conditions(standard):
    def methods(*rows):
        options = TableOptions(kinds=("detection",), rows=rows)
        tables = build_tables(collect([standard]), True, options)
        return [row.method for table in tables for row in table.rows]

    assert set(methods("source=measured")) == {"INTL", "Barlow Twins", "random init"}
    assert methods("source=external") == ["moco_v2"]
    assert set(methods("method=MoCo*", "source=published")) == {"MoCo v1", "MoCo v2"}
    assert methods("source!=published,external", "method!=*init", "method=*I*") == ["INTL"]
    with pytest.raises(UserError, match=r"Values of method here: BYOL, Barlow Twins, .*moco_v2"):
        methods("method=nothing")
    with pytest.raises(UserError, match=r"no key 'methd'. Did you mean 'method'"):
        methods("methd=x")
    with pytest.raises(UserError, match="expected KEY=PATTERN"):
        methods("INTL")


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("method={},b?", {0, 1}),
        ("method=b?,{}", {0, 1}),
        ("method!={}", {1, 2}),
        ("method!=b?, {}", {2}),
        ("method!=bz", None),
        ("method!=b?,c*", None),
        ("schedule!=2x", None),
        ("source!=external", {0, 1, 2}),
    ],
)
@pytest.mark.parametrize("name", ["INTL, iterations 8", "SimCLR [ours]", "a*"])
def test_names_are_names_before_they_are_patterns(tmp_path, name, condition, expected):
    """Whatever they contain; what excludes nothing is refused, with what is near."""
    names = [name, "bx", f"{name}z"]
    for index, method in enumerate(names):
        start = start_of(method, f"{index}" * 64)
        detection_run(tmp_path, f"{index}", 30.0 + index, initialization=start)
    condition = condition.format(name)
    if expected is None:
        with pytest.raises(UserError, match=r"so nothing is excluded by it\..* here: "):
            tables_of(tmp_path, rows=(condition,))
        return
    (table,) = tables_of(tmp_path, rows=(condition,))
    assert {row.method for row in table.rows} == {names[index] for index in expected}


def test_sorting(tmp_path):
    for method, ap in (("b", 30.0), ("C", 40.0), ("a", 20.0)):
        detection_run(tmp_path, method, ap, method=method)
    masks_only = {"mask": figures(25.0)}
    detection_run(tmp_path, "d", method="d", metrics=masks_only)

    def order(**options):
        return "".join(row.method for row in tables_of(tmp_path, **options)[0].rows)

    assert order() == "Cbad"
    assert order(reverse=True) == "dabC"
    assert order(sort="method") == "abCd"
    assert order(sort="method", reverse=True) == "dCba"
    assert order(sort="mask.AP") == "Cbda"
    assert order(sort="box.AP", reverse=True) == "abCd"  # without the figure: always last
    with pytest.raises(UserError, match=r"no column 'mehtod'. Did you mean 'method'"):
        order(sort="mehtod")


def test_published_rows_stay_behind_measured_ones(tmp_path):
    fixed(detection_run(tmp_path, "run", 10.0), "x")
    for options in ({}, {"sort": "box.AP"}, {"sort": "method"}, {"reverse": True}):
        for table in tables_of(tmp_path, True, **options):
            flags = [row.published for row in table.rows]
            assert flags == sorted(flags)


def norms_and_notes(root):
    """Published rows beside measured ones, by what is said of their batch norm."""
    found = {}
    for table in tables_of(root, True):
        if table.parts:
            for row in table.rows:
                if row.published:
                    output = [note for note in row.notes if "batch norm" in note or "files" in note]
                    found[row.method, row.detail] = "; ".join(output)
    return found


@pytest.mark.parametrize("norm", ["naiveSyncBN", "SyncBN"])
def test_published_rows_say_with_which_norm_they_were_fine_tuned(tmp_path, norm):
    """MoCo's fine-tuning files have naiveSyncBN; others' figures do not say."""
    detection_run(tmp_path, "a", layout="voc", config={"MODEL": {"RESNETS": {"NORM": norm}}})
    found = norms_and_notes(tmp_path)
    moco = found["MoCo v2", "200 ep"]
    if norm == "naiveSyncBN":
        assert moco == ""
    else:
        expected = "its authors' fine-tuning files have naiveSyncBN, the measured rows have SyncBN"
        assert moco == expected
    detection_run(tmp_path, "coco", config={"MODEL": {"RESNETS": {"NORM": norm}}})
    output = norms_and_notes(tmp_path)["SimSiam, base", "200 ep"]
    assert output == (
        f"the batch norm of its fine-tuning is not stated; the measured rows have {norm}"
    )


def test_intls_published_rows_say_it_where_they_stand_alone(tmp_path):
    detection_run(tmp_path, "a")
    rows = [row for table in tables_of(tmp_path, True) for row in table.rows if row.published]
    notes = [row.notes for row in rows if row.method == "INTL" and ("box", "AP") in row.metrics]
    assert len(notes) == 1
    assert "its authors' fine-tuning files have SyncBN" in notes[0]


def test_both_norms_may_stand_beside_published_rows(tmp_path):
    """In tables of their own: each is what a published file has."""
    for name in ("naiveSyncBN", "SyncBN", "BN"):
        detection_run(tmp_path, name, config={"MODEL": {"RESNETS": {"NORM": name}}})
    taken = {
        table.parts[0].further: any(row.published for row in table.rows)
        for table in tables_of(tmp_path, True)
        if table.parts
    }
    assert taken == {
        "MODEL.RESNETS.NORM BN": False,
        "MODEL.RESNETS.NORM SyncBN": True,
        "MODEL.RESNETS.NORM naiveSyncBN": True,
    }


@pytest.mark.parametrize(
    "config",
    [
        {"MODEL": {"RESNETS": {"NORM": "BN"}}},
        {"TEST": {"AUG": {"ENABLED": True}}},
        {"MODEL": {"BACKBONE": {"FREEZE_AT": 2}}},
    ],
)
def test_another_protocol_alone_takes_no_published_rows(tmp_path, config):
    detection_run(tmp_path, "a", config=config)
    for table in tables_of(tmp_path, True):
        assert len({row.published for row in table.rows}) == 1, table.title


VOC07 = ["voc_2007_trainval"]


@pytest.mark.parametrize(
    ("recipe", "changes", "named"),
    [
        ("coco_R50_C4_1x", {}, ""),
        ("coco_R50_C4_1x", {"MODEL__RESNETS__NORM": "SyncBN"}, ""),
        ("coco_R50_C4_1x", {"SOLVER__WEIGHT_DECAY_BIAS": 0.0001}, ""),  # what None stands for
        ("coco_R50_C4_1x", {"TEST__PRECISE_BN__ENABLED": False}, "without TEST.PRECISE_BN.ENABLED"),
        ("coco_R50_C4_1x", {"MODEL__ROI_HEADS__NAME": "Res5ROIHeads"}, "Res5ROIHeads"),
        ("coco_R50_C4_1x", {"SOLVER__GAMMA": 0.5}, "SOLVER.GAMMA 0.5"),
        ("coco_R50_C4_1x", {"SOLVER__WEIGHT_DECAY": 0.01}, "SOLVER.WEIGHT_DECAY 0.01"),
        ("coco_R50_C4_1x", {"SOLVER__LR_SCHEDULER_NAME": "WarmupCosineLR"}, "WarmupCosineLR"),
        ("coco_R50_C4_1x", {"DATASETS__TRAIN": ["coco_2017_val"]}, "coco_2017_val"),
        ("coco_R50_C4_1x", {"TEST__AUG__ENABLED": True}, "with TEST.AUG.ENABLED"),
        ("coco_R50_C4_1x", {"MODEL__NEW": 1}, "MODEL.NEW 1"),  # not known, so it decides
        ("voc_R50_C4", {"DATASETS__TRAIN": ["voc_2012_trainval", *VOC07]}, ""),
        ("voc_R50_C4", {"DATASETS__TRAIN": VOC07}, "DATASETS.TRAIN ['voc_2007_trainval']"),
        ("voc_R50_C4", {"INPUT__MIN_SIZE_TRAIN": [400]}, "INPUT.MIN_SIZE_TRAIN [400]"),
    ],
)
def test_published_rows_stand_beside_their_own_protocol_alone(tmp_path, recipe, changes, named):
    """What contradicts it is named by the title, although no other run differs."""
    layout = recipe.split("_")[0]
    detection_run(tmp_path, "a", layout=layout, config=recipe_config(recipe, **changes))
    (table,) = (table for table in tables_of(tmp_path, True) if table.parts)
    assert named == "" or named in table.title
    assert any(row.published for row in table.rows) == (not named), table.title


def test_published_rows_stand_beside_all_test_images_alone(tmp_path):
    """An evaluator of one's own, which has no configuration, states images and training sets."""
    sets = {"name": "voc_2007_test", "train": ["voc_2007_trainval", "voc_2012_trainval"]}
    plan = {"name": "24k", "iterations": 24000, "batch_size": 16, "base_lr": 0.02}
    for name, facts in (("all", {}), ("few", {"images": 100}), ("one", {"train": VOC07})):
        detection_run(
            tmp_path / name, name, layout="voc", dataset={**sets, "images": 4952, **facts},
            schedule=plan,
        )  # fmt: skip
        (table,) = (table for table in tables_of(tmp_path / name, True) if table.parts)
        assert any(row.published for row in table.rows) == (name == "all")
        assert (table.parts[0].further == "") == (name == "all")


def test_a_retinanet_is_a_column_of_its_own(tmp_path):
    """It joins no table of R-CNNs, takes no row published for them, and its heading names it."""
    detection_run(tmp_path, "mask")
    detection_run(tmp_path, "voc", layout="voc")
    built = {"meta": "RetinaNet", "backbone": "resnet50", "head": "C4"}  # as like as can be
    detection_run(tmp_path, "retina", architecture=built, metrics={"box": figures(37.0)})
    tables = {table.tasks: table for table in tables_of(tmp_path, True) if table.parts}
    assert set(tables) == {("box", "mask", "voc"), ("box",)}
    alone = tables["box",]
    assert alone.heading("box") == "COCO RetinaNet det."
    assert not any(row.published for row in alone.rows)


def test_few_labels_are_a_column_of_their_own(tmp_path):
    """Told by share and list; no published row of all labels stands beside them."""
    used = {"fraction": 0.1, "seed": 0, "images": 11829, "available": 118287, "digest": "ab" * 32}
    for name, labels in (("full", {}), ("few", {"labels": used})):
        dataset = {"name": "coco_2017_val", "train": ["coco_2017_train"], "layout": "coco"}
        detection_run(tmp_path, name, dataset={**dataset, **labels})
    other = {**used, "digest": "cd" * 32, "seed": 1}
    detection_run(tmp_path, "list", dataset={**dataset, "labels": other})
    found = {t.heading("box"): t for t in tables_of(tmp_path, True) if t.parts}
    assert set(found) == {"COCO det.", "COCO 10 % det."}
    assert len([t for t in tables_of(tmp_path) if t.heading("box") == "COCO 10 % det."]) == 2
    few = found["COCO 10 % det."]
    assert "10 % of the labels (11,829 of 118,287 images, seed " in few.title
    assert any(row.published for row in found["COCO det."].rows)
    assert not any(row.published for row in few.rows)


@pytest.mark.parametrize(
    ("coco", "voc", "together"),
    [
        ({}, {}, True),
        ({"NORM": "SyncBN"}, {"NORM": "SyncBN"}, True),
        ({"NORM": "SyncBN"}, {"NORM": "naiveSyncBN"}, False),
        ({"NORM": "BN"}, {"FREEZE_AT": 5}, False),
        ({"labels": True}, {"FREEZE_AT": 5}, False),
        ({"labels": True}, {"labels": True}, True),
    ],
)
def test_what_was_trained_alike_stands_side_by_side(tmp_path, coco, voc, together):
    used = {"fraction": 0.1, "seed": 0, "images": 9, "available": 90, "digest": "ab" * 32}
    for layout, how in (("coco", coco), ("voc", voc)):
        config = {"MODEL": {"RESNETS": {"NORM": how.get("NORM", "naiveSyncBN")}}}
        config["MODEL"]["BACKBONE"] = {"FREEZE_AT": how.get("FREEZE_AT", 0)}
        name = "coco_2017_val" if layout == "coco" else "voc_2007_test"
        dataset = {"name": name, **({"labels": used} if "labels" in how else {})}
        detection_run(tmp_path, layout, layout=layout, config=config, dataset=dataset)
    assert len(tables_of(tmp_path)) == (1 if together else 2)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            lambda _: TableOptions(lr_selection="bset"),
            "no lr_selection 'bset'. Did you mean",
        ),
        (lambda _: TableOptions(kinds=("detections",)), "no kind 'detections'. Did you mean"),
        (lambda _: TableOptions(layout="papers"), "no layout 'papers'. Did you mean 'paper'"),
        (lambda _: TableOptions(test="paierd"), "no test 'paierd'. Did you mean 'paired'"),
        (lambda _: compare([(0, 1.0)], [(0, 2.0)], "paierd"), "no test 'paierd'"),
        (lambda _: summarize([1.0, 2.0]).interval("student"), "no interval 'student'"),
        (lambda tables: render(tables, spread="sem"), "no spread 'sem'"),
        (lambda tables: render(tables, precision=-1), "precision is -1"),
        (lambda tables: render(tables, hide=("seeds",)), "no column to hide 'seeds'"),
        (lambda tables: render(tables, "latex", placement="tabel"), "no placement 'tabel'"),
    ],
)
def test_what_is_chosen_in_python_is_checked_as_on_the_command_line(call, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        call([])


def test_numbers_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="expected a fraction"):
        summarize([1.0, 2.0]).interval(level=95)
    with pytest.raises(ValueError, match="from 0 to 1, found"):
        holm([math.nan, 0.5])
    with pytest.raises(ValueError, match="one seed for each value, found 1 of 2"):
        summarize([1.0, 2.0], [0])


def test_one_path_is_taken_as_a_list_of_one(tmp_path, monkeypatch):
    detection_run(tmp_path, "run")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for one in ("..", tmp_path):
        (run,) = collect(one, cache=False).runs
        assert run.path.name == "run"


def test_splits_are_no_part_of_short_names():
    names = {"coco_2017_test-dev": "coco", "coco_2017_minival": "coco", "a_test_b": "a_test_b"}
    assert {name: _short(name) for name in names} == names
    assert _short("coco_2017_val + voc_2007_test") == "coco + voc"
    assert head("x_2019_test-dev") == "x_2019"
