"""Which data sets stand side by side, in what order tables come, and which rows are shown."""

from __future__ import annotations

import pytest

from intl_transfer.errors import UserError
from intl_transfer.results import TableOptions, build_tables, collect, render
from tests.results.synthetic import (
    detection_run,
    evaluation_run,
    external_config,
    external_run,
    figures,
    hand_made_run,
    provenance,
    start_of,
)

PLANS = {
    "1x": {"name": "1x", "iterations": 90000, "batch_size": 16, "base_lr": 0.02},
    "2x": {"name": "2x", "iterations": 180000, "batch_size": 16, "base_lr": 0.02},
    "24k": {"name": "24k", "iterations": 24000, "batch_size": 16, "base_lr": 0.02},
}


def coco(root, name, ap=38.0, schedule="1x", **changes):
    plan = {**PLANS[schedule], **changes.pop("plan", {})}
    return detection_run(root, name, ap, schedule=plan, iteration=plan["iterations"], **changes)


def tables_of(root, published=False, **options):
    options = {"kinds": ("detection",), **options}
    return build_tables(collect([root]), published, TableOptions(**options))


@pytest.fixture(scope="module")
def schedules(tmp_path_factory):
    """COCO 1x and 2x, a small detector, a rate of its own, and VOC."""
    root = tmp_path_factory.mktemp("schedules")
    coco(root, "a_small", architecture={"meta": "Mask R-CNN", "backbone": "resnet18", "head": "C4"})
    coco(root, "b_rate", plan={"base_lr": 0.1})
    coco(root, "c_1x")
    coco(root, "d_2x", 40.0, "2x")
    detection_run(root, "e_voc", 57.0, layout="voc")
    return root


def shown(tables):
    return [(table.dataset, table.schedule) for table in tables]


def test_no_block_is_shown_twice_and_the_standard_protocols_come_first(schedules):
    tables = tables_of(schedules)
    assert shown(tables) == [
        ("coco_2017_val", "1x"),
        ("coco_2017_val", "2x"),
        ("voc_2007_test", "24k"),
        *[("coco_2017_val", "1x")] * 2,
    ]
    assert "lr 0.02" in tables[0].title
    assert "resnet50-C4" in tables[0].title
    figures = [
        (row.runs[0].path, column) for t in tables for row in t.rows for column in t.columns()
    ]
    assert len(figures) == len(set(figures))


@pytest.mark.parametrize("schedule", ["1x", "2x"])
def test_two_protocols_that_are_asked_for_stand_side_by_side(schedules, schedule):
    rows = (f"schedule={schedule},24k", "detector=*resnet50-C4")
    first = tables_of(schedules, rows=rows)[0]
    assert first.schedule == f"{schedule} + 24k"
    assert first.tasks == ("box", "mask", "voc")


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("schedule=1x", {("coco_2017_val", "1x")}),
        ("schedule!=1x,2x", {("voc_2007_test", "24k")}),
        ("dataset=voc*", {("voc_2007_test", "24k")}),
        ("detector=Faster*", {("voc_2007_test", "24k")}),
    ],
)
def test_rows_by_what_they_were_measured_on(schedules, condition, expected):
    assert set(shown(tables_of(schedules, rows=(condition,)))) == expected


def test_published_rows_are_asked_for_as_measured_ones_are(schedules):
    for table in tables_of(schedules, True, rows=("schedule=2x",)):
        assert table.schedule == "2x"
        assert {row.published for row in table.rows} == {False, True}
    tables = tables_of(schedules, True, rows=("schedule=not stated", "dataset=voc*"))
    assert {row.method for row in tables[-1].rows} == {"CW-RGP"}
    assert all(table.schedule == "not stated" for table in tables)
    with pytest.raises(UserError, match=r"schedule=3x: no row fits.* 1x, 24k, 2x, not stated$"):
        tables_of(schedules, True, rows=("schedule=3x",))


def test_nothing_is_refused_where_nothing_was_found(tmp_path):
    assert tables_of(tmp_path, rows=("schedule=1x",)) == []


