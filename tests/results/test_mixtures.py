"""What is told apart: weights, rates, protocols and evaluations that one table could mix up."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from intl_transfer.errors import UserError
from intl_transfer.evaluation.command import configuration
from intl_transfer.evaluation.config import DataConfig
from intl_transfer.evaluation.session import trained_backbone
from intl_transfer.results import TableOptions, build_tables, collect, figures, render
from intl_transfer.results.check import check
from intl_transfer.results.exports import _runs
from intl_transfer.results.importers import openmmlab
from intl_transfer.results.starts import settings_of_pretraining
from intl_transfer.runs import write_json
from intl_transfer.runs.config import load_config
from intl_transfer.runs.private import portable
from intl_transfer.runs.records import ImageSet
from intl_transfer.runs.settings import IMPLIED, deciding
from pretrain.config import KnnConfig, PretrainConfig
from tests.results.synthetic import (
    detection_run,
    evaluation_run,
    external_config,
    external_run,
    hand_made_run,
    pretraining_run,
    start_of,
    started,
    write_results,
)

CONFIGS = Path(__file__).parents[2] / "configs"
HAND_MADE = {
    "schema": 1, "stage": "evaluation", "kind": "linear", "external": "my evaluator", "seed": 0,
    "dataset": {"name": "cifar10"}, "architecture": {"backbone": "resnet18"},
    "initialization": {"kind": "pretrained", "method": "INTL"}, "metrics": {"top1": 90.0},
}  # fmt: skip


def tables(root, **options):
    return build_tables(collect([root], cache=False), options=TableOptions(**options))


def test_weights_of_unknown_origin_stay_apart_beside_external_results(tmp_path):
    for index, ap in enumerate((38.0, 30.0)):
        run = detection_run(tmp_path, f"run{index}", ap, sha=f"{index}" * 64)
        start = json.loads((run.path / "results.json").read_text())["initialization"]
        start["provenance"] |= {"pretrain_run": None, "source_path": f"weights{index}.pth"}
        write_results(run.path, initialization=start)
    (tmp_path / "external").mkdir()
    write_json(tmp_path / "external" / "results.json", HAND_MADE)
    (table, small) = tables(tmp_path)
    found = {row.detail: (row.metrics["box", "AP"].mean, row.n) for row in table.rows}
    assert found == {"weights0": (38.0, 1), "weights1": (30.0, 1)}
    assert [row.detail for row in small.rows] == ["weights not stated"]


def test_a_rate_is_chosen_by_the_metric_that_there_is(tmp_path):
    for rate, value in ((0.01, 40.0), (0.02, 50.0)):
        plan = {"name": "x", "iterations": 90000, "batch_size": 16, "base_lr": rate}
        detection_run(tmp_path, f"{rate}", schedule=plan, metrics={"semantic": {"mIoU": value}})
    (table,) = tables(tmp_path, lr_selection="best")
    (row,) = table.rows
    assert row.metrics["semantic", "mIoU"].mean == 50.0
    assert "lr 0.02 (n = 1), chosen out of 2 by mean semantic mIoU" in row.notes[-1]


def test_a_task_of_both_data_sets_keeps_its_values(tmp_path):
    for layout, value in (("coco", 50.0), ("voc", 70.0)):
        run = detection_run(tmp_path, layout, layout=layout)
        metrics = json.loads((run.path / "results.json").read_text())["metrics"]
        write_results(run.path, metrics={**metrics, "proposals": {"AR100": value}})
    found = {
        table.heading("proposals"): row.metrics["proposals", "AR100"].mean
        for table in tables(tmp_path)
        for row in table.rows
    }
    assert found == {"COCO proposals": 50.0, "VOC proposals": 70.0}


def test_every_row_of_a_grid_has_a_name_of_its_own(tmp_path):
    grid = itertools.product((4, 8), ("batch", "channel"), (0.1, 0.2), (True, False))
    for index, (count, axis, rate, stable) in enumerate(grid):
        run = pretraining_run(tmp_path, f"pretrain{index}", f"{index:064x}")
        loss = {"method": "intl", "iterations": count, "axis": axis, "stable": stable}
        run.manifest.config |= {"loss": loss, "optim": {"epochs": 20, "base_lr": rate}}
        run.save()
        start = {"kind": "pretrained", "method": "INTL", "weights_sha256": f"{index:064x}"}
        known = {"source_sha256": f"{index:064x}", "pretrain_run": {"id": run.manifest.id}}
        start |= {"detail": "mine", "provenance": known}
        detection_run(tmp_path, f"run{index}", 30.0 + index, initialization=start)
    (table,) = tables(tmp_path)
    names = [row.name for row in table.rows]
    assert len(set(names)) == len(names) == 16
    words = ("axis", "iterations", "base lr", "iteration")
    assert all(word in name for name in names for word in words)


def test_every_table_has_a_title_and_a_key_of_its_own(tmp_path):
    for index, (value, decay) in enumerate(itertools.product((1, 2), (1e-4, 1e-5))):
        solver = {**dict.fromkeys("ABCDE", value), "WEIGHT_DECAY": decay}
        detection_run(tmp_path, f"run{index}", config={"SOLVER": solver})
    found = tables(tmp_path)
    assert len({table.key for table in found}) == len({table.title for table in found}) == 4
    assert all("SOLVER.WEIGHT_DECAY" in table.title for table in found)


@pytest.mark.parametrize("epochs", [100.0, "100", 100])
def test_epochs_in_any_form_are_one_column(tmp_path, epochs):
    more = {"dataset": "imagenet", "backbone": "resnet50"}
    evaluation_run(tmp_path, "one", origin={"epochs": 100}, top1=70.0, **more)
    evaluation_run(
        tmp_path, "two", origin={"epochs": epochs, "sha": "b" * 64}, top1=72.0, seed=1, **more
    )
    evaluation_run(tmp_path, "three", origin={"epochs": "?", "sha": "c" * 64}, **more)
    (table,) = tables(tmp_path)
    assert table.metrics == {"linear": ("100 ep", "epochs not stated")}


def test_rounding_errors_break_no_tie(tmp_path):
    first, second = (36.7, 43.1, 44.9), (36.8, 43.0, 44.9)
    assert math.fsum(first) != math.fsum(second)  # of which the decimals are the same
    for seed, values in enumerate(zip(first, second, strict=True)):
        for name, value in zip(("a", "b"), values, strict=True):
            method = "INTL" if name == "a" else "random init"
            detection_run(tmp_path, f"{name}{seed}", value, seed=seed, method=method)
    detection_run(tmp_path, "c", 20.0, method="BYOL", sha="c" * 64)
    (table,) = tables(tmp_path)
    best = {row.method: ("box", "AP") in row.marks for row in table.rows}
    assert best == {"INTL": True, "random init": True, "BYOL": False}


def test_a_folder_in_which_training_began_again_has_no_result_yet(tmp_path):
    folder = external_run(tmp_path, "run")
    with open(folder / "metrics.json", "a") as lines:
        lines.write(json.dumps({"iteration": 19, "total_loss": 3.0, "lr": 0.002}) + "\n")
    (folder / "config.yaml").write_text(yaml.safe_dump(external_config(BASE_LR=0.01)))
    found = collect([tmp_path], cache=False)
    assert not found.runs
    assert found.unfinished == [(folder, "running (no evaluation of its last iteration)")]


STEP = "[01] d2.utils.events INFO:  eta: 0:00:00  iter: {}  total_loss: 0.7"
LOADED = "[01] fvcore.common.checkpoint INFO: [Checkpointer] Loading from {} ..."
EVALUATED = """[01] d2: Evaluation results for coco_2017_val in csv format:
[01] d2: copypaste: Task: bbox
[01] d2: copypaste: AP,AP50,AP75
[01] d2: copypaste: {},60,40"""


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        # --eval-only of an earlier model, in the same folder
        ([LOADED.format("model_0044999.pth"), EVALUATED.format(30.1)], 38.9),
        ([LOADED.format("model_final.pth"), EVALUATED.format(38.8)], 38.8),
        # a new training
        ([LOADED.format("moco.pkl"), STEP.format(19)], None),
        ([LOADED.format("model_final.pth"), STEP.format(95019), EVALUATED.format(31)], 31.0),
        ([LOADED.format("moco.pkl"), STEP.format(44999), EVALUATED.format(31)], None),
    ],
)
def test_the_last_evaluation_in_a_log_is_of_the_end_of_training(tmp_path, after, expected):
    folder = external_run(tmp_path, "run")
    (folder / "metrics.json").unlink()
    lines = [STEP.format(44999), EVALUATED.format(35), STEP.format(89999), EVALUATED.format(38.9)]
    (folder / "log.txt").write_text("\n".join([*lines, *after]))
    runs = collect([tmp_path], cache=False).runs
    assert [run.metric("box", "AP") for run in runs] == ([] if expected is None else [expected])


def test_pretrainings_of_one_seed_are_one_repetition(tmp_path):
    for index, seed in enumerate((0, 0, 1)):
        run = pretraining_run(
            tmp_path, f"run{index}", f"{index}" * 64, seed=seed, knn_accuracy=50.0 + index
        )
        run.manifest.ended = f"2024-05-0{index + 1}T12:00:00+00:00"
        run.save()
    (table,) = tables(tmp_path)
    (row,) = table.rows
    (summary,) = row.metrics.values()
    assert (summary.n, summary.values) == (2, (51.0, 52.0))
    assert "of pretrainings with the same seed, the newest one counts" in row.notes


@pytest.mark.parametrize(("digest", "count"), [("a", 1), ("b", 2), (None, 1)])
def test_neighbors_on_other_images_are_another_table(tmp_path, digest, count):
    run = pretraining_run(tmp_path, "pretrain", "7" * 64, dataset="cifar10", knn_accuracy=80.0)
    run.manifest.dataset = {"knn_test": ImageSet(images=100, digest="a")}
    run.save()
    run = evaluation_run(tmp_path, "knn", kind="knn", method="BYOL", top1=81.0)
    run.manifest.dataset = {"test": ImageSet(digest=digest)} if digest else {}
    run.save()
    assert len(tables(tmp_path)) == count


def test_neighbors_at_another_size_or_crop_are_another_table(tmp_path):
    views = [{"size": 24}]
    for index, (size, crop) in enumerate(((None, 1.0), (24, 1.0), (32, 1.0), (24, 0.875))):
        run = pretraining_run(
            tmp_path, f"p{index}", f"{index}" * 64, seed=index, dataset="shapes", knn_accuracy=80.0
        )
        run.manifest.config |= {"views": views, "knn": {"k": 5, "size": size, "crop_pct": crop}}
        run.save()
    for index, (size, crop) in enumerate(((24, 1.0), (24, 0.875))):
        run = evaluation_run(
            tmp_path, f"e{index}", kind="knn", dataset="shapes", method="BYOL", top1=81.0
        )
        run.manifest.config |= {"data": {"size": size, "crop_pct": crop}}
        run.save()
    found = {
        table.title.split("k = 5")[1]: {row.method: row.n for row in table.rows}
        for table in tables(tmp_path)
    }
    assert found == {
        ", crop pct 1)": {"BYOL": 1, "INTL": 2},
        ", crop pct 0.875)": {"BYOL": 1, "INTL": 1},
        ", size 32, crop pct 1)": {"INTL": 1},
    }


def test_settings_of_neighbors_have_the_names_of_an_evaluation():
    images = {field.name for field in dataclasses.fields(DataConfig)}
    apart = {"epochs", "train", "test", "k"}  # how often, which images, how many neighbors
    assert {field.name for field in dataclasses.fields(KnnConfig)} - apart <= images


def test_protocols_are_told_apart_over_all_spellings_of_a_data_set(tmp_path):
    names = ("imagenet", "imagenet1k", "ImageNet-1k", "imagenet")
    for index, (name, momentum) in enumerate(zip(names, (0.9, 0.5, 0.9, 0.5), strict=True)):
        top1 = {0.9: 70.0, 0.5: 60.0}[momentum]
        run = evaluation_run(
            tmp_path, f"{index}", dataset=name, backbone="resnet50", top1=top1, seed=index
        )
        run.manifest.config |= {"optim": {"momentum": momentum}}
        run.save()
    found = {
        table.title.split("momentum ")[1][:3]: table.rows[0].metrics["linear", "20 ep"].values
        for table in tables(tmp_path)
    }
    assert found == {"0.5": (60.0, 60.0), "0.9": (70.0, 70.0)}


def test_a_repeat_under_another_spelling_of_a_data_set_is_one(tmp_path):
    for index, name in enumerate(("imagenet", "ImageNet-1k")):
        run = evaluation_run(tmp_path, f"{index}", dataset=name, backbone="resnet50", seed=0)
        run.manifest.config |= {"data": {"name": name}}
        run.manifest.ended = f"2026-01-0{index + 1}T00:00:00+00:00"
        run.save()
    found = collect([tmp_path], cache=False)
    assert [run.path.name for run in found.evaluations] == ["1"]
    assert "repeats" in found.problems[0]


def shipped(root, recipe, *overrides, epochs, sha, top1, **changes):
    """A linear evaluation of a pretraining by a configuration of this project."""
    config = load_config(PretrainConfig, recipe, overrides, CONFIGS / "pretrain")
    settings = portable(deciding("pretrain", dataclasses.asdict(config)))
    origin = {"config_name": recipe, "epochs": epochs, "dataset": config.data.name}
    origin |= {"sha": sha, "settings": settings, "id": sha}
    more = {"dataset": config.data.name, "backbone": config.model.backbone, **changes}
    evaluation_run(root, f"{sha}{more.get('seed', 0)}", top1=top1, origin=origin, **more)


def test_recipes_of_two_lengths_share_a_row_that_says_how_they_differ(tmp_path):
    for epochs, rate in ((100, 0.5), (200, 0.4)):
        recipe = f"imagenet_r50_ep{epochs}_multicrop_ema"
        shipped(tmp_path, recipe, epochs=epochs, sha=str(epochs), top1=70 + rate)
    (table,) = tables(tmp_path)
    (row,) = table.rows
    assert {m: s.mean for (_, m), s in row.metrics.items()} == {"100 ep": 70.5, "200 ep": 70.4}
    text = "pretrained by recipes that differ by column: 100 ep: base lr 0.5; 200 ep: base lr 0.4"
    assert text in row.notes
    for sha, seed in itertools.product("ab", (0, 1)):  # the same, with two epochs and two T
        count, epochs = {"a": (4, 300), "b": (8, 400)}[sha]
        options = (f"optim.epochs={epochs}", f"loss.iterations={count}")
        what = {"epochs": epochs, "sha": sha, "top1": 72.0, "seed": seed}
        shipped(tmp_path, "imagenet_r50_ep800", *options, **what)
    (table,) = tables(tmp_path)
    found = {row.name: [metric for _, metric in row.metrics] for row in table.rows}
    found = {name: metrics for name, metrics in found.items() if "iterations" in name}
    assert found == {"INTL, iterations 4": ["300 ep"], "INTL, iterations 8": ["400 ep"]}
    note = "fine-tunings of one pretraining: the spread over pretrainings is not included"
    assert all((note in row.notes) == ("iterations" in row.name) for row in table.rows)


def test_small_sets_share_a_row_if_only_the_data_differ(tmp_path):
    def evaluated(name, count, top1):
        options = (f"data.name={name}", f"loss.iterations={count}")
        what = {"epochs": 1000, "sha": f"{name}{count}", "top1": top1}
        shipped(tmp_path, "cifar10_r18_ep1000", *options, **what)

    evaluated("cifar10", 4, 80.0)
    evaluated("cifar100", 8, 60.0)
    (table,) = tables(tmp_path)
    assert sorted(row.name for row in table.rows) == ["INTL, iterations 4", "INTL, iterations 8"]
    assert all(len({task for task, _ in row.metrics}) == 1 for row in table.rows)
    evaluated("cifar100", 4, 61.0)
    shared, alone = sorted(tables(tmp_path)[0].rows, key=lambda row: row.name)
    assert (shared.name, alone.name) == ("INTL, iterations 4", "INTL, iterations 8")
    assert {task for task, _ in shared.metrics} == {"cifar10", "cifar100"}


def test_batch_norms_of_a_run_that_changed_its_processes(tmp_path):
    config = {"MODEL": {"RESNETS": {"NORM": "BN"}}}
    for index, sizes in enumerate(((8, 8), (2, 8))):
        run = detection_run(tmp_path, f"run{index}", seed=index, config=config)
        first = run.manifest.sessions[0]
        run.manifest.sessions = [first.model_copy(update={"world_size": n}) for n in sizes]
        run.save()
        write_results(run.path, session=2)
    assert len(tables(tmp_path)) == 2


def test_batch_norms_of_a_run_that_does_not_state_its_processes(tmp_path):
    config = {"MODEL": {"RESNETS": {"NORM": "BN"}}}
    for index, size in enumerate((8, None)):
        run = detection_run(tmp_path, f"run{index}", seed=index, config=config)
        first = run.manifest.sessions[0]
        run.manifest.sessions = [first.model_copy(update={"world_size": size})] * 2
        run.save()
        write_results(run.path, session=2)
    (table,) = tables(tmp_path)
    (row,) = table.rows
    assert (row.n, len(table.rows)) == (2, 1)
    assert any("batch_norm.processes" in note for note in row.notes)


def test_runs_of_two_folders_with_one_name_are_exported_each(tmp_path):
    for folder, ap in (("one", 30.0), ("two", 40.0)):
        detection_run(tmp_path / folder, "coco", ap, seed=int(ap))
    found = tables(tmp_path)
    shown = list(_runs(found, lambda text: text.replace("one/", "").replace("two/", "")))
    assert sorted(one.metrics["box.AP"] for one in shown) == [30.0, 40.0]


def test_an_evaluation_of_several_sets_is_not_mixed(tmp_path):
    file = tmp_path / "scalars.json"
    lines = [{"loss": 1.0, "step": 9}, {"a/bbox_mAP": 0.4, "b/bbox_mAP": 0.2, "step": 9}]
    file.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match="several data sets: a, b"):
        openmmlab.read(file)


def test_figures_tell_external_rows_from_ones_own(tmp_path, monkeypatch):
    own = detection_run(tmp_path, "own", method="random init")
    content = json.loads((own.path / "results.json").read_text())
    (tmp_path / "theirs").mkdir()
    write_json(tmp_path / "theirs" / "results.json", {**content, "external": "theirs", "seed": 1})
    found, groups = collect([tmp_path], cache=False), []
    monkeypatch.setattr(figures, "_of_part", lambda part, named, *_: groups.append(named) or ())
    figures.draw_figures(found, build_tables(found), tmp_path / "figures", ["svg"])
    assert [sorted(named) for named in groups] == [["random init", "random init (external)"]]


def hand_made(root, name, **changes):
    (root / name).mkdir(parents=True)
    write_json(root / name / "results.json", {**HAND_MADE, **changes})


SEGMENTED = {
    "stage": "detection", "kind": None, "dataset": {"name": "cityscapes_val"},
    "metrics": {"semantic": {"mIoU": 71.0}},
}  # fmt: skip


@pytest.mark.parametrize("form", [{}, SEGMENTED])
def test_what_two_evaluators_measured_is_two_rows(tmp_path, form):
    for index, version in enumerate(("1.0", "1.0", "2.0")):
        top1 = {"metrics": {"top1": 80.0 + 5 * index}} if not form else {}
        hand_made(tmp_path, str(index), external=f"mine {version}", seed=index, **form, **top1)
    (table,) = tables(tmp_path)
    found = {row.name: row.notes for row in table.rows}
    assert {name: len(notes) for name, notes in found.items()} == {
        "INTL, measured by mine 1.0": 1,
        "INTL, measured by mine 2.0": 1,
    }
    for name, notes in found.items():
        evaluator = name.split("measured by ")[1]
        assert notes == (f"external: measured by {evaluator}, not by this project",)
    assert sorted(row.n for row in table.rows) == [1, 2]


@pytest.mark.parametrize("form", [{}, SEGMENTED])
def test_the_definition_of_a_metric_separates_tables_of_every_stage(tmp_path, form):
    for index, version in enumerate(("1.0", "2.0")):
        hand_made(
            tmp_path, version, evaluator={"name": "A", "version": version}, seed=index, **form
        )
    found = tables(tmp_path)
    assert len(found) == 2
    assert all(any(f"version {v}" in table.title for table in found) for v in ("1.0", "2.0"))
    hand_made(tmp_path, "wrong", evaluator="A 1.0", **form)
    (problem,) = collect([tmp_path], cache=False).problems
    assert "evaluator: expected an object, found" in problem
    assert any("evaluator: expected an object" in text for text in check(tmp_path / "wrong").errors)


def test_external_results_that_contradict_each_other_are_not_in_one_table(tmp_path):
    detection_run(tmp_path, "own", 38.0)
    own = json.loads((tmp_path / "own" / "results.json").read_text())
    form = {key: own[key] for key in ("dataset", "schedule", "architecture")}
    for index, settings in enumerate(({}, {"patch": 16}, {"patch": 14})):
        hand_made_run(
            tmp_path, f"theirs{index}", **form, seed=index, settings=settings,
            metrics={"box": {"AP": 40.0 + index, "AP50": 60.0, "AP75": 42.0}},
        )  # fmt: skip
    found = tables(tmp_path)
    rows = [sorted(row.metrics["box", "AP"].mean for row in table.rows) for table in found]
    assert sorted(rows) == [[38.0, 40.0], [41.0], [42.0]]
    shutil.rmtree(tmp_path / "theirs2")  # what only one states, nothing contradicts
    (table,) = tables(tmp_path)
    assert sorted(row.metrics["box", "AP"].mean for row in table.rows) == [38.0, 40.5]


def test_rows_of_tests_on_training_images_say_so(tmp_path):
    """Of every stage, by the content that its manifest states."""
    runs = {
        detection_run(tmp_path / "d", "0", 38.0).path: ("mine", "coco_2017_val"),
        evaluation_run(tmp_path / "e", "0").path: ("train", "test"),
        pretraining_run(tmp_path / "p", "0", knn_accuracy=70.0).path: ("knn_train", "knn_test"),
    }
    for path, names in runs.items():
        results = json.loads((path / "results.json").read_text())
        if results["stage"] == "detection":
            results["dataset"]["train"] = ["mine"]
            (path / "results.json").write_text(json.dumps(results))
        manifest = json.loads((path / "manifest.json").read_text())
        for contents in ("ab", "aa"):
            described = {name: {"digest": c} for name, c in zip(names, contents, strict=True)}
            write_json(path / "manifest.json", {**manifest, "dataset": described})
            (table,) = tables(path)
            (row,) = table.rows
            said = any("tested on the training images" in note for note in row.notes)
            assert said == (contents == "aa"), path
    config = external_config()
    config["DATASETS"]["TRAIN"] = config["DATASETS"]["TEST"]
    external_run(tmp_path / "x", "ft", 38.0, config=config)
    ((row,),) = ([*table.rows] for table in tables(tmp_path / "x"))
    assert any("tested on the training images" in note for note in row.notes)


def test_weights_files_of_one_name_in_two_folders_are_two_rows(tmp_path):
    files = ("/ckpt/moco/model.pkl", "/ckpt/byol/model.pkl", "/ckpt/byol/./model.pkl")
    for index, (file, ap) in enumerate(zip(files, (38.0, 44.0, 46.0), strict=True)):
        config = external_config()
        config["MODEL"]["WEIGHTS"] = file
        external_run(tmp_path, f"ft_seed{index}", ap, config=config)
    (table,) = tables(tmp_path)
    found = {row.name: row.metrics["box", "AP"].values for row in table.rows}
    assert found == {"ft, moco": (38.0,), "ft, byol": (44.0, 46.0)}
    assert "/ckpt" not in render([table], "json")


def test_settings_newer_than_weights_have_their_implied_values(tmp_path):
    now = portable(deciding("pretrain", dataclasses.asdict(PretrainConfig(views=[]))))
    now |= {"loss.stable": True, "data.normalize": "imagenet", "data.exif_orientation": False}
    before = {key: value for key, value in now.items() if key not in IMPLIED["pretrain"]}
    for seed, settings in enumerate((now, before, now | {"data.exif_orientation": True})):
        origin = {"sha": f"{seed}" * 64, "id": f"p{seed}", "seed": seed, "settings": settings}
        evaluation_run(tmp_path, f"run{seed}", top1=70.0 + seed, seed=seed, origin=origin)
    (table,) = tables(tmp_path)
    values = {row.name: row.metrics["cifar10", "top-1"].values for row in table.rows}
    assert values == {
        "INTL, without exif orientation": (70.0, 71.0),
        "INTL, with exif orientation": (72.0,),
    }


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        (
            "model.zero_init_residual=false",
            {"supervised, with zero init residual", "supervised, without zero init residual"},
        ),
        (
            "control.shuffle_labels=true",
            {"supervised", "control: trained with labels shuffled (supervised)"},
        ),
        ("control.noise=0.5", {"supervised", "control: trained with noise 0.5 (supervised)"}),
        (
            "control.permute_weights=true",
            {"supervised", "control: trained with weights permuted (supervised)"},
        ),
        ("engine.threads=1", {"supervised"}),
    ],
)
def test_supervised_starts_are_told_apart_by_what_their_evaluation_says(tmp_path, setting, names):
    """As the evaluation that trains such a backbone describes it."""
    random = SimpleNamespace(
        initialization=SimpleNamespace(kind="random", method="random init", weights_sha256=None),
        settings=SimpleNamespace(
            channels="RGB", stride_in_1x1=False, pixel_mean=[0.0], pixel_std=[255.0]
        ),
        architecture="resnet18",
        stem="imagenet",
    )
    for seed in (0, 1):
        given = ["model.zero_init_residual=true", *([setting] if seed else [])]
        config = configuration("shapes_supervised", given, {})
        run = started(
            tmp_path / f"trained/{seed}",
            stage="evaluation",
            name="e",
            config_name="e",
            config=dataclasses.asdict(config),
            seed=seed,
        )
        told = trained_backbone(SimpleNamespace(config=config, subject=random, run=run))
        origin = {
            "source_sha256": f"{seed}" * 64,
            "pretrain_run": json.loads(told["pretrain_run"]),
        }
        start = {"kind": "supervised", "method": told["method"], "provenance": origin}
        detection_run(tmp_path / "fine-tuned", f"{seed}", 40.0 - seed, initialization=start)
    for root in (tmp_path / "fine-tuned", tmp_path):  # alone, and beside the runs that made them
        (table,) = tables(root)
        assert {row.name for row in table.rows} == names
        assert [row.control for row in table.rows] == ["control" in row.name for row in table.rows]


@pytest.mark.parametrize("known", [True, False])
def test_pretrainings_of_one_seed_are_one_repetition_in_every_stage(tmp_path, known):
    for index, seed in enumerate((0, 0, 1)):
        sha, folder = f"{index}" * 64, tmp_path / "pretrain"
        run = pretraining_run(folder, f"p{index}", sha, seed=seed, knn_accuracy=50.0 + index)
        # The first one of the folder is the newest of seed 0.
        run.manifest.ended = f"2024-05-0{9 - index}T12:00:00+00:00"
        run.save()
        stated = settings_of_pretraining(run.manifest)
        origin = {"sha": sha, "id": run.manifest.id, "seed": seed, "settings": stated}
        start = {**start_of("INTL", **origin)}
        for repeat in (0, 1):
            more = {"initialization": start, "seed": repeat}
            value = 10.0 * index + repeat
            tuned = detection_run(tmp_path, f"d{index}{repeat}", 30 + value, **more)
            probed = evaluation_run(tmp_path, f"e{index}{repeat}", top1=50 + value, **more)
            for made in (tuned, probed):
                made.manifest.ended = f"2024-06-0{9 - index}T12:00:00+00:00"
                made.save()
    if not known:
        shutil.rmtree(tmp_path / "pretrain")
    columns = {k: v for table in tables(tmp_path) for k, v in table.rows[0].metrics.items()}
    assert columns["box", "AP"].values == (30.5, 50.5)
    assert columns["cifar10", "top-1"].values == (50.5, 70.5)
    assert columns["box", "AP"].each == (2, 2)
    if known:
        assert columns["k-NN", "top-1"].values == (50.0, 52.0)
    note = "of pretrainings with the same seed, the newest one counts"
    assert all(note in row.notes for table in tables(tmp_path) for row in table.rows)


def test_runs_changed_midway_are_not_averaged_as_no_record_says_when(tmp_path):
    change = {"SOLVER.WEIGHT_DECAY": {"before": 1e-4, "now": 1e-3}}
    for seed, hours in enumerate((13, 23)):
        run = detection_run(tmp_path, f"run{seed}", 30 + seed, seed=seed)
        (first,) = run.manifest.sessions
        later = {"started": f"2024-05-01T{hours}:00:00+00:00", "changes": change}
        run.manifest.sessions = [first, first.model_copy(update=later)]
        run.save()
        write_results(run.path, session=2)
        settings = {"loss.method": "intl", "changed.optim.weight_decay": "0.0001 to 0.001"}
        for repeat in (0, 1):  # of weights that were changed: the fine-tunings repeat
            origin = {"sha": f"{seed}" * 64, "id": f"p{seed}", "seed": seed, "settings": settings}
            evaluation_run(tmp_path, f"e{seed}{repeat}", seed=repeat, origin=origin)
    *detection, small = tables(tmp_path)
    assert [[row.n for row in table.rows] for table in detection] == [[1], [1]]
    assert [row.n for row in small.rows] == [2, 2]
    assert len({row.name for row in small.rows}) == len({table.title for table in detection}) == 2


def test_equal_protocols_in_two_forms_are_one(tmp_path):
    forms = (
        {"epochs": 100, "lr": 1, "crop": {"size": 224, "pct": [1, 0.875]}},
        {"epochs": 100.0, "lr": 1.0, "crop": {"pct": [1.0, 0.875], "size": 224.0}},
    )
    assert forms[0] == forms[1]
    for seed, form in enumerate(forms):
        evaluation_run(tmp_path, f"run{seed}", seed=seed, protocol=form, epoch=100)
    (table,) = tables(tmp_path)
    assert [row.n for row in table.rows] == [2]


@pytest.mark.parametrize(
    "field", ["protocol.size", "config.b", "architecture.width", "dataset.digest", "augmentation"]
)
@pytest.mark.parametrize("stage", ["detection", "evaluation"])
def test_fields_that_nobody_knows_decide(tmp_path, stage, field):
    """A ResNet of double width was averaged with one of single width."""
    for seed, value in enumerate((1, 1, 2)):
        form: dict = {"metrics": {"box": {"AP": 38.0}}} if stage == "detection" else {**HAND_MADE}
        form.setdefault("dataset", {"name": "coco_2017_val"})
        form.setdefault("architecture", {"backbone": "resnet50"})
        *within, last = field.split(".")
        for key in within:
            form[key] = {**form.get(key, {}), last: value}
        if not within:
            form[last] = value
        hand_made_run(tmp_path, f"{seed}", **{**form, "seed": seed})
    assert sorted(row.n for table in tables(tmp_path) for row in table.rows) == [1, 2]
