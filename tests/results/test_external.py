from __future__ import annotations

import copy
import json
import os

import pytest
import yaml

from intl_transfer.errors import UserError
from intl_transfer.results import build_tables, collect, render
from intl_transfer.results.external import _named
from intl_transfer.results.significance import compare_with_baseline
from tests.results.synthetic import detection_run, external_config, external_run

LOG = """\
[05/01 10:00:00 d2.utils.events]:  eta: 0:00:00  iter: 44999  total_loss: 1.1  lr: 0.02
[05/01 10:10:00 d2.engine.defaults]: Evaluation results for coco_2017_val in csv format:
[05/01 10:10:00 d2.evaluation.testing]: copypaste: Task: bbox
[05/01 10:10:00 d2.evaluation.testing]: copypaste: AP,AP50,AP75,APs,APm,APl
[05/01 10:10:00 d2.evaluation.testing]: copypaste: 45.0000,65.0,50.0,20.0,40.0,50.0
[05/01 20:00:00 d2.utils.events]:  eta: 0:00:00  iter: {last}  total_loss: 0.7  lr: 0.0002
[05/01 20:10:00 d2.engine.defaults]: Evaluation results for coco_2017_val in csv format:
[05/01 20:10:00 d2.evaluation.testing]: copypaste: Task: bbox
[05/01 20:10:00 d2.evaluation.testing]: copypaste: AP,AP50,AP75,APs,APm,APl
[05/01 20:10:00 d2.evaluation.testing]: copypaste: 38.9000,58.9,42.1,nan,42.0,51.0
[05/01 20:10:00 d2.evaluation.testing]: copypaste: Task: segm
[05/01 20:10:00 d2.evaluation.testing]: copypaste: AP,AP50,AP75,APs,APm,APl
[05/01 20:10:00 d2.evaluation.testing]: copypaste: 34.2000,55.4,36.5,15.0,37.0,49.0
"""


def only(found):
    (run,) = found.runs
    return run


def test_the_final_evaluation_counts_never_the_best(tmp_path):
    external_run(tmp_path, "moco_v2_seed3", 38.9, earlier=45.0)
    run = only(collect([tmp_path]))
    assert run.metric("box", "AP") == 38.9
    assert run.metric("mask", "AP") == 34.9
    assert run.metric("box", "APs") is None  # NaN there
    assert run.results["metrics"]["box"]["per_class"] == {"person": 47.9}
    assert run.external
    assert run.seed == 3
    assert (run.start.kind, run.start.method, run.start.detail) == (
        "external",
        "moco_v2",
        "weights moco_v2_200ep.pkl",
    )
    assert run.comparable[:6] == (
        *("coco_2017_val", "Mask R-CNN resnet50-C4"),
        *("1x", "90000", "16", "0.02"),
    )


def test_a_foreign_row_is_marked_and_joins_what_it_may_be_compared_with(tmp_path):
    external_run(tmp_path, "moco_v2")
    detection_run(tmp_path, "own", config=external_config())
    (table,) = build_tables(collect([tmp_path]))
    assert [(row.method, row.external) for row in table.rows] == [
        ("moco_v2", True),
        ("INTL", False),
    ]
    text = render([table], "md")
    assert "moco\\_v2 (external)" in text
    assert "not written by this project" in text


def test_other_settings_than_ours_are_a_block_of_their_own(tmp_path):
    external_run(tmp_path, "moco_v2")
    config = copy.deepcopy(external_config())
    config["MODEL"]["RESNETS"]["NORM"] = "naiveSyncBN"
    detection_run(tmp_path, "own", config=config)
    titles = [table.title for table in build_tables(collect([tmp_path]))]
    assert len(titles) == 2
    assert any("MODEL.RESNETS.NORM naiveSyncBN" in title for title in titles)
    assert any("MODEL.RESNETS.NORM SyncBN" in title for title in titles)


@pytest.mark.parametrize("last", [89999, 89979])
def test_the_log_where_there_is_no_metrics_file(tmp_path, last):
    folder = external_run(tmp_path, "run")
    (folder / "metrics.json").unlink()
    (folder / "log.txt").write_text(LOG.format(last=last))
    run = only(collect([tmp_path]))
    assert (run.metric("box", "AP"), run.metric("mask", "AP75")) == (38.9, 36.5)
    assert run.metric("box", "APs") is None
    assert run.results["source"] == "log.txt"


def test_the_log_of_a_training_that_goes_on_or_of_an_evaluation_alone(tmp_path):
    folder = external_run(tmp_path, "run")
    (folder / "metrics.json").unlink()
    log = folder / "log.txt"
    log.write_text(LOG.format(last=60019))
    found = collect([tmp_path])
    assert not found.runs
    assert found.unfinished == [(folder, "running (no evaluation of its last iteration)")]
    # --eval-only of the final model, later and in the same log
    again = LOG.splitlines()[6:]
    words = "[Checkpointer] Loading from ./output/model_final.pth ..."
    log.write_text("\n".join([LOG.format(last=60019), words, *again]))
    assert only(collect([tmp_path])).metric("box", "AP") == 38.9
    # without the heading of newer versions
    log.write_text("\n".join([words, *[line for line in again if "csv format" not in line]]))
    assert only(collect([tmp_path])).metric("mask", "AP") == 34.2


