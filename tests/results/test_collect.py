from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time

import pytest

from intl_transfer.analysis.reading import find_runs
from intl_transfer.cli import main
from intl_transfer.errors import UserError
from intl_transfer.results import build_tables, collect
from intl_transfer.results.exports import export
from intl_transfer.results.report.watch import _state
from intl_transfer.runs import METRICS, RunDirectory, write_json
from intl_transfer.runs.changes import run_described
from intl_transfer.runs.lock import LOCK, directory_lock
from slurm.outcomes import _collected, run_directories
from tests.results.synthetic import (
    detection_run,
    evaluation_run,
    external_run,
    hand_made_run,
    pretraining_run,
    standard_set,
    start_of,
    write_results,
)


def begin(root, name, stage="detection"):
    return RunDirectory.start(
        root / name, stage=stage, name=name, config_name="c", config={}, seed=0
    )


def states(found):
    return {entry.path.name: entry.status for entry in found.entries}


def test_a_manifest_and_results_of_two_sessions_are_no_run(tmp_path, capsys):
    """A manifest of 200 epochs beside the results of 100: rows came out, and `check` said ok."""
    start = {"stage": "pretrain", "name": "pre", "config_name": "c", "seed": 0}
    pretraining_run(tmp_path, "pre", epochs=100)
    detection_run(tmp_path, "det", config={"SOLVER": {"MAX_ITER": 180000}})
    evaluation_run(tmp_path, "ev", config={"optim": {"epochs": 200}})
    before = (tmp_path / "pre/results.json").read_text()
    run = RunDirectory.start(tmp_path / "pre", config={"optim": {"epochs": 200}}, **start)
    run.finish({**json.loads(before), "epochs": 200})
    assert states(collect([tmp_path], cache=False))["pre"] == "finished"
    (tmp_path / "pre/results.json").write_text(before)
    found = collect([tmp_path], cache=False)
    assert set(states(found).values()) == {"inconsistent"}
    assert sum("copied at different times" in text for text in found.problems) == 3
    assert main(["check", str(tmp_path)]) == 1
    assert capsys.readouterr().out.count("copied at different times") == 3


def test_a_continued_run_is_running_beside_the_results_of_before(tmp_path, capsys):
    """It was `copied half: copy it again, or run the same command again`."""
    start = {"stage": "pretrain", "name": "pre", "config_name": "c", "seed": 0}
    pretraining_run(tmp_path, "pre")
    run = RunDirectory.start(tmp_path / "pre", config={"optim": {"epochs": 40}}, **start)
    for changes in ({}, {"session": None, "run": None}):  # as earlier versions: by its length
        write_results(run.path, **changes)
        found = collect([tmp_path], cache=False)
        assert (states(found), found.problems) == ({"pre": "running"}, [])
        assert main(["check", str(tmp_path)]) == 0
    run = RunDirectory.start(tmp_path / "pre", config={"optim": {"epochs": 20}}, **start)
    assert states(collect([tmp_path], cache=False)) == {"pre": "inconsistent"}
    with directory_lock(run.path):  # its process lives
        assert states(collect([tmp_path], cache=False)) == {"pre": "running"}


def test_states_are_told_apart(tmp_path):
    detection_run(tmp_path, "finished")
    begin(tmp_path, "running")
    begin(tmp_path, "failed").fail("out of memory")
    begin(tmp_path, "stopped").interrupt("stopped by SIGTERM")
    detection_run(tmp_path, "lost", seed=1).path.joinpath("results.json").unlink()
    half = detection_run(tmp_path, "half", seed=2)
    half.manifest["status"] = "running"
    half.save()
    shutil.copytree(tmp_path / "finished", tmp_path / "copied")
    newer = detection_run(tmp_path, "newer")  # as "finished": the same seed and settings
    newer.manifest["ended"] = "2999-01-01T00:00:00+00:00"
    newer.save()
    detection_run(tmp_path, "no_manifest", seed=4).path.joinpath("manifest.json").unlink()
    found = collect([tmp_path])
    assert states(found) == {
        "finished": "copy",
        "copied": "superseded",
        "running": "running",
        "failed": "failed",
        "stopped": "interrupted",
        "lost": "inconsistent",
        "half": "inconsistent",
        "newer": "finished",
        "no_manifest": "inconsistent",
    }
    text = "\n".join(found.problems)
    assert "lost is marked finished and has no results.json" in text
    assert "copy it again, or run the same command again" in text
    assert "no_manifest has no manifest.json" in text
    assert {p.name: s for p, s in found.unfinished}["stopped"] == (
        "interrupted (stopped by SIGTERM)"
    )


