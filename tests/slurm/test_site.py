"""A site that binds tasks to cores; seconds each."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest

from slurm import launching
from slurm import status as shown
from slurm.ledger import Ledger
from slurm.outcomes import status
from slurm.resources import Resources, crowded, fitting
from tests.pretrain.running import ROOT
from tests.slurm.cluster import addressed
from tests.slurm.work import MANIFEST, make_job, starts


@pytest.fixture
def here(site, monkeypatch):
    """This process talks to the cluster."""
    return addressed(site, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(("srun", "cores"), [([], 2), (["--cpus-per-task=1"], 1)])
def test_a_task_is_bound_to_all_the_cores_it_asked_for(here, tmp_path, srun, cores):
    """Without handing the number on to srun, SLURM 22.05 binds it to one; doctor says so."""
    profile = tmp_path / "site.yaml"
    words = json.dumps(["--cpu-bind=cores", *srun])
    profile.write_text(f"nodes: 2\ngpus_per_node: 0\ncpus_per_gpu: 2\nsrun: {words}\n")
    command = [sys.executable, str(ROOT / "slurm" / "check_cluster.py"), "--cluster=slurm"]
    done = subprocess.run(
        [*command, "--json", f"--profile={profile}", f"--output-dir={tmp_path}"],
        capture_output=True,
        text=True,
        timeout=200,
        env=here.environment(),
    )
    rows = {row["name"]: row for row in json.loads(done.stdout)["checks"]}
    assert done.returncode == (0 if cores == 2 else 1), done.stdout + done.stderr
    if cores == 2:
        assert rows["affinity"]["figure"] == "2 core(s) a task"
    else:
        assert "may use 1 of the 2 that were asked for" in rows["affinity"]["detail"]


def job_of(root):
    return str(Ledger.read(root).jobs["one"].job_id)


def state_of(root):
    ledger = Ledger.read(root)
    return status(ledger.jobs["one"], ledger, launching.controller.queue())


@pytest.mark.slow
def test_a_job_that_is_preempted_is_cancelled_and_launched_again(here, tmp_path):
    (tmp_path / "HOLD").touch()
    assert launching.launch(tmp_path, "slurm", [make_job(tmp_path, "one", partition="main")]) == 0
    job = job_of(tmp_path)
    here.wait_for(job, "RUNNING")
    high = ["sbatch", "--parsable", "-p", "high", "-N2", "--exclusive", "--wrap", "sleep 1"]
    high = here.run(*high, "-o", "/dev/null", check=True)
    here.wait_for(high, "COMPLETED")  # both nodes were its own
    restarted = "Restarts=0" not in here.run("scontrol", "show", "job", job)
    # By SLURM's word it was PREEMPTED, or FAILED where the first signal met Python's start; or the
    # job had time to put itself back into the queue.
    assert restarted or state_of(tmp_path).bad
    (tmp_path / "HOLD").unlink()
    assert (
        launching.launch(tmp_path, "slurm", [make_job(tmp_path, "one", partition="main")], True)
        == 0
    )
    assert state_of(tmp_path).state == "finished"
    assert restarted or job_of(tmp_path) != job
    assert starts(tmp_path / "one") == 1


@pytest.mark.slow
def test_a_node_that_is_lost_gives_its_job_to_another(here, tmp_path):
    """Daemon and processes are gone at once; SLURM requeues when it knows."""
    (tmp_path / "HOLD").touch()
    assert launching.launch(tmp_path, "slurm", [make_job(tmp_path, "one")]) == 0
    job = job_of(tmp_path)
    here.wait_for(job, "RUNNING")
    lost = here.run("squeue", "-h", "-o", "%N", "-j", job)
    here.lose_node(lost, job)
    try:
        here.wait_for(job, "PENDING", "CONFIGURING", "RUNNING")
        (tmp_path / "HOLD").unlink()
        here.wait_for(job, "COMPLETED", "FAILED")
        assert state_of(tmp_path).state == "finished"
        assert here.run("squeue", "-h", "-t", "all", "-o", "%N", "-j", job) not in ("", lost)
        assert starts(tmp_path / "one") == 1
    finally:
        here.start_node(lost)


STOPS_ONCE = """
import json, sys
from pathlib import Path
folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
manifest = json.loads(sys.argv[2])
again = (folder / "starts").exists()
manifest["status"] = "finished" if again else "interrupted"
(folder / "manifest.json").write_text(json.dumps(manifest))
with open(folder / "starts", "a") as file:
    file.write("start\\n")