def test_a_training_that_goes_on_is_no_row(tmp_path):
    folder = external_run(tmp_path, "run", final=60000)
    found = collect([tmp_path])
    assert not found.runs
    assert found.unfinished[0][0] == folder


def test_a_metrics_file_cut_off_in_its_last_line(tmp_path):
    folder = external_run(tmp_path, "run")
    file = folder / "metrics.json"
    file.write_bytes(file.read_bytes()[:-30])
    # The earlier, higher evaluation must not take the final one's place.
    assert not collect([tmp_path]).runs


def test_a_huge_log_is_read_from_its_end(tmp_path):
    folder = external_run(tmp_path, "run")
    file = folder / "metrics.json"
    final = file.read_bytes()
    with open(file, "wb") as out:
        out.truncate(3 << 30)  # a hole: nothing on the disk
        out.seek(0, 2)
        out.write(b"\n" + final)
    assert only(collect([tmp_path])).metric("box", "AP") == 38.9


VOC = {"bbox/AP": 57.0, "bbox/AP50": 82.4, "bbox/AP75": 63.6}


@pytest.mark.parametrize(
    ("dataset", "metrics", "layout"),
    [
        ("my_voc_test", VOC, "voc"),
        ("VOC2007-test", VOC, "voc"),
        ("avocado_val", VOC, "coco"),
        ("voc_2007_test_coco", VOC, "coco"),
        ("voc_2007_test", {**VOC, "bbox/APs": 20.0}, "coco"),  # what only COCO's evaluation has
        ("voc_2007_test", {**VOC, "bbox/AP-cat": 20.0}, "coco"),
        ("voc_2007_test", {**VOC, "segm/AP": 20.0}, "coco"),
    ],
)
def test_layouts_by_what_files_have_then_by_whole_words(tmp_path, dataset, metrics, layout):
    config = external_config()
    config["DATASETS"] = {"TRAIN": [dataset], "TEST": [dataset]}
    folder = external_run(tmp_path, "moco_seed0", config=config)
    (folder / "metrics.json").write_text(json.dumps({"iteration": 89999, **metrics}) + "\n")
    (run,) = collect([tmp_path], cache=False).runs
    assert run.results.dataset.layout == layout
    assert run.metric({"voc": "voc", "coco": "box"}[layout], "AP50") == 82.4


def test_voc_and_several_test_sets(tmp_path):
    config = external_config(MAX_ITER=24000, STEPS=[18000, 22000])
    config["MODEL"]["MASK_ON"] = False
    config["DATASETS"] = {
        "TRAIN": ["voc_2007_trainval", "voc_2012_trainval"],
        "TEST": ["voc_2007_test", "x"],
    }
    folder = external_run(tmp_path, "voc", config=config)
    line = {"iteration": 24000, "voc_2007_test/bbox/AP": 57.0, "voc_2007_test/bbox/AP50": 82.4}
    line |= {"voc_2007_test/bbox/AP75": 63.6, "x/bbox/AP": 99.0}
    (folder / "metrics.json").write_text(json.dumps(line))
    found = collect([tmp_path])
    run = only(found)
    (problem,) = found.problems  # what has no row is said
    assert problem.endswith("metrics of the first, voc_2007_test, and not those of x")
    assert run.comparable[:3] == ("voc_2007_test", "Faster R-CNN resnet50-C4", "24k")
    assert [run.metric("voc", m) for m in ("AP50", "AP", "AP75")] == [82.4, 57.0, 63.6]


def test_other_schedules_have_no_published_name(tmp_path):
    external_run(tmp_path, "short", final=1000, config=external_config(MAX_ITER=1000))
    external_run(tmp_path, "steps", config=external_config(STEPS=[70000, 80000]))
    external_run(tmp_path, "batch", config=external_config(IMS_PER_BATCH=8))
    names = {run.path.name: run.comparable[2] for run in collect([tmp_path]).runs}
    assert names == {"short": "coco-1000", "steps": "coco-90000", "batch": "coco-90000"}


def test_labels(tmp_path):
    folder = external_run(tmp_path, "exp_17")
    (folder / "label.yaml").write_text("method: MoCo v2\nseed: 4\ndetail: 200 ep, ImageNet\n")
    run = only(collect([tmp_path]))
    assert (run.start.method, run.start.detail) == ("MoCo v2", "200 ep, ImageNet")
    assert run.seed == 4
    run = only(collect([tmp_path], {folder: "mine"}))
    assert run.start.method == "mine"
    (folder / "label.yaml").write_text("method: 3\nseed: many\n")
    assert "seed is 'many', expected a number" in collect([tmp_path]).problems[0]
    with pytest.raises(UserError, match=r"--label: no Detectron2 folder at .*absent"):
        collect([tmp_path], {tmp_path / "absent": "x"})