def test_a_silent_run_is_stalled(tmp_path):
    run = begin(tmp_path, "run")
    run.log(iteration=20, total_loss=1.0)
    assert states(collect([tmp_path])) == {"run": "running"}
    three_hours_ago = time.time() - 3 * 3600
    for name in ("manifest.json", METRICS):
        os.utime(run.path / name, (three_hours_ago, three_hours_ago))
    (entry,) = collect([tmp_path]).entries
    assert (entry.status, entry.detail) == ("stalled", "nothing was written for 3 h")
    assert states(collect([tmp_path], stalled_after=5 * 3600)) == {"run": "running"}
    # A sign of life in the figures is enough, also on a machine whose clock is ahead.
    ahead = time.time() + 600
    os.utime(run.path / METRICS, (ahead, ahead))
    assert states(collect([tmp_path])) == {"run": "running"}


def test_a_run_whose_process_has_gone_is_stalled_at_once(tmp_path):
    run = begin(tmp_path, "run")
    ended = subprocess.Popen(["true"])
    ended.wait()
    process = ended.pid
    (run.path / LOCK).write_text(f"process {process} on {socket.gethostname()}\n")
    assert collect([tmp_path]).unfinished == [
        (run.path, f"stalled (its process {process} has ended without recording it)")
    ]
    (run.path / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    assert states(collect([tmp_path])) == {"run": "running"}
    for words in (f"{process} on another-host", f"{'9' * 30} on {socket.gethostname()}"):
        (run.path / LOCK).write_text(f"process {words}\n")
        assert states(collect([tmp_path])) == {"run": "running"}


def test_of_copies_the_one_that_is_further_counts(tmp_path):
    """A remote folder that is still being copied beside the whole one."""
    detection_run(tmp_path / "whole", "run", 38.0)
    shutil.copytree(tmp_path / "whole", tmp_path / "a_mirror")
    (tmp_path / "a_mirror" / "run" / "results.json").unlink()
    found = collect([tmp_path])
    assert [run.path for run in found.runs] == [tmp_path / "whole" / "run"]
    assert found.problems == [
        f"left out: {tmp_path}/a_mirror/run is a copy of {tmp_path}/whole/run"
    ]


def test_parents_by_hash_then_by_id_also_of_runs_that_go_on(tmp_path):
    pretraining_run(tmp_path, "p0", "0" * 64)
    going = begin(tmp_path, "p1", "pretrain")
    detection_run(tmp_path, "by_hash", sha="0" * 64)
    start = start_of("INTL", "1" * 64, id=going.manifest["id"])
    detection_run(tmp_path, "by_id", initialization=start)
    detection_run(tmp_path, "orphan", sha="2" * 64)
    runs = {run.path.name: run for run in collect([tmp_path]).runs}
    assert runs["by_hash"].parent == tmp_path / "p0"
    assert runs["by_id"].parent == tmp_path / "p1"
    assert (runs["orphan"].parent, runs["orphan"].parent_known) == (None, True)
    # What made them is not known of two: each is a row of its own.
    rows = build_tables(collect([tmp_path]))[0].rows
    missing = "the pretraining run was not among the folders read"
    notes = {row.runs[0].path.name: row.notes for row in rows}
    assert notes == {"by_hash": (), "by_id": (), "orphan": (missing,)}


def test_a_supervised_start_leads_to_the_evaluation_that_trained_it(tmp_path):
    for seed in (0, 1):
        run = evaluation_run(tmp_path, f"labels{seed}", kind="semi", seed=seed)
        made = {"optim.epochs": 20, "data.labels_percent": 100}
        start = start_of("supervised", f"{seed}" * 64, id=run.manifest.id, seed=seed, settings=made)
        detection_run(tmp_path, f"fine{seed}", seed=seed, initialization=start)
    found = collect([tmp_path])
    parents = {run.path.name: run.parent for run in found.runs}
    assert parents == {f"fine{seed}": tmp_path / f"labels{seed}" for seed in (0, 1)}
    (row,) = build_tables(found)[0].rows
    assert (row.n, row.metrics["box", "AP"].count) == (2, "2 pretrainings")
    assert not [note for note in row.notes if "pretraining run" in note]


def test_a_pretraining_that_was_no_run_here_is_not_missed(tmp_path):
    start = start_of("MoCo v2", "1" * 64, id=None)
    detection_run(tmp_path, "theirs", initialization=start)
    (row,) = build_tables(collect([tmp_path]))[0].rows
    assert row.notes == ("weights without a pretraining run of this project",)


@pytest.mark.parametrize(
    ("level", "is_marked"),
    [
        ("inferred from names", True),
        ("told by the user", False),
        ("read from its configuration", False),
        ("stated in the file", False),
    ],
)
def test_a_method_that_was_inferred_is_marked_until_it_is_confirmed(tmp_path, level, is_marked):
    start = start_of("MoCo v2")
    start["provenance"]["evidence"] = {"method": {"level": level, "detail": "as MoCo has them"}}
    detection_run(tmp_path, "r", initialization=start)
    (row,) = build_tables(collect([tmp_path]))[0].rows
    notes = [note for note in row.notes if "--method" in note]
    assert bool(notes) == is_marked
    assert all("inferred from names" in note for note in notes)


def test_manifest_and_results_must_be_of_one_run(tmp_path):
    detection_run(tmp_path, "seed")
    write_results(tmp_path / "seed", seed=7)
    detection_run(tmp_path, "stage")
    write_results(tmp_path / "stage", stage="pretrain")
    text = "\n".join(collect([tmp_path]).problems)
    assert "seed is 0 in manifest.json and 7 in results.json" in text
    assert "stage is 'detection' in manifest.json and 'pretrain' in results.json" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"metrics": {"box": {"AP": float("nan")}}}, "box.AP is nan"),
        ({"metrics": {"box": {"AP": True}}}, "box.AP is True"),
        ({"metrics": {"box": {"AP": 30, "APs": 130}}}, "box.APs is 130"),
        ({"metrics": {"box": None}}, "metrics.box: expected an object, found null"),
        ({"metrics": [1]}, "metrics: expected an object, found a list of 1"),
        ({"dataset": {"name": 3, "layout": "coco"}}, "dataset.name: expected text, found 3"),
        ({"initialization": {"kind": "x", "provenance": "x"}}, "provenance: expected an object"),
        (
            {"initialization": {"provenance": {"pretrain_run": 3}}},
            "pretrain_run: expected an object",
        ),
        (
            {"initialization": {"kind": "x", "method": 3}},
            "initialization.method: expected text, found 3",
        ),
        ({"schedule": {"base_lr": "fast"}}, 'schedule.base_lr: expected a number, found "fast"'),
        ({"iteration": 89000}, "iteration 89000 of 90000"),
    ],
)
def test_damaged_results_are_named_and_do_no_harm(tmp_path, changes, expected):
    detection_run(tmp_path, "good", 38.0)
    detection_run(tmp_path, "bad", seed=1)
    file = tmp_path / "bad" / "results.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    found = collect([tmp_path])
    assert [run.path.name for run in found.runs] == ["good"]
    (problem,) = found.problems
    assert expected in problem
    assert "bad/results.json" in problem
    assert build_tables(found)


