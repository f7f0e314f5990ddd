"""``doctor --cluster`` on the real SLURM: two nodes of one task each."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.pretrain.running import ROOT


@pytest.mark.slow
def test_two_tasks_of_a_slurm_job_report(cluster, tmp_path):
    profile = tmp_path / "site.yaml"
    profile.write_text("nodes: 2\ngpus_per_node: 0\ncpus_per_gpu: 2\nsrun: [--cpu-bind=none]\n")
    command = [
        sys.executable,
        str(ROOT / "slurm" / "check_cluster.py"),
        "--cluster=slurm",
        "--json",
    ]
    done = subprocess.run(
        [*command, f"--profile={profile}", f"--output-dir={tmp_path}"],
        capture_output=True,
        text=True,
        timeout=200,
        env=cluster.environment(),
    )
    rows = {row["name"]: row for row in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows["tasks"]["figure"] == "2 of 2 reported"
    assert rows["scontrol requeue"]["figure"] == "allowed"
    assert rows["rendezvous"]["figure"].startswith("gloo ")
