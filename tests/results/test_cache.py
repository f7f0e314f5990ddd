from __future__ import annotations

import json
import os
import shutil
import sys
import time

import pytest

from intl_transfer.results import collect
from intl_transfer.results.cache import cache_path
from intl_transfer.results.collect import Collection
from tests.results.synthetic import detection_run, external_run, write_results


def age(root, seconds=3600):
    """Makes every file look as if it had been written a while ago."""
    then = time.time() - seconds
    for folder, _, files in os.walk(root):
        for name in files:
            os.utime(os.path.join(folder, name), (then, then))


def same(a: Collection, b: Collection) -> bool:
    return (a.runs, a.entries, a.problems, a.unfinished, a.pretraining) == (
        b.runs, b.entries, b.problems, b.unfinished, b.pretraining
    )  # fmt: skip


def test_unchanged_directories_are_not_read_again(tmp_path, monkeypatch):
    for seed in range(4):
        detection_run(tmp_path, f"run{seed}", 30 + seed, seed=seed)
    external_run(tmp_path, "moco")
    age(tmp_path)
    first = collect([tmp_path])
    assert first.cached == 0

    def unexpected(*_):
        raise AssertionError("read again")

    module = sys.modules[collect.__module__]  # the package has a function of its name
    monkeypatch.setattr(module, "read_run", unexpected)
    monkeypatch.setattr(module.external, "read_external", unexpected)
    second = collect([tmp_path])
    assert second.cached == 5
    assert same(first, second)


def test_every_change_is_seen(tmp_path):
    for seed in range(3):
        detection_run(tmp_path, f"run{seed}", 30.0, seed=seed)
    age(tmp_path)
    collect([tmp_path])
    # Another content of the same length, at another time; a run that went; one that came.
    file = tmp_path / "run0" / "results.json"
    file.write_text(file.read_text().replace('"AP": 30.0', '"AP": 31.0'))
    os.utime(file, (1e9, 1e9))
    shutil.rmtree(tmp_path / "run1")
    detection_run(tmp_path, "run7", 35.0, seed=7)
    found = collect([tmp_path])
    assert {run.path.name: run.metric("box", "AP") for run in found.runs} == {
        "run0": 31.0,
        "run2": 30.0,
        "run7": 35.0,
    }
    assert found.cached == 1
    assert same(found, collect([tmp_path], cache=False))
    age(tmp_path)
    collect([tmp_path])
    (tmp_path / "run0" / "results.json").unlink()
    assert "has no results.json" in collect([tmp_path]).problems[0]
    (tmp_path / "run2" / "results.json").write_text("{")
    assert "not valid JSON" in collect([tmp_path]).problems[1]
    assert same(collect([tmp_path]), collect([tmp_path], cache=False))


def test_a_file_written_a_moment_ago_is_not_kept(tmp_path):
    """It could change again under the same time and size."""
    detection_run(tmp_path, "run", 30.0)
    file = tmp_path / "run" / "results.json"
    collect([tmp_path])
    stamp = file.stat()
    file.write_text(file.read_text().replace('"AP": 30.0', '"AP": 31.0'))
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert file.stat().st_size == stamp.st_size
    assert collect([tmp_path]).runs[0].metric("box", "AP") == 31.0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04garbage",
        b"[1, 2]",
        b'{"version": 99, "folders": {}}',
        b'{"version": 1, "folders": {"x": 3}}',
        b'{"version": 1}',
    ],
)
def test_a_damaged_cache_is_passed_over(tmp_path, content):
    detection_run(tmp_path / "runs", "run")
    age(tmp_path)
    file = cache_path(tmp_path / "runs")
    collect([tmp_path / "runs"])
    good = file.read_bytes()
    file.write_bytes(content)
    assert len(collect([tmp_path / "runs"]).runs) == 1
    assert json.loads(file.read_bytes()) == json.loads(good)


def test_records_that_are_none_of_ours_are_passed_over(tmp_path):
    detection_run(tmp_path / "runs", "run")
    age(tmp_path)
    file = cache_path(tmp_path / "runs")
    collect([tmp_path / "runs"])
    content = json.loads(file.read_bytes())
    (record,) = content["folders"].values()
    del record["value"]
    file.write_text(json.dumps(content))
    found = collect([tmp_path / "runs"])
    assert (found.cached, len(found.runs)) == (0, 1)


def test_without_a_place_for_a_cache(tmp_path, monkeypatch):
    detection_run(tmp_path / "runs", "run")
    age(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "below"))
    assert len(collect([tmp_path / "runs"]).runs) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    collect([tmp_path / "runs"], cache=False)
    assert not (tmp_path / "cache").exists()


def test_a_label_is_no_part_of_what_is_kept_for_another(tmp_path):
    folder = external_run(tmp_path, "moco_seed3")
    age(tmp_path)
    assert collect([tmp_path]).runs[0].start.method == "moco"
    assert collect([tmp_path], {str(folder): "MoCo v2"}).runs[0].start.method == "MoCo v2"
    assert collect([tmp_path]).runs[0].start.method == "moco"


def test_changes_between_collections_are_those_of_reading_anew(tmp_path):
    """Random edits, each followed by a comparison with a collection that keeps nothing."""
    import random

    dice = random.Random(0)
    for seed in range(6):
        detection_run(tmp_path, f"run{seed}", 30 + seed, seed=seed)
    age(tmp_path)
    for step in range(25):
        name = f"run{dice.randrange(8)}"
        folder = tmp_path / name
        action = dice.choice(["change", "remove", "make", "damage", "touch"])
        if action == "make" and not folder.exists():
            detection_run(tmp_path, name, dice.randrange(20, 60), seed=dice.randrange(8))
        elif (folder / "results.json").exists():
            if action == "change" and collect([folder], cache=False).runs:
                write_results(folder, metrics={"box": {"AP": dice.uniform(20, 60)}})
            elif action == "remove":
                shutil.rmtree(folder)
            elif action == "damage":
                (folder / "results.json").write_text("{"[: dice.randrange(2)])
            else:
                os.utime(folder / "manifest.json", (step * 1000.0, step * 1000.0))
        if dice.random() < 0.5:
            age(tmp_path, 3600 + step)
        assert same(collect([tmp_path]), collect([tmp_path], cache=False)), (step, action, name)


def test_a_file_replaced_under_the_same_size_and_time_is_read_again(tmp_path):
    detection_run(tmp_path, "run", 30.0)
    age(tmp_path)
    collect([tmp_path])
    file = tmp_path / "run" / "results.json"
    stamp = file.stat()
    file.write_text(file.read_text().replace('"AP": 30.0', '"AP": 31.0'))
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stamp.st_size, stamp.st_mtime_ns)
    assert collect([tmp_path]).runs[0].metric("box", "AP") == 31.0