def test_damaged_manifests(tmp_path):
    detection_run(tmp_path, "good")
    bad = {
        "empty": b"",
        "nul": b"\0" * 500,
        "list": b"[]",
        "deep": b"[" * 200_000,
        "latin": '{"name": "é"}'.encode("latin-1"),
        "schema": b'{"schema": "new", "id": "", "stage": "", "name": "", "status": "finished", '
        b'"config": {}, "seed": 0, "inputs": [], "sessions": []}',
        "types": b'{"schema": 1, "id": 3, "stage": "detection", "name": "", "status": "finished", '
        b'"config": [], "seed": 0, "inputs": [], "sessions": []}',
    }
    for name, content in bad.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_bytes(content)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "manifest.json")  # reading it would wait for ever
    (tmp_path / "huge").mkdir()
    with open(tmp_path / "huge" / "manifest.json", "wb") as file:
        file.truncate(3 << 30)
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "manifest.json").symlink_to(tmp_path / "nowhere")
    found = collect([tmp_path])
    assert [run.path.name for run in found.runs] == ["good"]
    text = "\n".join(found.problems)
    for name in [*bad, "pipe", "huge", "link"]:
        assert f"{tmp_path}/{name}" in text, (name, text)
    assert "is not a regular file" in text
    assert "has 3072 MiB" in text


