"""What the launchers do where there is no SLURM, or before it is asked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from intl_transfer.runs import read_results
from intl_transfer.runs.directory import git_state
from slurm.executors import parse_seeds
from slurm.jobs import reachable, snapshot
from tests.pretrain.running import ROOT, TINY

LAUNCH = [sys.executable, str(ROOT / "slurm" / "launch_pretrain.py"), "--config", "shapes_r18"]


def launch(images, output, *arguments, path=None):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if path is not None:
        environment["PATH"] = str(path)
    return subprocess.run(
        [*LAUNCH, *TINY, f"data.root={images}", f"--output-dir={output}", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.slow
def test_this_machine_takes_jobs_where_there_is_no_slurm(images, tmp_path):
    """Two ranks, chosen by itself, since no sbatch is on the path."""
    wanted = ["--gpus-per-node=0", "--ranks-per-node=2", "--wait"]
    done = launch(images, tmp_path / "run", *wanted, path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "local: 1 job(s) of 1 node(s) x 2 rank(s)" in done.stdout
    assert done.stdout.rstrip().endswith("finished")
    assert read_results(tmp_path / "run")["steps"] == 6


@pytest.mark.slow
def test_a_job_that_fails_says_so(images, tmp_path):
    wanted = ["--gpus-per-node=0", "--wait", "data.root=/nowhere"]
    done = launch(images, tmp_path / "run", *wanted, path=tmp_path)
    assert done.returncode == 1
    # What the stage said, not that it ended badly.
    assert re.search(
        r"^job \d+: failed, .*/nowhere.*Give another with data.root=DIR", done.stdout, re.M
    )


def test_a_dry_run_submits_nothing(images, tmp_path):
    done = launch(
        images,
        tmp_path / "run",
        *("--dry-run", "--cluster=slurm", "--nodes=2", "--gpus-per-node=4", "--partition=gpu"),
        *("--account=lab", "--qos=high", "--constraint=a100", "--mem=100GB", "--time=600"),
        *("--exclude=node7", "--mail-user=me@here", "--mail-type=END"),
    )
    assert done.returncode == 0, done.stderr
    for line in (
        "--nodes=2",
        "--ntasks-per-node=4",
        "--gpus-per-node=4",
        "--partition=gpu",
        "--account=lab",
        "--qos=high",
        "--constraint=a100",
        "--mem=100GB",
        "--time=600",
        "--exclude=node7",
        "--mail-user=me@here",
        "--mail-type=END",
        "--signal=USR2@120",
        "--open-mode=append",
        "--requeue",
        "--kill-on-invalid-dep=yes",
        "--job-name=pretrain-shapes_r18-seed0",
    ):
        assert f"#SBATCH {line}" in done.stdout, line
    assert "--kill-on-bad-exit=1" in done.stdout
    assert re.search(r"batch_size: 8", done.stdout)
    assert not (tmp_path / "run").exists()


def test_profiles_hold_a_sites_defaults(images, tmp_path):
    profile = tmp_path / "site.yaml"
    profile.write_text("partition: ours\ngres: 'gpu:a100:2'\ngpus_per_node: 2\nsbatch: {nice: 5}\n")
    settings = ["--dry-run", "--cluster=slurm", f"--profile={profile}"]
    done = launch(images, tmp_path / "run", *settings, "--partition=theirs")
    assert "#SBATCH --gres=gpu:a100:2" in done.stdout
    assert "--gpus-per-node" not in done.stdout
    assert "#SBATCH --partition=theirs" in done.stdout  # the command line wins
    assert "#SBATCH --nice=5" in done.stdout
    profile.write_text("partiton: ours\n")
    done = launch(images, tmp_path / "run", *settings)
    assert done.returncode == 2
    assert "no key 'partiton'. Did you mean 'partition'?" in done.stderr


def test_seeds():
    assert parse_seeds("0-4", "--seeds") == [0, 1, 2, 3, 4]
    assert parse_seeds("7,1-2,7", "--seeds") == [7, 1, 2]
    assert parse_seeds(None, "--seeds") == []


def test_a_snapshot_is_what_was_there(tmp_path):
    copied = snapshot(ROOT, tmp_path / "code")
    for name in ("pretrain/train.py", "intl_transfer/spectral/losses.py", "configs/pretrain"):
        assert (copied / name).exists()
    assert (copied / "pretrain/train.py").read_text() == (ROOT / "pretrain/train.py").read_text()
    assert json.loads((copied / "REVISION.json").read_text()) == git_state(ROOT)
    assert git_state(copied) == git_state(ROOT)
    assert not (copied / "tests").exists()


def test_names_that_resolve_are_left_as_they_are():
    assert reachable("127.0.0.1") == "127.0.0.1"
    assert reachable("localhost") == "localhost"