def test_a_seed_that_nobody_states_is_not_paired(tmp_path):
    """Two rows of runs that are seed 1 and an unknown one: these do not share two seeds."""
    for method, ap in (("a", 30.0), ("b", 33.0)):
        for name, more in (("", 0.0), ("_seed1", 0.2)):
            folder = external_run(tmp_path / method, f"{method}{name}", ap + more)
            (folder / "label.yaml").write_text(f"method: {method}")
    found = collect([tmp_path])
    assert sorted((run.path.name, run.seed) for run in found.runs) == [
        *(("a", None), ("a_seed1", 1)),
        *(("b", None), ("b_seed1", 1)),
    ]
    (table,) = compare_with_baseline(build_tables(found), "a")
    (row,) = [row for row in table.rows if not row.baseline]
    assert {mark.comparison.test for mark in row.marks.values()} == {"welch"}
    assert row.metrics["box", "AP"].seeds == ()


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("moco_v2_seed3", ("moco_v2", 3)),
        ("moco-run-12", ("moco", 12)),
        ("byol_s2", ("byol", 2)),
        ("dense_cl", ("dense_cl", None)),
        ("seed4", ("seed4", None)),
        ("r50", ("r50", None)),
        ("byol_epochs100", ("byol_epochs100", None)),
        ("intl_views2", ("intl_views2", None)),
        ("moco_200eps.trial3", ("moco_200eps", 3)),
    ],
)
def test_seeds_in_folder_names(folder, expected):
    assert _named(folder) == expected


def test_seeds_of_one_method_are_one_row(tmp_path):
    for seed, ap in enumerate((38.8, 39.0, 39.2)):
        external_run(tmp_path, f"moco_v2_seed{seed}", ap)
    (table,) = build_tables(collect([tmp_path]))
    (row,) = table.rows
    assert row.n == 3
    assert row.metrics["box", "AP"].mean == pytest.approx(39.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("!!python/object/apply:os.system ['touch {marker}']", "refused"),
        ("SOLVER: !!python/name:os.system ''", "refused"),
        (
            "\n".join(
                ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]" for i in range(1, 12)]
            ),
            "refused: more than",
        ),
        ("a: &a [*a]", "refused: more than"),
        ("- a\n- b\n", "expected keys and values"),
        ("SOLVER: {MAX_ITER: 1}", "not a whole Detectron2 configuration"),
        ("SOLVER: [", "not valid YAML"),
        ("", "expected keys and values"),
        ("\x00\x01", "not valid YAML"),
    ],
)
def test_configurations_that_are_refused(tmp_path, text, expected):
    external_run(tmp_path, "good")
    folder = external_run(tmp_path, "bad")
    marker = tmp_path / "marker"
    (folder / "config.yaml").write_text(text.replace("{marker}", str(marker)))
    found = collect([tmp_path])
    assert [run.path.name for run in found.runs] == ["good"]
    assert expected in found.problems[0]
    assert not marker.exists()


def test_pipes_are_not_waited_for(tmp_path):
    for name in ("metrics.json", "config.yaml"):
        folder = external_run(tmp_path, name.split(".")[0])
        (folder / name).unlink()
        os.mkfifo(folder / name)
    found = collect([tmp_path])
    assert ["is not a regular file" in problem for problem in found.problems] == [True, True]


def test_percentages_are_checked_as_in_our_own(tmp_path):
    external_run(tmp_path, "run", 138.0)
    assert "box.AP is 138.0" in collect([tmp_path]).problems[0]


def test_what_detectron2_leaves_in_our_own_folders_is_not_external(tmp_path):
    folder = external_run(tmp_path, "run")
    detection_run(tmp_path, "run", 31.0)
    run = only(collect([tmp_path]))
    assert not run.external
    assert run.metric("box", "AP") == 31.0
    # Copied half: Detectron2's files are there, the manifest is not.
    (folder / "manifest.json").unlink()
    found = collect([tmp_path])
    assert not found.runs
    assert "has no manifest.json" in found.problems[0]


def test_the_configuration_that_detectron2_dumps_is_read(tmp_path):
    """As written by this repository's own detection stage, without its other files."""
    config = pytest.importorskip("detection.config")
    cfg = config.load_config("coco_R50_C4_1x.yaml")
    folder = external_run(tmp_path, "run")
    (folder / "config.yaml").write_text(cfg.dump())
    run = only(collect([tmp_path]))
    assert run.comparable[1:3] == ("Mask R-CNN resnet50-C4", "1x")
    assert run.manifest["config"] == yaml.safe_load(cfg.dump())


def test_a_further_test_set_parts_no_table(tmp_path):
    external_run(tmp_path, "one", 38.0)
    config = external_config()
    config["DATASETS"]["TEST"] = ["coco_2017_val", "lvis_v1_val"]
    external_run(tmp_path, "two", 39.0, config=config)
    found = collect([tmp_path], cache=False)
    assert [row.method for table in build_tables(found) for row in table.rows] == ["two", "one"]
    assert len(build_tables(found)) == 1
    assert "not those of lvis_v1_val" in found.problems[0]