def test_folders_without_permission_are_named(tmp_path, monkeypatch):
    detection_run(tmp_path, "run")
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refusing(folder):  # root, whom tests may run as, may read everything
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr("os.scandir", refusing)
    found = collect([tmp_path])
    assert found.problems == [f"left out: {tmp_path}/closed cannot be read: Permission denied"]
    assert len(found.runs) == 1


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    """As remote folders answer whose server has gone."""
    detection_run(tmp_path, "good")
    detection_run(tmp_path, "stale", seed=1)
    read_bytes = type(tmp_path).read_bytes

    def failing(path, *arguments, **keywords):
        if path.parent.name == "stale":
            raise OSError(116, "Stale file handle")
        return read_bytes(path, *arguments, **keywords)

    monkeypatch.setattr(type(tmp_path), "read_bytes", failing)
    found = collect([tmp_path], cache=False)
    assert [run.path.name for run in found.runs] == ["good"]
    assert "stale cannot be read: Stale file handle" in found.problems[0]


def test_nothing_is_counted_twice(tmp_path):
    detection_run(tmp_path / "a", "run")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    found = collect([tmp_path / "a", tmp_path, tmp_path / "b", tmp_path / "a" / "run"])
    assert len(found.runs) == len(found.entries) == 1
    assert not found.problems
    shutil.copytree(tmp_path / "a", tmp_path / ".snapshot" / "a")
    assert len(collect([tmp_path]).entries) == 1


def test_links_to_run_directories_are_followed_and_no_others(tmp_path):
    """As where single runs were moved to another disk."""
    detection_run(tmp_path / "scratch", "run")
    (tmp_path / "runs" / "deep").mkdir(parents=True)
    (tmp_path / "runs" / "deep" / "run").symlink_to(tmp_path / "scratch" / "run")
    (tmp_path / "runs" / "deep" / "circle").symlink_to(tmp_path / "runs")
    found = collect([tmp_path / "runs"])
    assert [run.path for run in found.runs] == [tmp_path / "runs" / "deep" / "run"]
    assert not found.problems


