"""`--only` against networkx' ancestors, and as a user sees it."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
from fnmatch import fnmatchcase

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intl_transfer.errors import UserError
from slurm import graph
from slurm.controller import Row
from slurm.ledger import Job, Ledger
from slurm.outcomes import status
from slurm.plan import selected
from tests.pretrain.running import ROOT
from tests.slurm.work import make_job


def job(key, parents=(), after="ok"):
    return Job(key, "pretrain", f"/{key}", [], {}, parents=list(parents), after=after)


@given(st.data())
def test_what_matches_comes_with_all_that_it_depends_on(data):
    jobs = []
    for index in range(data.draw(st.integers(1, 8))):
        kind = data.draw(st.sampled_from("abc"))
        before = [one.key for one in jobs]
        parents = data.draw(st.lists(st.sampled_from(before), unique=True)) if before else []
        jobs.append(job(f"{kind}/{index}", parents))
    report = job("report", [one.key for one in jobs], after="any")
    pattern = data.draw(st.sampled_from([f"{one.key[0]}/*" for one in jobs] + ["*/0", "?/[0-3]"]))
    graph = nx.DiGraph()
    graph.add_nodes_from(one.key for one in jobs)
    graph.add_edges_from((parent, one.key) for one in jobs for parent in one.parents)
    matched = [key for key in graph if fnmatchcase(key, pattern)]
    expected = set(matched).union(*(nx.ancestors(graph, key) for key in matched))
    *found, last = selected([*jobs, report], [pattern])
    assert found == [one for one in jobs if one.key in expected]
    assert last.key == "report"
    assert last.parents == [one.key for one in jobs]  # they may be in the queue


def test_without_a_pattern_all_is_selected():
    jobs = [job("a/0"), job("a/1", ["a/0"])]
    assert selected(jobs, []) == jobs


def test_a_pattern_that_matches_nothing_names_what_there_is():
    with pytest.raises(UserError, match=r"no job .*Did you mean 'coco/\*'\? There are coco/\*"):
        selected([job("coco/intl_seed0")], ["coc/*"])


@pytest.mark.parametrize(
    ("launcher", "name", "pattern", "kinds"),
    [
        ("benchmark", "shapes_methods", "knn/simclr_*", {"pretrain", "convert", "knn", "collect"}),
        ("sweep", "sweep_base_lr", "pretrain/*_seed0", {"pretrain", "report", "figure"}),
    ],
)
def test_launchers_show_what_they_would_launch(tmp_path, launcher, name, pattern, kinds):
    command = [sys.executable, f"slurm/launch_{launcher}.py", name, "--cluster", "local"]
    options = ["--dry-run", "--only", pattern, "--output-dir", str(tmp_path)]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    shown = [a[2:].split()[0] for a, b in itertools.pairwise(lines) if b[:6] == "#     "]
    assert {key.split("/")[0] for key in shown} == kinds
    assert all("simclr" in key or "/" not in key or launcher == "sweep" for key in shown)


def test_a_report_waits_for_all_jobs_in_the_queue_whatever_was_selected(tmp_path):
    """It was cancelled and waited for the selected jobs alone, and remained without the others."""
    ledger = Ledger(tmp_path, "slurm")
    jobs = [
        *(make_job(tmp_path, name) for name in ("knn", "linear")),
        make_job(tmp_path, "report", ["knn", "linear"], after="any"),
    ]
    rows = {}
    states = ("FAILED", "RUNNING", "PENDING")
    for number, (one, state) in enumerate(zip(ledger.merge(jobs), states, strict=True)):
        graph.record(one, str(number), "log", "work")
        rows[one.job_id] = Row(one.job_id, state, "", "None", "work")
    merged = ledger.merge(selected(jobs, ["knn"]))
    requested = graph.missing(ledger, merged, rows)
    assert [one.key for one in requested] == ["knn", "report"]
    ledger.jobs["knn"].job_id = "9"
    found = graph.depend(ledger.jobs["report"], ledger, rows, {"knn"})
    assert found == "afterany:9:1"
    assert ledger.jobs["report"].parents == ["knn", "linear"]
    # Nothing else was launched into this folder.
    alone = Ledger(tmp_path / "other", "slurm")
    (report,) = alone.merge([make_job(tmp_path, "report", ["knn", "linear"], after="any")])
    assert graph.depend(report, alone, {}, set()) is None
    assert status(report, alone, {}).state == "not submitted"


def test_a_report_that_is_older_than_any_result_is_made_again(tmp_path):
    """With `--only collect` it was done, since it had no parents among the selected jobs."""
    ledger = Ledger(tmp_path, "local")
    report = make_job(tmp_path, "report", ["one"], after="any")
    report.stage, report.settings = "collect", {}
    (report,) = ledger.merge([report])
    for name, when in (("report/index.html", 100), ("one/results.json", 50)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (when, when))
    (tmp_path / "one" / "manifest.json").write_text("{}")
    assert graph.missing(ledger, [report], {}) == []
    os.utime(tmp_path / "one" / "results.json", (150, 150))
    assert graph.missing(ledger, [report], {}) == [report]
    # It failed: what lies there is of an earlier submission, maybe with other options.
    for path in (tmp_path / "report").iterdir():
        os.utime(path, (200, 200))
    assert graph.missing(ledger, [report], {}) == []
    graph.record(report, "1", str(tmp_path / "log"), "report")
    ledger.write()
    (again,) = Ledger.read(tmp_path).merge([dataclasses.replace(report, submitted=None)])
    assert graph.missing(ledger, [again], {}) == [again]