def test_one_data_set_of_a_joint_table_of_classification(tmp_path):
    evaluation_run(tmp_path, "a", dataset="cifar10")
    evaluation_run(tmp_path, "b", dataset="cifar100", top1=70.0)
    options = {"kinds": ("classification",)}
    assert tables_of(tmp_path, **options)[0].tasks == ("cifar10", "cifar100")
    (table,) = tables_of(tmp_path, rows=("dataset=cifar100",), **options)
    assert (table.dataset, table.tasks) == ("cifar100", ("cifar100",))
    assert "90.0" not in render([table], "md")


def msra(**solver):
    """As the configuration ``…_supervised_msra`` has it: BGR, no deviation, stride in the 1x1."""
    config = external_config(**solver)
    config["MODEL"] |= {"PIXEL_MEAN": [103.53, 116.28, 123.675], "PIXEL_STD": [1.0, 1.0, 1.0]}
    config["MODEL"]["RESNETS"] |= {"STRIDE_IN_1X1": True}
    return {**config, "INPUT": {"FORMAT": "BGR"}}


def test_a_supervised_baseline_stays_in_its_table(tmp_path):
    """Its pixels are those of its weights, and its rate is not the other rows' best."""
    ours = external_config()
    ours["MODEL"] |= {"PIXEL_MEAN": [123.675, 116.28, 103.53], "PIXEL_STD": [58.4, 57.1, 57.4]}
    ours["INPUT"] = {"FORMAT": "RGB"}
    ours["MODEL"]["RESNETS"] |= {"STRIDE_IN_1X1": False}
    supervised = {"kind": "supervised", "method": "supervised", "weights_sha256": "b" * 64}
    for rate in (0.02, 0.04):
        coco(tmp_path, f"intl{rate}", 38.0 + rate, config=ours, plan={"base_lr": rate})
    coco(tmp_path, "supervised", 38.2, config=msra(), initialization=supervised)
    (table,) = tables_of(tmp_path, lr_selection="best")
    assert {row.method for row in table.rows} == {"INTL", "supervised"}
    first = tables_of(tmp_path)[0]
    assert {row.method for row in first.rows} == {"INTL", "supervised"}
    assert "lr 0.02" in first.title


def test_a_supervised_baseline_stays_in_its_table_of_linear_evaluation(tmp_path):
    """Nobody states after how many epochs: it has a column that says so."""
    for name, epochs in (("a", 200), ("b", 800)):
        evaluation_run(
            tmp_path, name, dataset="imagenet", backbone="resnet50", top1=70 + epochs / 200,
            origin={"epochs": epochs, "dataset": "imagenet", "sha": name * 64},
        )  # fmt: skip
    supervised = {"kind": "supervised", "method": "supervised", "weights_sha256": "b" * 64}
    evaluation_run(
        tmp_path, "s", dataset="imagenet", backbone="resnet50", top1=76.1, initialization=supervised
    )
    (table,) = tables_of(tmp_path, kinds=("classification",))
    assert [metric for _, metric in table.columns()] == ["200 ep", "800 ep", "epochs not stated"]
    assert {row.method for row in table.rows} == {"INTL", "supervised"}


def test_a_rate_that_one_run_chose_is_marked(tmp_path):
    for seed, ap in enumerate((38.0, 38.4)):
        coco(tmp_path, f"several{seed}", ap, seed=seed)
    coco(tmp_path, "one", 39.0, plan={"base_lr": 0.04})
    coco(tmp_path, "random", 30.0, method="random init")
    (table,) = tables_of(tmp_path, lr_selection="best", columns=("AP",))
    row = table.rows[0]
    assert row.metrics["box", "AP"].n == 1
    assert row.notes[-1].startswith("lr 0.04 (n = 1), chosen out of 2 by mean box AP")
    text = render([table], "md")
    assert "**39.0†**" in text
    assert "†: Learning rate chosen by a single run, over means of several: INTL." in text


