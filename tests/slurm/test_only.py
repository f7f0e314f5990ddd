"""`--only` against networkx' ancestors, and as a user sees it."""

from __future__ import annotations

import itertools
import subprocess
import sys
from fnmatch import fnmatchcase

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intl_transfer.errors import UserError
from slurm.ledger import Job
from slurm.plan import selected
from tests.pretrain.running import ROOT


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
    assert set(last.parents) == expected
    assert report.parents == [one.key for one in jobs]  # not changed


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
