from __future__ import annotations

import csv
import io
import json
import math
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intl_transfer.cli import main
from intl_transfer.errors import UserError
from intl_transfer.results import build_tables, collect, render
from intl_transfer.results.published import published_detection, read_published
from intl_transfer.results.statistics import summarise
from intl_transfer.runs import RunDirectory, write_json


def figures(ap: float) -> dict:
    return {"AP": ap, "AP50": ap + 20, "AP75": ap + 1.5, "per_class": {"disc": ap}}


def detection_run(root, name, ap=30.0, *, method="INTL", seed=0, sha="a" * 64, **changes):
    """A finished detection run with made-up figures."""
    kind = "random" if method == "random init" else "pretrained"
    provenance = {
        "source_sha256": sha,
        "source_path": "/elsewhere/backbone.safetensors",
        "method": method,
        "pretrain_run": {"id": "p", "config_name": "shapes_r18", "epochs": 20, "dataset": "shapes"},
    }
    start = {
        "kind": kind,
        "method": method,
        "weights_sha256": None if kind == "random" else "w" * 64,
        "provenance": None if kind == "random" else provenance,
    }
    results = {
        "stage": "detection",
        "dataset": {"name": "coco_2017_val", "train": [], "layout": "coco", "images": 5000},
        "architecture": {"meta": "Mask R-CNN", "backbone": "resnet50", "head": "C4"},
        "schedule": {"name": "1x", "iterations": 90000, "batch_size": 16, "base_lr": 0.02},
        "initialisation": start,
        "seed": seed,
        "iteration": 90000,
        "metrics": {"box": figures(ap), "mask": figures(ap - 3)},
        **changes,
    }
    run = RunDirectory.start(
        root / name, stage="detection", name=name, config_name="c", config={}, seed=seed
    )
    run.finish(results)
    return run


def pretraining_run(root, name="pretrain", sha="a" * 64):
    run = RunDirectory.start(
        root / name, stage="pretrain", name=name, config_name="c", config={}, seed=0
    )
    run.finish({"stage": "pretrain", "backbone_sha256": sha})
    return run


@given(st.lists(st.floats(0, 100), min_size=2, max_size=20))
def test_statistics_equal_numpys(values):
    summary = summarise([*values, None])
    assert summary.n == len(values)
    assert summary.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert summary.std == pytest.approx(np.std(values, ddof=1), abs=1e-6)


def test_statistics_of_few_values():
    assert summarise([]) is None
    assert summarise([None, None]) is None
    assert summarise([3.0]).std is None
    with pytest.raises(ValueError, match="finite"):
        summarise([1.0, math.nan])


def test_one_row_for_all_seeds_of_an_initialisation(tmp_path):
    pretraining_run(tmp_path)
    for seed, ap in enumerate((38.0, 38.4, 38.8)):
        detection_run(tmp_path, f"intl{seed}", ap, seed=seed)
    detection_run(tmp_path, "random0", 26.0, method="random init")
    (table,) = build_tables(collect([tmp_path]))
    assert [row.method for row in table.rows] == ["INTL", "random init"]
    intl, random = table.rows
    assert intl.n == 3
    assert intl.figures["box", "AP"].mean == pytest.approx(38.4)
    assert intl.figures["box", "AP"].std == pytest.approx(0.4)
    assert intl.notes == ()
    assert intl.runs[0].parent == tmp_path / "pretrain"
    assert random.figures["box", "AP"].std is None
    text = render([table], "md")
    assert "38.4 ± 0.4" in text
    assert "26.0 |" in " ".join(text.split())


def test_schedules_data_and_detectors_are_never_mixed(tmp_path):
    base = {"iterations": 90000, "batch_size": 16, "base_lr": 0.02}
    detection_run(tmp_path, "a")
    detection_run(
        tmp_path, "b", schedule={**base, "name": "2x", "iterations": 180000}, iteration=180000
    )
    detection_run(tmp_path, "c", schedule={**base, "name": "1x", "base_lr": 0.04})
    detection_run(
        tmp_path, "d", architecture={"meta": "Mask R-CNN", "backbone": "resnet18", "head": "C4"}
    )
    detection_run(tmp_path, "e", dataset={"name": "other_val", "layout": "coco"})
    tables = build_tables(collect([tmp_path]))
    assert len(tables) == 5
    assert all(len(table.rows) == 1 and table.rows[0].n == 1 for table in tables)