def test_notes_and_counts_are_of_the_columns_shown(tmp_path):
    """COCO's runs repeat one pretraining and saw the test images; VOC's have two pretrainings."""
    seen = {"name": "x_coco_val", "train": ["x_coco_val"], "layout": "coco"}
    unseen = {"name": "x_voc_test", "train": ["x_voc_trainval"], "layout": "voc"}
    for name in "12":
        start = start_of("INTL", name * 64, seed=int(name), settings={"loss.method": "intl"})
        detection_run(
            tmp_path, f"voc{name}", 57.0, layout="voc", initialization=start, dataset=unseen
        )
    start = start_of("INTL", "1" * 64, seed=1, settings={"loss.method": "intl"})
    for seed in range(3):
        detection_run(tmp_path, f"coco{seed}", 38.0, seed=seed, initialization=start, dataset=seen)
    one, tested = "fine-tunings of one pretraining", "tested on the training images"
    for columns, count, expected in (
        ((), "3, 2 pretrainings", (f"x_coco: {tested}", f"x_coco: {one}")),
        (("box", "mask"), "3", (tested, one)),
        (("voc",), "2 pretrainings", ()),
    ):
        (table,) = tables_of(tmp_path, columns=columns)
        (row,) = table.rows
        assert table.count(row) == count
        found = [note for note in row.notes if one in note or tested in note]
        assert all(note.startswith(text) for note, text in zip(found, expected, strict=True))


def test_a_baseline_that_is_not_shown_is_named(tmp_path):
    for seed, wave in enumerate((0.1, -0.2, 0.3)):
        coco(tmp_path, f"a{seed}", 38 + wave, seed=seed)
        coco(tmp_path, f"b{seed}", 37 - wave, seed=seed, method="MoCo v2")
        coco(tmp_path, f"c{seed}", 30 + wave / 2, seed=seed, method="random init")
    options = {"baseline": "random init", "columns": ("AP",)}
    whole, part = (
        tables_of(tmp_path, rows=rows, **options)[0] for rows in ((), ("method!=random init,INTL",))
    )
    (row,) = part.rows
    (same,) = (row for row in whole.rows if row.method == "MoCo v2")
    assert row.marks["box", "AP"].comparison == same.marks["box", "AP"].comparison
    assert "below random init, not shown (p" in part.legend[-2]
    assert "Holm over the 2 rows of each of" in part.legend[-2]
    assert not any(mark.best for mark in row.marks.values())  # nothing shown to be better than
    (two,) = tables_of(tmp_path, rows=("method!=INTL",), **options)
    assert "det. AP, COCO seg. AP among the rows shown (1 not shown)" in two.legend[0]
    (other,) = tables_of(tmp_path, baseline="random init", columns=("AP50",))
    assert "No column shown is tested against random init" in other.legend[-1]


def test_bold_is_of_the_primary_metric_alone(tmp_path):
    coco(tmp_path, "a", 38.0, metrics={"box": {"AP": 38.0, "AP50": 50.0, "AP75": 40.0}})
    coco(tmp_path, "b", method="MoCo v2", metrics={"box": {"AP": 37.0, "AP50": 60.0, "AP75": 45.0}})
    (table,) = tables_of(tmp_path)
    marked = {(row.method, c) for row in table.rows for c, mark in row.marks.items() if mark.best}
    assert marked == {("INTL", ("box", "AP"))}
    assert table.legend == (
        "Bold: highest measured mean of COCO det. AP, the primary metric of each task; no test.",
    )
    assert tables_of(tmp_path, columns=("AP50",))[0].legend == ()


def test_what_any_run_states_keeps_published_rows_away(tmp_path):
    """The first row's evaluator states no settings; Detectron2's folder has a frozen backbone."""
    config = external_config()
    config["MODEL"]["BACKBONE"]["FREEZE_AT"] = 2
    hand_made_run(tmp_path, "a", metrics={"box": figures(38.5)})
    external_run(tmp_path, "b", 36.0, config=config)
    table = tables_of(tmp_path, True)[0]
    assert [row.method for row in table.rows] == ["Mine", "b"]
    assert "MODEL.BACKBONE.FREEZE_AT 2" in table.title
    assert not table.parts[0].standard


