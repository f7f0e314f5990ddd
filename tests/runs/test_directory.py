from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from intl_transfer.errors import UserError
from intl_transfer.runs import (
    RunDirectory,
    read_manifest,
    read_metrics,
    read_results,
    sha256_file,
    write_atomically,
    write_json,
)


def start(path, **changes):
    values = {
        "stage": "pretrain",
        "name": "a run",
        "config_name": "shapes_r50",
        "config": {"optim": {"epochs": 2}},
        "seed": 0,
    }
    return RunDirectory.start(path, **{**values, **changes})


def test_a_run_from_start_to_end(tmp_path):
    run = start(tmp_path / "run", method="INTL")
    assert read_manifest(run.path)["status"] == "running"
    assert read_results(run.path) is None
    run.log(step=1, loss=2.5)
    run.finish({"final_loss": 2.5})
    manifest = read_manifest(run.path)
    assert manifest["status"] == "finished"
    assert manifest["ended"] is not None
    assert manifest["versions"]["torch"]
    assert read_results(run.path) == {
        "schema": 1,
        "stage": "pretrain",
        "seed": 0,
        "run": manifest.id,
        "session": 1,
        "final_loss": 2.5,
    }


def test_numbers_of_other_libraries_are_numbers(tmp_path):
    config = {"lr": np.float32(0.5), "clip": float("inf"), "sizes": (np.int64(1), 2), 3: Path("x")}
    run = start(tmp_path, config=config, seed=np.int64(7), details={"mean": np.ones(2)})
    run.log(step=np.int64(1), loss=torch.tensor(2.0), rates=[float("nan"), np.float32(0.25)])
    run.finish({"final_loss": np.float32(0.5), "method": "INTL"})
    manifest = read_manifest(tmp_path)
    assert manifest.config == {"lr": 0.5, "clip": "inf", "sizes": [1, 2], "3": "x"}
    assert (manifest.seed, manifest.details["mean"]) == (7, [1.0, 1.0])
    (line,) = read_metrics(tmp_path)
    assert (line["step"], line["loss"], line["rates"]) == (1, 2.0, ["nan", 0.25])
    assert read_results(tmp_path).final_loss == 0.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"config": {"a": [object()]}}, r"config\.a\[0\]: expected numbers.*found object"),
        ({"config": {1: 2, "1": 3}}, "config: two keys are the same"),
        ({"seed": "3"}, r'manifest\.json: seed: expected a whole number, found "3"'),
        ({"seed": 3.7}, r"seed: expected a whole number, found 3\.7"),
        ({"method": 5}, "method: expected text, found 5"),
    ],
)
def test_other_values_are_refused_by_name(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        start(tmp_path, **values)
    assert not any(tmp_path.iterdir())


def test_continuing_keeps_the_id_and_adds_a_session(tmp_path):
    first = start(tmp_path)
    first.interrupt("time limit")
    second = start(tmp_path, world_size=4)
    assert second.manifest["id"] == first.manifest["id"]
    sessions = read_manifest(tmp_path)["sessions"]
    assert [s["world_size"] for s in sessions] == [1, 4]
    assert sessions[0]["ended"] is not None


def test_status_follows_what_happened(tmp_path):
    with pytest.raises(ZeroDivisionError), start(tmp_path).recording():
        _ = 1 / 0
    manifest = read_manifest(tmp_path)
    assert (manifest["status"], manifest["error"]) == (
        "failed",
        "ZeroDivisionError: division by zero",
    )
    with pytest.raises(KeyboardInterrupt), start(tmp_path).recording():
        raise KeyboardInterrupt
    assert read_manifest(tmp_path)["status"] == "interrupted"


def test_a_line_cut_off_by_a_crash_is_skipped_and_does_not_spoil_the_next(tmp_path):
    run = start(tmp_path)
    run.log(step=1)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    start(tmp_path).log(step=3, loss=float("nan"))
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 3]
    assert rows[1]["loss"] == "nan"


def test_folder_of_another_stage_is_refused(tmp_path):
    start(tmp_path)
    with pytest.raises(UserError, match="contains a 'pretrain' run; this is a 'detection' run"):
        start(tmp_path, stage="detection")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "schema: it is missing"),
    ],
)
def test_damaged_manifests_are_named(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path)


def test_newer_schema_and_unknown_status_are_refused(tmp_path):
    start(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    write_json(tmp_path / "manifest.json", {**manifest, "schema": 2})
    with pytest.raises(UserError, match="schema 2"):
        read_manifest(tmp_path)
    write_json(tmp_path / "manifest.json", {**manifest, "status": "done"})
    with pytest.raises(UserError, match=r'status: expected .* found "done"'):
        read_manifest(tmp_path)


def test_atomic_writes_leave_the_old_file_or_the_new(tmp_path):
    file = tmp_path / "deep" / "file.txt"
    write_atomically(file, lambda out: out.write(b"old"))

    def fail(out):
        out.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, fail)
    assert file.read_bytes() == b"old"
    assert list(file.parent.iterdir()) == [file]
    assert sha256_file(file) == "cba06b5736faf67e54b07b561eae94395e774c517a7d910a54369e1263ccfbd4"
    with pytest.raises(ValueError, match="JSON"):
        write_json(file, float("nan"))
    assert file.read_bytes() == b"old"