def test_the_pretraining_run_is_found_by_hash_wherever_it_was_moved(tmp_path):
    detection_run(tmp_path / "x", "run")
    (row,) = build_tables(collect([tmp_path]))[0].rows
    assert row.notes == ("the pretraining run was not among the folders read",)
    pretraining_run(tmp_path / "far" / "away")
    (row,) = build_tables(collect([tmp_path]))[0].rows
    assert row.runs[0].parent == tmp_path / "far" / "away" / "pretrain"


def test_what_cannot_be_used_is_named(tmp_path):
    detection_run(tmp_path, "good")
    shutil.copytree(tmp_path / "good", tmp_path / "good_copy")
    detection_run(tmp_path, "early", iteration=60000)
    detection_run(tmp_path, "outside", metrics={"box": {"AP": 138.0}})
    detection_run(tmp_path, "text", metrics={"box": {"AP": "nan"}})
    detection_run(tmp_path, "empty", metrics={"box": {"AP": None}})
    detection_run(tmp_path, "formless", schedule={})
    detection_run(tmp_path, "lost").path.joinpath("results.json").unlink()
    detection_run(tmp_path, "damaged").path.joinpath("results.json").write_text('{"a": ')
    detection_run(tmp_path, "mangled").path.joinpath("manifest.json").write_text("[]")
    RunDirectory.start(
        tmp_path / "busy", stage="detection", name="b", config_name="c", config={}, seed=0
    )
    failed = RunDirectory.start(
        tmp_path / "failed", stage="detection", name="f", config_name="c", config={}, seed=0
    )
    failed.fail("out of memory")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "log.txt").write_text("hello")
    found = collect([tmp_path])
    assert [run.path.name for run in found.runs] == ["good"]
    assert {path.name: status for path, status in found.unfinished} == {
        "busy": "running",
        "failed": "failed (out of memory)",
    }
    text = "\n".join(found.problems)
    for expected in (
        "good_copy is a copy of",
        "iteration 60000 of 90000",
        "box AP is 138.0",
        "box AP is 'nan'",
        "holds no figure at all",
        "formless/results.json: not in the form",
        "lost is marked finished and has no results.json",
        "damaged/results.json is not valid JSON",
        "mangled/manifest.json: expected a JSON object",
    ):
        assert expected in text, (expected, text)
    assert len(found.problems) == 9


def test_of_repeats_the_newer_counts(tmp_path):
    detection_run(tmp_path, "first", 30.0)
    second = detection_run(tmp_path, "second", 40.0)
    second.manifest["ended"] = "2999-01-01T00:00:00+00:00"
    second.save()
    found = collect([tmp_path])
    assert [run.path.name for run in found.runs] == ["second"]
    assert "repeats" in found.problems[0]


def test_missing_figures_are_blank_never_zero(tmp_path):
    box = {"AP": 30.0, "AP50": None, "AP75": 20.0, "per_class": {}}
    detection_run(tmp_path, "run", metrics={"box": box})
    tables = build_tables(collect([tmp_path]))
    line = next(s for s in render(tables, "md").splitlines() if s.startswith("| INTL"))
    assert [cell.strip() for cell in line.split("|")][3:-1] == ["1", "", "30.0", "20.0"]
    (row,) = csv.DictReader(io.StringIO(render(tables, "csv")))
    assert row["box_AP50_mean"] == ""
    assert row["mask_AP_mean"] == ""


