from __future__ import annotations

import json
import shutil

import pytest

from intl_transfer.cli import main
from intl_transfer.results import build_tables, collect
from tests.results.synthetic import (
    detection_run,
    evaluation_run,
    external_run,
    pretraining_run,
    write_results,
)
from tests.runs.test_records import DOCS, MINIMAL


def check(capsys, *folders):
    status = main(["check", *map(str, folders)])
    return status, capsys.readouterr().out


def test_runs_of_all_stages_are_good(tmp_path, capsys):
    pretraining_run(tmp_path, curves=3)
    detection_run(tmp_path, "detection", 38.0)
    evaluation_run(tmp_path, "evaluation")
    external_run(tmp_path, "theirs")  # Detectron2's own folder, which has another form
    status, text = check(capsys, tmp_path)
    assert status == 0
    assert text.count("ok ") == 3
    assert text.endswith("3 run directories, 0 to correct (docs/run-directory.md has the fields)\n")


def test_a_hand_made_one_is_ten_lines_and_becomes_a_row(tmp_path, capsys):
    """The example of the page, as it stands there."""
    page = (DOCS / "run-directory.md").read_text()
    text = page.split("```json\n")[1].split("```")[0]
    assert len(text.splitlines()) <= 12
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "results.json").write_text(text)
    assert check(capsys, folder)[0] == 0
    (table,) = build_tables(collect([tmp_path]))
    (row,) = table.rows
    content = json.loads(text)
    task, metrics = next(iter(content["metrics"].items()))
    assert row.external
    assert {m: row.metrics[task, m].mean for m in metrics} == metrics
    assert content["external"] in " ".join(row.notes)


def test_other_tasks_and_kinds_are_columns(tmp_path):
    for seed in (0, 1):
        metrics = {
            "box": {"AP": 38.0 + seed, "AP50": 58.0, "AP75": 41.0},
            "keypoints": {"AP": 64.0 + seed, "AP50": 85.0, "APm": 60.0},
            "semantic": {"mIoU": 71.0 + seed, "fwIoU": 80.0, "per_class": {"sky": 90.0}},
        }
        detection_run(tmp_path, f"d{seed}", seed=seed, metrics=metrics)
        probe = {**MINIMAL, "seed": seed, "metrics": {"NMI": 60.0 + seed, "ACC": 50.0}}
        (tmp_path / f"e{seed}").mkdir()
        (tmp_path / f"e{seed}" / "results.json").write_text(json.dumps(probe))
    detection, evaluation = build_tables(collect([tmp_path]))
    assert detection.columns() == [
        *(("box", name) for name in ("AP50", "AP", "AP75")),
        *(("keypoints", name) for name in ("AP50", "AP")),
        *(("semantic", name) for name in ("mIoU", "fwIoU")),
    ]
    (row,) = detection.rows
    assert row.metrics["semantic", "mIoU"].values == (71.0, 72.0)
    assert evaluation.columns() == [("k-means", "NMI"), ("k-means", "ACC")]
    assert evaluation.rows[0].metrics["k-means", "NMI"].mean == 60.5


def wrong(folder, name, **changes):
    file = folder / name
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: v for key, v in content.items() if v != "REMOVED"}))


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("results.json", {"seed": "3"}, 'seed: expected a whole number, found "3"'),
        ("results.json", {"schema": 7}, "written with schema 7, this version reads up to 1"),
        ("results.json", {"stage": "detecton"}, "found 'detecton'. Did you mean 'detection'?"),
        ("results.json", {"metrics": {"box": {"AP": 380}}}, "box.AP is 380; expected a percentage"),
        ("results.json", {"metrics": {"box": {"AP": 0.38}}}, "no metric is above 1"),
        ("results.json", {"seed": 4}, "seed is 0 in manifest.json and 4 in results.json"),
        ("results.json", {"iteration": 5}, "evaluated at iteration 5 of 90000"),
        ("results.json", {"wall_time": 3}, "no field 'wall_time' is known. Did you mean"),
        ("manifest.json", {"status": "REMOVED"}, "manifest.json: status: it is missing"),
        ("manifest.json", {"inputs": [{"path": 3}]}, "inputs[0].path: expected text, found 3"),
        ("manifest.json", {"status": "running"}, "status is running, and there is results.json"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, capsys, name, changes, expected):
    run = detection_run(tmp_path, "run", 38.0)
    wrong(run.path, name, **changes)
    status, text = check(capsys, run.path)
    assert expected in text
    assert status == (0 if "warning" in text else 1)


def test_every_problem_of_a_file_is_named(tmp_path, capsys):
    run = detection_run(tmp_path, "run", 38.0)
    wrong(run.path, "results.json", seed="3", metrics=[], dataset={"name": 4})
    _, text = check(capsys, run.path)
    assert text.count("error: results.json: ") == 3


def test_half_a_copy_and_damaged_files(tmp_path, capsys):
    run = detection_run(tmp_path, "run", 38.0)
    (run.path / "manifest.json").unlink()
    assert 'give "external": "who measured this"' in check(capsys, tmp_path)[1]
    (run.path / "results.json").write_text("{")
    assert "results.json is not valid JSON" in check(capsys, tmp_path)[1]
    shutil.rmtree(run.path)
    assert main(["check", str(tmp_path)]) == 2
    assert "no run directory" in capsys.readouterr().err


def test_metrics_lines_and_the_backbone_are_looked_at(tmp_path, capsys):
    run = pretraining_run(tmp_path, curves=2)
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"time": 3, "step": "four"}\n')
    assert (
        'metrics.jsonl: line 3: step: expected a whole number, found "four"'
        in (check(capsys, run.path)[1])
    )
    metrics = run.path / "metrics.jsonl"
    metrics.write_bytes(b'{"time": 1, "evaluation": {"box": {"AP": 1}\n{"time": 2, "step": "x"}\n')
    assert "line 2: step" in check(capsys, run.path)[1]  # after one cut short by a crash
    for damaged in (b"garbage\n" * 50, bytes(4096), b'{"time": 1}\n[1]\n', b'{"time": 1,}'):
        metrics.write_bytes(damaged)
        number = 2 if b"[1]" in damaged else 1
        assert f"line {number}: expected a JSON object" in check(capsys, run.path)[1]
    metrics.unlink()
    (run.path / "backbone.safetensors").write_bytes(b"other")
    write_results(run.path, backbone_file="backbone.safetensors")
    assert "is not the file whose backbone_sha256" in check(capsys, run.path)[1]
