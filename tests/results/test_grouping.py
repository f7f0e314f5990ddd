"""Rows against pandas' groupby over all deciding keys, and copies of runs."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intl_transfer.results import TableOptions, build_tables, collect
from intl_transfer.runs import read_manifest, write_json
from intl_transfer.runs.records import ImageSet
from tests.results.synthetic import detection_run, evaluation_run, start_of, write_results

PRETRAIN = {
    "loss.iterations": [4, 8],
    "loss.trace_weight": [None, 0.0],
    "loss.axis": ["channel", "batch"],
    "optim.batch_size": [128, 256],
}
DETECTION = {
    "SOLVER.BASE_LR": [0.02, 0.04],
    "MODEL.RESNETS.NORM": ["SyncBN", "BN"],
    "DATALOADER.SAMPLER_TRAIN": ["TrainingSampler", "RepeatFactorTrainingSampler"],
}
FREE = {"OUTPUT_DIR": ["a", "b"], "DATALOADER.NUM_WORKERS": [2, 4], "MODEL.DEVICE": ["cpu", "cuda"]}
DRAWN = st.fixed_dictionaries(
    {key: st.sampled_from(values) for key, values in {**PRETRAIN, **DETECTION, **FREE}.items()}
    | {"images": st.sampled_from([100, 200]), "pretrain_seed": st.integers(0, 2)}
)


def nested(values):
    found = {}
    for key, value in values.items():
        *folders, leaf = key.split(".")
        place = found
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = value
    return found


def write(root, draws):
    """A run for each draw, with a seed and a figure of its own; their table for pandas."""
    records = []
    for index, drawn in enumerate(draws):
        made = {key: drawn[key] for key in PRETRAIN}
        sha = json.dumps([*made.values(), drawn["pretrain_seed"]])
        settings = {**made, "loss.method": "intl"}
        start = start_of("INTL", sha, id=sha, seed=drawn["pretrain_seed"], settings=settings)
        config = nested({key: drawn[key] for key in (*DETECTION, *FREE)})
        plan = {"name": "1x", "iterations": 90000, "batch_size": 16}
        detection_run(
            root, f"run{index}", 30.0 + index, seed=index, config=config, initialization=start,
            schedule={**plan, "base_lr": drawn["SOLVER.BASE_LR"]},
            dataset={"name": "coco_2017_val", "layout": "coco", "images": drawn["images"]},
        )  # fmt: skip
        records.append({**drawn, "AP": 30.0 + index, "run": f"run{index}", "sha": sha})
    return pd.DataFrame(records)


def deciding_keys():
    return [*PRETRAIN, *DETECTION, "images"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(DRAWN, min_size=2, max_size=8))
def test_rows_are_those_of_pandas(draws):
    with tempfile.TemporaryDirectory() as folder:
        frame = write(Path(folder), draws)
        tables = build_tables(
            collect([folder], cache=False), options=TableOptions(layout="dataset")
        )
    rows = [row for table in tables for row in table.rows]
    grouped = frame.groupby(deciding_keys(), dropna=False)  # None is a value as others are
    expected = {frozenset(part["run"]): part for _, part in grouped}
    found = {frozenset(run.path.name for run in row.runs): row for row in rows}
    assert found.keys() == expected.keys()
    for runs, row in found.items():
        part = expected[runs]
        summary = row.metrics["box", "AP"]
        # The pretraining is what is repeated, where there are several.
        of_each = part.groupby("sha")["AP"].mean()
        values = of_each if len(of_each) > 1 else part["AP"]
        assert math.isclose(summary.mean, values.mean())
        assert summary.n == len(values)
        assert summary.runs == len(part)
        if len(values) > 1:
            assert math.isclose(summary.std, values.std(ddof=1), abs_tol=1e-9)
    labels = [(table.title, row.label) for table in tables for row in table.rows]
    assert len(set(labels)) == len(labels)  # no two rows that a reader could not tell apart


def test_labels_name_the_difference_shortest_first(tmp_path):
    base = {"loss.method": "intl", "loss.iterations": 4, "loss.trace_weight": None, "x": 1}
    variants = {
        "INTL, iterations 4": base,
        "INTL, iterations 8": {**base, "loss.iterations": 8},
    }
    for index, made in enumerate(variants.values()):
        start = start_of("INTL", f"{index}", id=f"{index}", settings=made)
        detection_run(tmp_path, f"a{index}", 30.0 + index, initialization=start)
    names = [row.name for row in build_tables(collect([tmp_path]))[0].rows]
    assert sorted(names) == list(variants)
    without = {**base, "loss.trace_weight": 0.0}
    start = start_of("INTL", "w", id="w", settings=without)
    detection_run(tmp_path, "w", 20.0, initialization=start)
    names = [row.name for row in build_tables(collect([tmp_path]))[0].rows]
    assert sorted(names) == ["INTL, iterations 4", "INTL, iterations 8", "IterNorm"]


def test_a_label_of_ones_own_comes_before_a_digest(tmp_path):
    """Two checkpoints of which nobody says how they were made, in a benchmark that names them."""
    for index, label in enumerate(("short", "long")):
        start = start_of("MoCo v2", f"{index}", id=None)
        start["provenance"] |= {"pretrain_run": None, "label": label, "source_path": "/x/moco.pth"}
        detection_run(tmp_path, label, 30.0 + index, initialization=start)
    names = [row.name for row in build_tables(collect([tmp_path]))[0].rows]
    assert sorted(names) == ["MoCo v2, long", "MoCo v2, short"]
    for run in tmp_path.iterdir():
        content = json.loads((run / "results.json").read_text())["initialization"]
        content["provenance"] |= {"label": None, "source_path": f"/x/moco_{run.name}.pth"}
        write_results(run, initialization=content)
    rows = build_tables(collect([tmp_path], cache=False))[0].rows
    assert sorted(row.label for row in rows) == ["MoCo v2 (moco_long)", "MoCo v2 (moco_short)"]


def test_files_of_one_name_are_repetitions_as_the_user_says(tmp_path):
    for index in range(3):
        start = start_of("MoCo v2", f"{index}", id=None, name="mine", config_name="mine", seed=None)
        detection_run(tmp_path, f"{index}", 30.0 + index, initialization=start)
    (row,) = build_tables(collect([tmp_path]))[0].rows
    assert row.metrics["box", "AP"].count == "3 pretrainings"
    assert any("`convert --name`" in note for note in row.notes)


def test_facts_that_some_runs_do_not_record_are_said_to_be_assumed(tmp_path):
    detection_run(tmp_path, "new", 38.0)
    old = detection_run(tmp_path, "old", 38.2, seed=1)
    content = json.loads((old.path / "results.json").read_text())
    del content["dataset"]["images"]
    (old.path / "results.json").write_text(json.dumps(content))
    (row,) = build_tables(collect([tmp_path]))[0].rows
    assert row.n == 2
    assert "do not record it: dataset.images" in " ".join(row.notes)
    # With two that contradict each other, the third is of neither.
    other = {**content["dataset"], "images": 100}
    detection_run(tmp_path, "other", 38.4, seed=2, dataset=other)
    assert len(build_tables(collect([tmp_path]))) == 3


@pytest.mark.parametrize("study", ["axis", "demo"])
def test_runs_of_one_version_record_all_and_nothing_is_assumed(study):
    """Pretraining runs with a k-NN of their own are rows beside evaluations of their backbones."""
    corpus = Path(__file__).parents[2] / "docs/results/corpus" / study
    tables = build_tables(collect([corpus], cache=False))
    notes = [note for table in tables for row in table.rows for note in row.notes]
    assert notes
    assert not [note for note in notes if "do not record" in note]


def test_versions_and_changed_sources_are_a_footnote(tmp_path):
    for seed, (version, dirty) in enumerate([("0.6", False), ("0.6", True), ("0.7", False)]):
        run = detection_run(tmp_path, f"{seed}", 38.0 + seed, seed=seed)
        run.manifest.versions = {"detectron2": version, "torch": "2.14.1"}
        if seed:  # what a run does not record is no other version
            run.manifest.versions["pillow"] = f"{11 + seed}.0"
        run.manifest.git.dirty = dirty
        run.save()
    (row,) = build_tables(collect([tmp_path]))[0].rows
    assert row.n == 3
    assert "of several versions: detectron2 0.6, 0.7; pillow 12.0, 13.0" in row.notes
    assert "1 of 3 runs made by sources with changes that were not committed" in row.notes


def test_settings_changed_midway_are_another_experiment(tmp_path):
    detection_run(tmp_path, "whole", 38.0)
    run = detection_run(tmp_path, "changed", 39.0, seed=1)
    change = {"SOLVER.BASE_LR": {"before": 0.02, "now": 0.01}}
    run.manifest.sessions[0].changes = change
    run.save()
    titles = {t.title: t.rows[0].n for t in build_tables(collect([tmp_path]))}
    assert list(titles.values()) == [1, 1]
    assert any("changed.SOLVER.BASE_LR 0.02 to 0.01" in title for title in titles)


def test_of_one_id_with_other_figures_the_newer_counts_or_none(tmp_path):
    """They were a repetition: two runs of one seed."""
    detection_run(tmp_path, "one", 38.0)
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    content = json.loads((tmp_path / "other" / "results.json").read_text())
    content["metrics"]["box"]["AP"] = 40.0
    write_results(tmp_path / "other", metrics=content["metrics"])
    found = collect([tmp_path], cache=False)
    assert found.runs == []
    assert [entry.status for entry in found.entries] == ["inconsistent"] * 2
    (problem,) = found.problems
    assert "one id, but differ in their results, and no times say which is newer" in problem
    write_json(
        tmp_path / "other" / "manifest.json",
        {**read_manifest(tmp_path / "one").as_json(), "ended": "2999-01-01T00:00:00+00:00"},
    )
    found = collect([tmp_path], cache=False)
    assert {entry.path.name: entry.status for entry in found.entries} == {
        "one": "superseded",
        "other": "finished",
    }
    (row,) = build_tables(found)[0].rows
    assert row.metrics["box", "AP"].values == (40.0,)


def test_where_a_list_of_images_lies_parts_no_tables(tmp_path):
    for seed, folder in enumerate(("/home/jo/lists", "/scratch/x/lists", "/scratch/x/others")):
        run = evaluation_run(
            tmp_path, f"e{seed}", seed=seed, config={"data": {"subset": f"{folder}/ten.txt"}}
        )
        content = "2" if folder.endswith("others") else "1"
        run.manifest.dataset = {"train": ImageSet(digest=content * 64)}
        run.save()
    counts = [row.n for table in build_tables(collect([tmp_path])) for row in table.rows]
    assert sorted(counts) == [1, 2]


@pytest.mark.parametrize("order", [("a_backup", "runs"), ("runs", "a_backup")])
def test_of_true_copies_the_same_one_wins_in_any_order(tmp_path, order):
    detection_run(tmp_path / "runs", "one", 38.0)
    shutil.copytree(tmp_path / "runs", tmp_path / "a_backup" / "of" / "runs")
    found = collect([tmp_path / name for name in order], cache=False)
    assert [run.path for run in found.runs] == [tmp_path / "runs" / "one"]
    # One that lies inside the other's folder is the copy, whichever was given first.
    shutil.copytree(tmp_path / "runs" / "one", tmp_path / "runs" / "one" / "copy")
    paths = [tmp_path / "runs" / "one" / "copy", tmp_path / "runs" / "one"]
    for given_in in (paths, paths[::-1]):
        found = collect(given_in, cache=False)
        assert [run.path for run in found.runs] == [tmp_path / "runs" / "one"]
