"""Graphs of jobs on a real SLURM: what is submitted, what is not, and what a failure stops."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from intl_transfer.errors import UserError
from slurm import controller, graph, launching
from slurm.ledger import Job, Ledger, close_to_others
from slurm.outcomes import status
from tests.pretrain.running import ROOT
from tests.slurm.cluster import addressed
from tests.slurm.work import MANIFEST, chain, make_job, starts


@pytest.fixture
def here(cluster, monkeypatch):
    """This process talks to the cluster."""
    return addressed(cluster, monkeypatch)


def launch(root, jobs, wait=False, capsys=None):
    code = launching.launch(root, "slurm", jobs, wait)
    return code, capsys.readouterr().out if capsys else ""


def states(root):
    ledger, rows = Ledger.read(root), controller.queue()
    return {key: status(n, ledger, rows) for key, n in ledger.jobs.items()}


def show(cluster, root, *options):
    done = subprocess.run(
        [sys.executable, str(ROOT / "slurm" / "status.py"), str(root), *options],
        env=cluster.environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_what_is_done_or_in_the_queue_is_not_submitted(here, tmp_path, capsys):
    (tmp_path / "HOLD").touch()
    code, output = launch(tmp_path, chain(tmp_path), capsys=capsys)
    jobs = {key: n.job_id for key, n in Ledger.read(tmp_path).jobs.items()}
    # Children that are alike share an array.
    assert jobs["one"].split("_")[0] == jobs["two"].split("_")[0]
    assert states(tmp_path)["one"].state == "waiting"
    assert states(tmp_path)["one"].detail == "for parent"
    code, output = launch(tmp_path, chain(tmp_path), capsys=capsys)
    assert "nothing to submit" in output
    assert f"one as job {jobs['one']}" in output
    (tmp_path / "HOLD").unlink()
    code, output = launch(tmp_path, chain(tmp_path), wait=True, capsys=capsys)
    assert code == 0
    assert output.rstrip().endswith("4 finished")
    code, output = launch(tmp_path, chain(tmp_path), wait=True, capsys=capsys)
    assert (code, "nothing to submit" in output) == (0, True)
    assert [starts(tmp_path / name) for name in jobs] == [1, 1, 1, 1]
    # Run directories decide: one that is gone is made again, and what comes after it.
    shutil.rmtree(tmp_path / "two")
    code, output = launch(tmp_path, chain(tmp_path), wait=True, capsys=capsys)
    assert code == 0
    assert [starts(tmp_path / name) for name in jobs] == [1, 1, 1, 2]


@pytest.mark.slow
def test_jobs_are_the_same_wherever_they_are_launched(here, tmp_path, capsys, monkeypatch):
    """Within a job of an array they took its id for theirs, and failed; sbatch and squeue prefer
    variables to what they are told.
    """
    inside = {"JOB_ID": "77", "ARRAY_JOB_ID": "77", "ARRAY_TASK_ID": "3", "MEM_PER_CPU": "10"}
    for name, value in {**inside, "NTASKS": "9", "CPU_BIND": "mask_cpu:0x1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SBATCH_JOB_NAME", "mine")
    monkeypatch.setenv("SBATCH_PARTITION", "high")
    monkeypatch.setenv("SBATCH_EXPORT", "NONE")
    monkeypatch.setenv("SQUEUE_PARTITION", "high")
    jobs = [make_job(tmp_path, name, partition="main", mem="100MB") for name in ("one", "two")]
    code, output = launch(tmp_path, [*jobs, make_job(tmp_path, "three")], True, capsys)
    assert code == 0, output
    assert output.rstrip().endswith("3 finished")
    assert [starts(tmp_path / name) for name in ("one", "two", "three")] == [1, 1, 1]


@pytest.mark.slow
def test_a_parent_that_fails_cancels_its_children_and_status_says_so(here, tmp_path, capsys):
    (tmp_path / "FAIL-parent").touch()
    code, output = launch(tmp_path, chain(tmp_path), wait=True, capsys=capsys)
    assert code == 1
    found = states(tmp_path)
    assert (found["parent"].state, found["parent"].detail) == ("failed", "asked to fail")
    for child in ("one", "two"):
        assert (found[child].state, found[child].detail) == ("cancelled", "parent did not finish")
    assert found["last"].state == "finished"  # the table comes out all the same
    code, output = show(here, tmp_path)
    assert code == 1
    assert "parent did not finish" in output
    assert "1 failed, 2 cancelled" in output or "2 cancelled, 1 failed" in output
    # Put right, it is one command.
    (tmp_path / "FAIL-parent").unlink()
    code, output = show(here, tmp_path, "--retry-failed", "--wait")
    assert code == 0, output
    assert "relaunching 3 job(s)" in output
    assert output.rstrip().endswith("4 finished")


@pytest.mark.slow
def test_a_cancelled_graph_is_launched_again(here, tmp_path, capsys):
    (tmp_path / "HOLD").touch()
    launch(tmp_path, chain(tmp_path), capsys=capsys)
    parent = Ledger.read(tmp_path).jobs["parent"].job_id
    here.wait_for(parent, "RUNNING")
    code, output = show(here, tmp_path, "--cancel")
    assert "4 job(s) cancelled" in output
    here.wait_for(parent, "CANCELLED")
    found = states(tmp_path)
    assert {state.state for state in found.values()} <= {"interrupted", "cancelled"}
    (tmp_path / "HOLD").unlink()
    code, output = launch(tmp_path, chain(tmp_path), wait=True, capsys=capsys)
    assert code == 0, output


def test_jobs_of_a_launcher_that_died_are_found(here, tmp_path, capsys, monkeypatch):
    """Killed between `sbatch` and the ledger: no job is submitted twice."""
    (tmp_path / "HOLD").touch()
    jobs = [make_job(tmp_path, "one"), make_job(tmp_path, "two")]

    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(graph, "record", die)
        with pytest.raises(Killed):
            launch(tmp_path, jobs)
    assert Ledger.read(tmp_path).jobs["one"].job_id is None
    _, output = launch(
        tmp_path, [make_job(tmp_path, "one"), make_job(tmp_path, "two")], capsys=capsys
    )
    assert "nothing to submit" in output
    jobs = [n.job_id for n in Ledger.read(tmp_path).jobs.values()]
    assert [job.split("_")[1] for job in jobs] == ["0", "1"]
    here.run("scancel", *jobs)


def test_arrays_are_no_larger_than_the_site_allows(here, tmp_path, capsys, monkeypatch):
    assert controller.largest_array() == 1001
    monkeypatch.setattr(controller, "largest_array", lambda: 2)
    (tmp_path / "HOLD").touch()
    launch(tmp_path, [make_job(tmp_path, name) for name in "abcde"])
    jobs = [n.job_id.split("_")[0] for n in Ledger.read(tmp_path).jobs.values()]
    assert [jobs.count(job) for job in dict.fromkeys(jobs)] == [2, 2, 1]
    here.run("scancel", *jobs)


def test_what_slurm_refuses_is_one_clear_line_and_leaves_nothing_behind(here, tmp_path):
    with pytest.raises(UserError, match=r"SLURM rejects the job: .*invalid partition"):
        launch(tmp_path, [make_job(tmp_path, "one", partition="nowhere")])
    ledger = Ledger.read(tmp_path)
    assert ledger.submitting is None
    assert states(tmp_path)["one"].state == "not submitted"


def test_a_graph_that_is_refused_in_the_middle_is_completed_later(here, tmp_path, capsys):
    """What was submitted stays, and the rest waits for it, though it comes in another launch."""
    (tmp_path / "HOLD").touch()
    jobs = [
        make_job(tmp_path, "parent"),
        make_job(tmp_path, "child", ["parent"], partition="nowhere"),
    ]
    with pytest.raises(UserError, match="invalid partition"):
        launch(tmp_path, jobs)
    parent = Ledger.read(tmp_path).jobs["parent"].job_id
    jobs = [make_job(tmp_path, "parent"), make_job(tmp_path, "child", ["parent"])]
    _, output = launch(tmp_path, jobs, capsys=capsys)
    assert f"already in the queue: parent as job {parent}" in output
    child = Ledger.read(tmp_path).jobs["child"].job_id
    assert f"afterok:{parent}" in here.run("squeue", "-h", "-o", "%E", "-j", child)
    here.run("scancel", child, parent)


def test_a_busy_controller_is_asked_again_and_then_named(tmp_path, monkeypatch):
    """No answer is never taken for an empty queue: all jobs would be submitted twice."""
    fake = tmp_path / "squeue"
    fake.write_text(
        "#!/bin/sh\necho x >> $0.calls\n"
        "echo 'slurm_load_jobs error: Socket timed out on send/recv operation' >&2\nexit 1\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(controller, "_WAITS", (0, 0))
    with pytest.raises(UserError, match=r"does not answer `squeue`: .*Socket timed out"):
        controller.queue()
    assert len((tmp_path / "squeue.calls").read_text().split()) == 3


def test_a_damaged_ledger_says_what_to_do(tmp_path):
    (tmp_path / "jobs.json").write_text("{")
    with pytest.raises(UserError, match=r"jobs.json is damaged .* check squeue first"):
        Ledger.read(tmp_path)


def test_a_ledger_of_an_earlier_version_is_read_and_written_as_the_present_one(tmp_path):
    """`ledger_schema_1.json` was written by the last version that had `nodes` with their `job`."""
    shutil.copy(Path(__file__).parent / "ledger_schema_1.json", tmp_path / "jobs.json")
    earlier = json.loads((tmp_path / "jobs.json").read_text())
    ledger = Ledger.read(tmp_path)
    assert {key: job.job_id for key, job in ledger.jobs.items()} == {
        "pretrain/intl": "12",
        "coco/intl_seed0": None,
    }
    assert ledger.jobs["coco/intl_seed0"].parents == ["pretrain/intl"]
    assert ledger.submitting == earlier["submitting"]
    ledger.write()
    assert Ledger.read(tmp_path) == ledger
    written = json.loads((tmp_path / "jobs.json").read_text())
    for key, job in earlier["nodes"].items():
        job["job_id"] = job.pop("job")
        assert written["jobs"][key] == {**job, "submitted": None}  # which it did not know


def test_with_other_settings_the_stage_decides(tmp_path):
    """A finished run is not passed off as one of other settings; nor is it, where none changed."""
    ledger = Ledger(tmp_path, "local")
    (first,) = ledger.merge([make_job(tmp_path, "one")])
    graph.record(first, "1", str(tmp_path / "log"), first.title)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "manifest.json").write_text(json.dumps({**MANIFEST, "status": "finished"}))
    ledger.write()
    ledger = Ledger.read(tmp_path)
    assert graph.missing(ledger, ledger.merge([make_job(tmp_path, "one")]), {}) == []
    other = make_job(tmp_path, "one")
    other.settings = {"optim.epochs": 5}
    assert graph.missing(ledger, ledger.merge([other]), {}) == [other]


def test_a_profiles_secrets_are_for_its_user_alone(tmp_path):
    """Neither in the ledger nor in a file that others may read."""
    secrets = {"environment": {"WANDB_API_KEY": "s3cret"}, "setup": ["export TOKEN=s3cret"]}
    job = Job("a", "convert", "x", ["a"], {"nodes": 1, **secrets})
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm").chmod(0o755)
    close_to_others(tmp_path / "slurm")
    assert (tmp_path / "slurm").stat().st_mode & 0o007 == 0
    ledger = Ledger(tmp_path, "slurm", {"a": job})
    ledger.write()
    assert "s3cret" not in (tmp_path / "jobs.json").read_text()
    for file in tmp_path.iterdir():
        if file.is_file() and b"s3cret" in file.read_bytes():
            assert file.stat().st_mode & 0o077 == 0, file
    found = Ledger.read(tmp_path)
    assert found is not None
    assert found.jobs["a"].resources == job.resources
    assert job.resources["setup"] == secrets["setup"]
    (tmp_path / "jobs.private.json").unlink()
    found = Ledger.read(tmp_path)
    assert found is not None
    assert found.jobs["a"].resources == {"nodes": 1}
