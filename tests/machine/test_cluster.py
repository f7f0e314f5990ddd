"""``doctor --cluster``: what tasks say, judged; and a job on this machine."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys

import pytest

from intl_transfer.cli import main
from intl_transfer.machine import task
from intl_transfer.machine.cluster import Requested, check_tasks
from tests.pretrain.running import ROOT

FOUND = {
    "rank": 0,
    "ranks": 2,
    "done": True,
    "host": "n0",
    "cores": [0, 1, 2, 3],
    "gpus": ["A"],
    "gpu_problem": None,
    "shm_free": 1 << 40,
    "address": "10.0.0.1",
    "interfaces": {
        "lo": {"address": "127.0.0.1", "up": True, "loopback": True},
        "ib0": {"address": "10.0.0.1", "up": True, "loopback": False},
        "eth1": {"address": None, "up": False, "loopback": False},
    },
    "environment": {},
    "requeue": {"allowed": True, "problem": None},
    "disk": {"median": 1.0, "most": 2.0},
    "rendezvous": {"seconds": {"gloo": 0.1}, "seen": 0.0, "problem": None},
}
REQUESTED = Requested(tasks=2, cpus=4, gpus=1, scheduler="slurm")


def judged(changes, requested=REQUESTED, hosts=("n0", "n1")):
    """Outcome by check of two tasks of which the second differs."""
    tasks = [copy.deepcopy(FOUND) for _ in hosts]
    for rank, (one, host) in enumerate(zip(tasks, hosts, strict=True)):
        one.update(rank=rank, host=host)
    for key, value in changes.items():
        tasks[-1][key] = {**tasks[-1][key], **value} if isinstance(value, dict) else value
    return {check.name: check for check in check_tasks(tasks, requested)}


def test_all_is_well():
    found = judged({})
    assert {check.outcome for check in found.values()} == {"ok"}
    assert found["disk"].figure.startswith("write, fsync, rename: 1.0 ms")


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"cores": [0]}, "affinity", "rank 1 on n1 may use 1 of the 4 .*--cpu-bind=none"),
        ({"gpus": []}, "GPUs", "rank 1 on n1 sees none"),
        ({"gpu_problem": "CUDA cannot start"}, "GPUs", "rank 1 on n1: CUDA cannot start"),
        ({"shm_free": 64 << 20}, "/dev/shm", r"n1 has 0.06 GiB .*--shm-size"),
        (
            {"address": "127.0.1.1"},
            "gloo interface",
            r"n1 resolves to 127.0.1.1, .*set GLOO_SOCKET_IFNAME .*ib0 \(10.0.0.1\)",
        ),
        ({"address": None}, "gloo interface", "n1 resolves to nothing"),
        (
            {"environment": {"GLOO_SOCKET_IFNAME": "ib7"}},
            "gloo interface",
            "GLOO_SOCKET_IFNAME names ib7, which is not there on n1; .*ib0",
        ),
        ({"environment": {"GLOO_SOCKET_IFNAME": "lo"}}, "gloo interface", "no other node"),
        ({"environment": {"NCCL_SOCKET_IFNAME": "=eth1"}}, "NCCL interface", "eth1, which is down"),
        ({"environment": {"NCCL_SOCKET_IFNAME": "en"}}, "NCCL interface", "en, which is not there"),
        ({"rendezvous": {"seen": None}}, "disk", "rank 1 did not see another task's file"),
        ({"rendezvous": {"problem": "gloo: timed out"}}, "rendezvous", "rank 1 on n1: gloo: timed"),
        ({"done": False}, "rendezvous", "rank 1 on n1 did not end"),
    ],
)
def test_a_fault_is_named_with_the_task_and_what_to_do(changes, name, words):
    import re

    found = judged(changes)
    assert [key for key, check in found.items() if check.outcome == "failed"] == [name]
    assert re.search(words, found[name].detail), found[name].detail


def test_what_is_a_fault_on_several_nodes_is_a_word_on_one():
    one = judged({"address": "127.0.1.1"}, hosts=("n0", "n0"))
    assert one["gloo interface"].outcome == "ok"
    assert "set GLOO_SOCKET_IFNAME" in one["gloo interface"].detail
    # NCCL's prefixes, exact names and exclusions.
    for chosen in ("ib", "=ib0", "^docker0,lo"):
        assert (
            judged({"environment": {"NCCL_SOCKET_IFNAME": chosen}})["NCCL interface"].outcome
            == "ok"
        )


def test_the_requeue_of_rank_0_counts():
    tasks = [{**copy.deepcopy(FOUND), "requeue": {"allowed": False, "problem": None}}]
    found = {check.name: check for check in check_tasks(tasks, Requested(1, 4, 1, "slurm"))}
    assert "Requeue=0" in found["scontrol requeue"].detail
    tasks[0]["requeue"]["problem"] = "`scontrol` is not installed on the node"
    found = {check.name: check for check in check_tasks(tasks, Requested(1, 4, 1, "slurm"))}
    assert found["scontrol requeue"].detail.startswith("`scontrol` is not installed")


def test_no_report_at_all():
    found = {check.name: check for check in check_tasks([], REQUESTED)}
    assert found["tasks"].outcome == "skipped"
    assert not [check for check in found.values() if check.outcome == "ok"]


def test_interfaces_and_names_are_the_systems():
    found = task.interfaces()
    assert set(found) == {name for _, name in socket.if_nameindex()}
    assert found["lo"] == {"address": "127.0.0.1", "up": True, "loopback": True}
    assert task.resolved("localhost") == "127.0.0.1"
    assert task.resolved("no-such-host.invalid") is None


def test_the_profile_belongs_to_the_cluster(capsys):
    assert main(["doctor", "--profile", "example"]) == 2
    assert "--profile is of --cluster" in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_on_this_machine(tmp_path):
    """From the command line to the checks, with two tasks; nothing is left behind."""
    done = subprocess.run(
        [sys.executable, "-m", "intl_transfer", "doctor", "--cluster", "local", "--json"],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)["checks"]}
    assert rows["tasks"]["figure"] == "2 of 2 reported"
    assert rows["rendezvous"]["figure"].startswith("gloo ")
    assert "seen by another task" in rows["disk"]["figure"]
    assert rows["scontrol requeue"]["outcome"] == "not here"
    assert list((tmp_path / "runs" / "doctor").iterdir()) == []