sys.exit(0 if again else 75)
"""


@pytest.mark.slow
def test_within_salloc_jobs_of_this_machine_leave_the_allocation_alone(here, tmp_path):
    """A run that wants to be continued is, and the shell's own job is not put into the queue."""
    code = (
        "import os, sys; from pathlib import Path; from slurm import launching;"
        "from tests.slurm import work, test_site; work.SCRIPT = test_site.STOPS_ONCE;"
        "root = Path(sys.argv[1]); (root / 'job').write_text(os.environ['SLURM_JOB_ID']);"
        "sys.exit(launching.launch(root, 'local', [work.make_job(root, 'one', cluster='local')]))"
    )
    done = subprocess.run(
        ["salloc", "-N1", "-n1", sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env=here.environment(),
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "saved at its time limit; continuing" in done.stdout
    assert starts(tmp_path / "one") == 2
    allocation = (tmp_path / "job").read_text()
    here.wait_for(allocation, "COMPLETED", seconds=60)
    assert "Restarts=0" in here.run("scontrol", "show", "job", allocation)


@pytest.mark.slow
def test_status_without_a_controller_is_what_run_directories_say(tmp_path, capfd, monkeypatch):
    """At once: it does not wait for a controller that is not there."""
    ledger = Ledger(tmp_path, "slurm")
    names = ("done", "runs", "new", "absent")
    jobs = ledger.merge([make_job(tmp_path, name) for name in names])
    for number, item in enumerate(jobs):
        item.job_id = None if item.key == "absent" else str(number)
    for name, state in (("done", "finished"), ("runs", "running")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps({**MANIFEST, "status": state}))
    (tmp_path / "done" / "results.json").write_text("{}")
    ledger.write()
    (tmp_path / "squeue").write_text(
        "#!/bin/sh\necho 'slurm_load_jobs error: no route' >&2\nexit 1\n"
    )
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    began = time.monotonic()
    assert shown.show([tmp_path], watch=False) == 0
    assert time.monotonic() - began < 5
    out, err = capfd.readouterr()
    assert "SLURM does not answer `squeue`: slurm_load_jobs error: no route; states of jobs" in err
    lines = {line.split()[1]: line for line in out.splitlines() if line.startswith("pretrain")}
    assert " finished " in lines["done"]
    assert " running " in lines["runs"]
    assert "according to its run directory" in lines["runs"]
    assert " submitted " in lines["new"]
    assert "not submitted" in lines["absent"]


def test_loaders_fit_the_cores_of_a_rank():
    requested = Resources(cluster="slurm", gpus_per_node=4, cpus_per_gpu=4)
    assert fitting(8, "data.workers", ["seed=1"], requested) == ["data.workers=4"]
    assert fitting(4, "data.workers", [], requested) == []
    assert fitting(8, "data.workers", ["data.workers=8"], requested) == []  # as the user has it
    assert "exceeds the 4 core(s) of a rank" in crowded(
        8, "data.workers", ["data.workers=8"], requested
    )
    assert crowded(4, "data.workers", [], requested) is None
    # One task per node starts four processes.
    whole = dataclasses.replace(requested, ranks_per_node=1, cpus_per_gpu=16)
    key = "DATALOADER.NUM_WORKERS"
    assert fitting(8, key, [], whole, 4) == [key, "4"]
    assert fitting(8, key, [key, "6"], whole, 4) == []
    # On this machine, tasks share what there is.
    here = Resources(cluster="local", gpus_per_node=0, cpus_per_gpu=10)
    assert fitting(1000, "data.workers", [], here) == [
        f"data.workers={min(10, len(os.sched_getaffinity(0)))}"
    ]