@pytest.mark.parametrize("ap", [35.0, 45.0])
def test_which_row_is_the_best_does_not_part_data_sets(tmp_path, ap):
    config = {"MODEL": {"RESNETS": {"NORM": "SyncBN"}}}
    coco(tmp_path, "coco", 40.0, config=config)
    detection_run(tmp_path, "voc", 57.0, layout="voc", config=config)
    hand_made_run(tmp_path, "mine", metrics={"box": figures(ap)})
    (table,) = tables_of(tmp_path)
    assert table.tasks == ("box", "mask", "voc")


@pytest.mark.parametrize("names", ["abc", "cba"])
def test_a_task_without_ap_is_ranked_and_tested_by_one_column(tmp_path, names):
    """Whatever order the files have their metrics in, and in whatever order they are read."""
    found = [{"mIoU": 40.0, "acc": 80.0}, {"acc": 81.0, "mIoU": 30.0}, {"mIoU": 41.0, "acc": 70.0}]
    for name, method, metrics in zip(names, "ABC", found, strict=True):
        hand_made_run(
            tmp_path, name, metrics={"semantic": metrics}, dataset={"name": "ade"}, schedule={},
            initialization={"kind": "pretrained", "method": method},
        )  # fmt: skip
    (table,) = tables_of(tmp_path)
    assert [row.method for row in table.rows] == ["C", "A", "B"]
    assert table.columns() == [("semantic", "mIoU"), ("semantic", "acc")]
    assert table.rows[0].marks["semantic", "mIoU"].best


def test_metrics_and_tasks_with_dots_are_columns_by_their_names(tmp_path):
    metrics = {"mAP@0.5": 40.0, "5": 30.0}
    hand_made_run(tmp_path, "a", metrics={"v1.5": metrics}, schedule={})
    known = {"v1.5.mAP@0.5": "mAP@0.5", "mAP@0.5": "mAP@0.5", "v1.5.5": "5", "5": "5"}
    for text, metric in known.items():
        (table,) = tables_of(tmp_path, columns=(text,), sort=text)
        assert table.shown == (("v1.5", metric),)
    with pytest.raises(UserError, match=r"no column 'v1\.5\.mAP'"):
        tables_of(tmp_path, columns=("v1.5.mAP",))


def test_a_rate_that_was_chosen_on_one_data_set_marks_no_other(tmp_path):
    for rate in (0.02, 0.04):
        for seed in (0, 1):
            coco(tmp_path, f"{rate}{seed}", 38.0 + rate + seed, seed=seed, plan={"base_lr": rate})
    for method, ap in (("INTL", 57.0), ("random init", 34.0)):
        detection_run(tmp_path, method, ap, layout="voc", method=method)
    (table,) = tables_of(tmp_path, lr_selection="best")
    assert table.tasks == ("box", "mask", "voc")
    assert not any(mark.alone for row in table.rows for mark in row.marks.values())


def test_pretrainings_of_one_seed_are_named_at_the_best_rate_too(tmp_path):
    for rate in (0.02, 0.04):
        for name in "12":
            known = {"settings": {"loss.method": "intl"}, "seed": 0, "id": f"p{name}"}
            start = start_of("INTL", name * 64, **known)
            start["provenance"] = provenance(name * 64, "INTL", **known)
            plan = {"base_lr": rate}
            run = coco(tmp_path, f"{rate}{name}", 38.0 + rate, initialization=start, plan=plan)
            run.manifest.ended = f"2026-01-0{name}T00:00:00+00:00"
            run.save()
    notes = [table.rows[0].notes for table in tables_of(tmp_path)]
    (best,) = tables_of(tmp_path, lr_selection="best")
    said = "of pretrainings with the same seed, the newest one counts"
    assert all(said in found for found in (*notes, best.rows[0].notes))