def test_all_finders_find_what_is_collected(tmp_path, capsys):
    """`figure`, `status`, `--watch` and launchers that ask whether a report is up to date."""
    runs = tmp_path / "runs"
    names = ("code_p1", "codebook", "datasets", "slurm", ".snapshot")
    own = [pretraining_run(runs / name, "seed0", sha=str(n) * 64) for n, name in enumerate(names)]
    (runs / "code_p1" / "all").symlink_to(runs)  # of which a walk along links would not end
    shutil.copytree(runs / "codebook" / "seed0", tmp_path / "elsewhere" / "seed0")
    (runs / "outside").symlink_to(tmp_path / "elsewhere")
    shown = [run.path for run in own[:4]]
    assert [entry.path for entry in collect([runs], cache=False).entries] == shown
    assert find_runs([runs, runs / "slurm"]) == shown
    assert "is a link to a folder that is no run directory" in capsys.readouterr().err
    assert list(run_directories(runs)) == shown
    (tmp_path / "report").mkdir()
    report = tmp_path / "report" / "index.html"
    for number, write in enumerate((external_run, hand_made_run), 1):
        report.write_text("")
        os.utime(report, (later := time.time() + 60 * number, later))
        before = _state([runs])
        assert set(before) == {entry.path for entry in collect([runs], cache=False).entries}
        assert _collected(report, runs, 0.0)
        made = write(runs, write.__name__)
        for file in made.iterdir():
            os.utime(file, (later + 1, later + 1))
        assert _state([runs]) != before
        assert not _collected(report, runs, 0.0)


def test_a_path_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        collect([tmp_path / "absent"])


def test_a_thousand_runs_take_seconds(tmp_path):
    """Quadratic work would show; benchmarks/collect.py measures with whole configurations."""
    first = detection_run(tmp_path, "run0").path
    pretraining_run(tmp_path, "p", "a" * 64)
    texts = {name: (first / name).read_text() for name in ("manifest.json", "results.json")}
    identity = json.loads(texts["manifest.json"])["id"]
    for index in range(1, 1000):
        folder = tmp_path / f"run{index}"
        folder.mkdir()
        for name, text in texts.items():
            text = text.replace('"seed": 0', f'"seed": {index}')
            (folder / name).write_text(text.replace(identity, f"{index:032x}"))
    began = time.process_time()
    found = collect([tmp_path])
    assert len(found.runs) == 1000
    assert all(run.parent == tmp_path / "p" for run in found.runs)
    assert time.process_time() - began < 5


def test_the_standard_set(standard, tmp_path):
    found = collect([standard])
    assert {entry.status for entry in found.entries} == {"finished"}
    assert len(found.runs) == 18
    assert not found.problems
    again = collect([standard_set(tmp_path)])
    assert [r.manifest["id"] for r in found.runs] == [r.manifest["id"] for r in again.runs]


def test_detectron2s_folders_without_a_seed_are_no_repeats(tmp_path):
    for place, ap in (("a", 38.0), ("b", 40.0)):
        external_run(tmp_path / place, "moco", ap)  # no seed: drawn by Detectron2
        external_run(tmp_path / "named" / place, "moco_seed3", ap)
    found = collect([tmp_path / "a", tmp_path / "b"], cache=False)
    assert sorted(run.metric("box", "AP") for run in found.runs) == [38.0, 40.0]
    assert found.problems == []
    found = collect([tmp_path / "named"], cache=False)
    assert len(found.runs) == 2
    (text,) = found.problems
    assert "same seed, weights and settings, and no times say which is newer; both count" in text


def test_copies_of_results_without_an_id_are_no_repetitions(tmp_path):
    """A backup changes no table; another last digit is another run."""
    for name, ap in (("moco", 38.9), ("byol_seed3", 40.0)):
        external_run(tmp_path / "runs", name, ap)
        (tmp_path / "runs" / name / "label.yaml").write_text("method: mine")
    (tmp_path / "runs" / "imported").mkdir()
    write_json(tmp_path / "runs" / "imported" / "results.json", {
        "stage": "detection", "external": "another tool", "seed": 0, "not_stated": ["seed"],
        "dataset": {"name": "coco_2017_val"}, "architecture": {"backbone": "resnet50"},
        "initialization": {"kind": "pretrained", "method": "mine"},
        "metrics": {"box": {"AP": 38.512}},
    })  # fmt: skip
    undisturbed = collect([tmp_path / "runs"], cache=False)
    assert undisturbed.problems == []
    for name, copy in (("moco", "old"), ("byol_seed3", "byol_seed3"), ("imported", "again")):
        shutil.copytree(tmp_path / "runs" / name, tmp_path / "backup" / "of" / copy)
    found = collect([tmp_path], cache=False)
    assert [run.path for run in found.runs] == [run.path for run in undisturbed.runs]
    assert build_tables(found) == build_tables(undisturbed)
    assert [entry.status for entry in found.entries].count("copy") == 3
    assert all(re.match("left out: .* is a copy of ", text) for text in found.problems)
    external_run(tmp_path / "other", "moco", 38.9000001)
    (tmp_path / "other" / "moco" / "label.yaml").write_text("method: mine")
    assert len(collect([tmp_path], cache=False).runs) == len(found.runs) + 1