def test_published_rows_stand_with_their_own_schedule_only(tmp_path):
    detection_run(tmp_path, "run")
    tables = build_tables(collect([tmp_path]), published=True)
    ours = next(table for table in tables if table.dataset)
    assert {row.method for row in ours.rows if row.published} >= {"MoCo v2", "SimSiam, optimal"}
    assert all("SimSiam" in row.notes[0] for row in ours.rows if row.published)
    assert ours.rows[0].published is False
    moco = [
        r for t in tables for r in t.rows if r.method == "MoCo v2" and ("box", "AP") in r.figures
    ]
    assert {r.figures["box", "AP"].mean for r in moco} == {39.2, 41.0}
    assert sum(r.method == "MoCo v2" for r in ours.rows) == 1
    voc = next(t for t in tables if "24k" in t.title)
    row = next(r for r in voc.rows if r.method == "MoCo v2")
    assert (row.figures["voc", "AP"].mean, row.figures["voc", "AP"].std) == (57.0, 0.2)
    assert row.n == 5
    assert not any("shapes" in table.title for table in tables)


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
            if (task, "AP50") in row.figures:
                assert row.figures[task, "AP50"].mean > row.figures[task, "AP75"].mean


def test_users_text_is_escaped_in_every_form(tmp_path):
    detection_run(tmp_path, "run", method="<script>|a_b & 5%$")
    tables = build_tables(collect([tmp_path]))
    assert r"\<script\>\|a\_b & 5%$" in render(tables, "md")
    assert r"\textless{}script\textgreater{}\textbar{}a\_b \& 5\%\$" in render(tables, "latex")
    assert json.loads(render(tables, "json"))[0]["rows"][0]["initialisation"] == (
        "<script>|a_b & 5%$"
    )
    assert "<script>|a_b" in render(tables, "console")


def test_latex_is_whole(tmp_path):
    detection_run(tmp_path, "a_run")
    detection_run(tmp_path, "b", method="random init")
    text = render(build_tables(collect([tmp_path]), published=True), "latex")
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") > 1
    rows = [s for s in text.splitlines() if s.endswith(r"\\")]
    tabular = 0
    for line in text.splitlines():
        if line.strip().startswith(r"\begin{tabular}"):
            tabular = len(line.split("{")[-1].rstrip("}"))
        elif line in rows and "multicolumn" not in line:
            assert line.replace(r"\&", "").count("&") == tabular - 1, line
    if shutil.which("pdflatex"):
        document = (
            "\\documentclass{article}\\usepackage{booktabs}\\begin{document}"
            f"{text}\\end{{document}}"
        )
        (tmp_path / "t.tex").write_text(document)
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
            cwd=tmp_path,
            capture_output=True,
        )
        assert done.returncode == 0, done.stdout


def test_csv_and_json_lead_back_to_the_runs(tmp_path):
    pretraining_run(tmp_path)
    detection_run(tmp_path, "run")
    tables = build_tables(collect([tmp_path]))
    (row,) = csv.DictReader(io.StringIO(render(tables, "csv")))
    assert row["runs"] == str(tmp_path / "run")
    assert float(row["box_AP_mean"]) == 30.0
    (run,) = json.loads(render(tables, "json"))[0]["rows"][0]["runs"]
    assert run["pretraining_run"] == str(tmp_path / "pretrain")
    assert run["provenance"]["source_sha256"] == "a" * 64


def test_the_command(tmp_path, capsys):
    assert main(["collect", str(tmp_path)]) == 1
    assert "no finished detection run" in capsys.readouterr().err
    detection_run(tmp_path, "run")
    assert main(["collect", str(tmp_path), "--format", "console"]) == 0
    assert "Mask R-CNN resnet50-C4" in capsys.readouterr().out
    out = tmp_path / "deep" / "t.md"
    assert main(["collect", str(tmp_path), "--published", "--out", str(out)]) == 0
    assert "MoCo v2" in out.read_text()
    assert main(["collect", str(tmp_path / "absent")]) == 2
    assert "is not a folder" in capsys.readouterr().err
    with pytest.raises(UserError, match="no format 'pdf'"):
        render([], "pdf")


def test_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"AP": math.nan})