def test_the_newer_run_is_so_in_any_time_zone(tmp_path):
    for name, ended in (
        ("late", "2024-05-01T11:00:00+00:00"),
        ("soon", "2024-05-01T12:00:00+02:00"),
    ):
        run = detection_run(tmp_path, name)
        run.manifest.ended = ended
        run.save()
    assert [run.path.name for run in collect([tmp_path], cache=False).runs] == ["late"]


def test_results_that_are_no_record_hide_nothing(tmp_path):
    detection_run(tmp_path, "run")
    (tmp_path / "results.json").write_text('{"note": "a summary"}')
    found = collect([tmp_path], cache=False)
    assert [run.path for run in found.runs] == [tmp_path / "run"]
    (text,) = found.problems
    assert text.startswith(f"left out: {tmp_path / 'results.json'}: stage is None")


def test_what_is_not_searched_is_named(tmp_path):
    pretraining_run(tmp_path / "runs", "pre")
    detection_run(tmp_path / "runs/pre/finetune", "coco")
    external_run(tmp_path / "runs", "output")
    external_run(tmp_path / "runs/output", "inference_run", 30.0)
    (tmp_path / "runs/output/inference").mkdir()
    external_run(tmp_path / "elsewhere", "moco")
    detection_run(tmp_path / "elsewhere/group", "run", seed=1)
    for name in ("moco", "group"):
        (tmp_path / "runs" / name).symlink_to(tmp_path / "elsewhere" / name)
    runs = tmp_path / "runs"
    found = collect([runs], cache=False)
    assert [run.path for run in found.runs] == [runs / "moco", runs / "output"]
    assert sorted(found.problems) == [
        f"left out: {runs / 'group'} is a link to a folder that is no run directory, and was not "
        "searched; give the folder itself",
        *(
            f"left out: {inner} is inside the run directory {outer}; move it out, or give it as a "
            "folder of its own"
            for inner, outer in (
                (runs / "output/inference_run", runs / "output"),
                (runs / "pre/finetune/coco", runs / "pre"),
            )
        ),
    ]
    inner = [runs, runs / "output/inference_run", runs / "pre/finetune/coco", runs / "group"]
    given = collect(inner, cache=False)
    assert (len(given.runs), given.problems) == (5, [])


@pytest.mark.parametrize(
    ("ended", "aps", "said"),
    [
        (("2024-05-01T12:00:00+05:00", "2024-05-01T11:00:00+00:00"), (40.0,), "newest one counts"),
        ((None, "2024-05-01T11:00:00+00:00"), (30.0, 40.0), "no times say which is the newest"),
        (("2024-05-01T11:00:00+00:00",) * 2, (30.0, 40.0), "no times say which is the newest"),
    ],
)
def test_which_of_two_pretrainings_of_one_seed_is_the_newest(tmp_path, ended, aps, said):
    for name, ap, when in zip("12", (30.0, 40.0), ended, strict=True):
        known = {"settings": {"loss.method": "intl"}, "seed": 0, "id": f"p{name}"}
        start = start_of("INTL", name * 64, **known)
        run = detection_run(tmp_path, name, ap, initialization=start)
        run.manifest.ended = when
        run.save()
    (table,) = build_tables(collect([tmp_path], cache=False))
    (row,) = table.rows
    assert row.metrics["box", "AP"].values == aps
    assert any(said in note for note in row.notes)


def run_of(seed, epochs=20, **known):
    """What weights state of a pretraining."""
    settings = {"loss.method": "intl", "optim.epochs": epochs}
    return {"id": f"{seed}" * 32, "seed": seed, "epochs": epochs, "settings": settings, **known}


def test_files_of_one_pretraining_are_one_pretraining(tmp_path):
    """Half of the fine-tunings vanished, as if of an older pretraining of the same seed."""
    for seed, sha in enumerate("aabb"):
        start = start_of("INTL", sha * 64, **run_of(0))
        detection_run(tmp_path, f"d{seed}", 30.0 + seed, seed=seed, initialization=start)
    (table,) = build_tables(collect([tmp_path], cache=False))
    (row,) = table.rows
    assert row.metrics["box", "AP"].values == (30.0, 31.0, 32.0, 33.0)
    assert not any("same seed" in note for note in row.notes)


def test_a_checkpoint_of_the_middle_is_another_start(tmp_path):
    """Its figures stood in the final backbone's row, by whichever file's hash came first."""
    pretraining_run(tmp_path, "p", "a" * 64)
    known = json.loads((tmp_path / "p" / "manifest.json").read_text())["id"]
    starts = {"a": {}, "b": {"epochs": 5}, "c": {"epochs": 10}, "d": {"epochs": None}}
    for index, (sha, done) in enumerate(starts.items()):
        planned = {"planned_epochs": 20} if done else {}
        run = {**run_of(0), "id": known, **done, **planned}
        start = start_of("INTL", sha * 64, **run)
        detection_run(tmp_path, f"d{sha}", 30.0 + index, initialization=start)
    (table,) = [
        one for one in build_tables(collect([tmp_path], cache=False)) if one.tasks[0] == "box"
    ]
    found = {row.detail: row.metrics["box", "AP"].values for row in table.rows}
    assert found == {
        "shapes_r18, 20 ep, shapes": (30.0,),
        "shapes_r18, 5 of 20 ep, shapes": (31.0,),
        "shapes_r18, 10 of 20 ep, shapes": (32.0,),
        "shapes_r18, not set of 20 ep, shapes": (33.0,),
    }
    card = tmp_path / "p" / "README.md"
    card.write_text("# p\n")
    export([table], f"card={card}")
    assert "| COCO det. AP | 30.00 | 1 |" in card.read_text()
    assert "31.00" not in card.read_text()


def test_a_continued_pretraining_leaves_its_former_weights_as_they_were(tmp_path):
    """With its folder, they were of the settings that it continued with."""
    for seed in (0, 1):
        run = pretraining_run(tmp_path, f"p{seed}", f"{seed}" * 64, seed=seed)
        facts = {"epochs": 20, "dataset": "shapes"}
        described = run_described(run.manifest, "pretrain", run.manifest.config, {}, **facts)
        start = start_of("INTL", f"{seed}" * 64, **described)
        detection_run(tmp_path, f"d{seed}", 30.0 + seed, initialization=start)

    def row():
        tables = build_tables(collect([tmp_path], cache=False))
        (table,) = [one for one in tables if one.tasks[0] == "box"]
        (found,) = table.rows
        return table, found.name, found.metrics["box", "AP"].values

    before = row()[1:]
    manifest = json.loads((tmp_path / "p0" / "manifest.json").read_text())
    config = {**manifest["config"], "optim": {"epochs": 40}}
    known = {key: manifest[key] for key in ("stage", "name", "config_name", "seed")}
    changes = {"optim.epochs": {"before": 20, "now": 40}}
    again = RunDirectory.start(tmp_path / "p0", config=config, changes=changes, **known)
    results = json.loads((tmp_path / "p0" / "results.json").read_text())
    again.finish({**results, "epochs": 40, "backbone_sha256": "9" * 64})
    table, *after = row()
    assert tuple(after) == before
    (tmp_path / "p0" / "README.md").write_text("# 40 epochs\n")
    with pytest.raises(UserError, match="no row of the tables is initialized with a backbone"):
        export([table], f"card={tmp_path / 'p0' / 'README.md'}")
