"""Graphs on this machine: bounded, in order, stopped in order, and continues."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import datetime
from functools import partial

import pytest

from intl_transfer.errors import UserError
from intl_transfer.runs.lock import directory_lock
from slurm import launching
from slurm.ledger import Ledger, find
from slurm.local import Local, fit, visible_gpus
from slurm.outcomes import Progress, progress, status
from slurm.resources import Resources
from slurm.status import by_hand, cancel, survey
from tests.pretrain.running import ROOT
from tests.slurm.work import MANIFEST, chain, make_job, starts


@pytest.mark.slow
def test_a_failure_cancels_what_depends_on_it_with_the_reason(tmp_path, capsys):
    (tmp_path / "FAIL-parent").touch()
    assert launching.launch(tmp_path, "local", chain(tmp_path, "local"), parallel=2) == 1
    output = capsys.readouterr().out
    assert "parent: failed, asked to fail" in output
    assert "one: cancelled, parent did not finish" in output
    assert "1 failed, 2 cancelled, 1 finished" in output
    found = Ledger.read(tmp_path).jobs
    assert (found["two"].outcome, found["two"].reason) == ("cancelled", "parent did not finish")
    (tmp_path / "FAIL-parent").unlink()
    assert launching.launch(tmp_path, "local", chain(tmp_path, "local"), parallel=2) == 0
    assert launching.launch(tmp_path, "local", chain(tmp_path, "local"), parallel=2) == 0
    assert "nothing to submit" in capsys.readouterr().out
    assert [starts(tmp_path / name) for name in ("parent", "one", "two", "last")] == [2, 1, 1, 2]


@pytest.mark.slow
def test_no_more_run_at_a_time_than_asked_for(tmp_path):
    (tmp_path / "HOLD").touch()
    ledger = Ledger(tmp_path, "local")
    jobs = ledger.merge([make_job(tmp_path, name, cluster="local") for name in "abc"])
    seen = []

    def look():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and seen.count(2) < 20:
            there = Ledger.read(tmp_path)
            outcomes = [n.outcome for n in there.jobs.values()] if there else []
            seen.append(outcomes.count("running"))
            time.sleep(0.05)
        (tmp_path / "HOLD").unlink()

    watcher = threading.Thread(target=look)
    watcher.start()
    Local(ledger, parallel=2).run(jobs)
    watcher.join()
    assert max(seen) == 2
    assert [n.outcome for n in jobs] == ["finished"] * 3


def launcher_of(root, jobs, **how):
    """A process that launches jobs, which an expression makes."""
    code = (
        "import sys; from pathlib import Path; from slurm import launching;"
        "from tests.slurm.work import chain, make_job; root = Path(sys.argv[1]);"
        f"sys.exit(launching.launch(root, 'local', {jobs}))"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(root)], cwd=ROOT, **how)


def when_running(root, key, seconds):
    """The ledger, once a job runs."""
    deadline = time.monotonic() + seconds
    while (there := Ledger.read(root)) is None or there.jobs[key].outcome != "running":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return there


@pytest.mark.slow
def test_a_launcher_that_is_stopped_leaves_no_job_behind(tmp_path):
    """`status --cancel`, from another process; then the same again."""
    (tmp_path / "HOLD").touch()
    launcher = launcher_of(tmp_path, "chain(root, 'local')")
    there = when_running(tmp_path, "parent", 60)
    assert status(there.jobs["parent"], there, None).state == "running"
    assert status(there.jobs["one"], there, None).state == "waiting"
    job = int(there.jobs["parent"].job_id)
    time.sleep(3)  # until the job listens
    command = [sys.executable, str(ROOT / "slurm" / "status.py"), str(tmp_path), "--cancel"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "4 job(s) cancelled" in done.stdout, done.stdout + done.stderr
    assert launcher.wait(60) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(job, 0)
    there = Ledger.read(tmp_path)
    assert status(there.jobs["parent"], there, None).state == "interrupted"
    assert status(there.jobs["one"], there, None).state == "cancelled"
    (tmp_path / "HOLD").unlink()
    assert launching.launch(tmp_path, "local", chain(tmp_path, "local")) == 0


@pytest.mark.slow
def test_a_launcher_whose_output_nobody_reads_stops_its_jobs(tmp_path):
    """`| tee log` is ended by the same Ctrl-C; the jobs went on without their launcher."""
    (tmp_path / "HOLD").touch()
    # Where the tests run in the background of a script, SIGINT is ignored, and that is inherited.
    listens = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    jobs = "[make_job(root, 'one', cluster='local')]"
    launcher = launcher_of(tmp_path, jobs, stdout=subprocess.PIPE, preexec_fn=listens)
    try:
        there = when_running(tmp_path, "one", 120)
        launcher.stdout.close()
        time.sleep(3)  # until the job listens
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(120) == 130
    finally:
        launcher.terminate()
        launcher.wait(60)
    with pytest.raises(ProcessLookupError):
        os.kill(int(there.jobs["one"].job_id), 0)
    there = Ledger.read(tmp_path)
    assert (there.jobs["one"].outcome, there.launcher) == ("interrupted", None)


def test_a_launcher_that_was_killed_is_not_waited_for(tmp_path):
    ledger = Ledger(tmp_path, "local")
    (running,) = ledger.merge([make_job(tmp_path, "one", cluster="local")])
    running.outcome, running.job_id = "running", "1"
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    ledger.launcher = {"pid": child.pid, "host": os.uname().nodename}
    assert status(running, ledger, None).state == "failed"
    ledger.launcher["pid"] = os.getpid()
    assert status(running, ledger, None).state == "running"
    ledger.launcher["host"] = "elsewhere"  # nobody can say
    assert status(running, ledger, None).state == "running"


def test_fewer_gpus_than_asked_for_are_used(tmp_path):
    requested = Resources(cluster="local", gpus_per_node=8, gres="gpu:a100:8")
    assert (fit(requested, 2).gpus_per_node, fit(requested, 2).gres) == (2, None)
    assert fit(requested, None) is requested


def test_each_job_has_gpus_of_its_own(tmp_path, monkeypatch):
    """Two jobs of two GPUs on a machine of four."""
    given = []

    class Job:
        job_id, num_tasks = "1", 1

        class paths:
            stdout = tmp_path / "1_0_log.out"

        def done(self):
            return True

    def submit(_, work):
        given.append(work[0].environment.get("CUDA_VISIBLE_DEVICES"))
        return [Job()]

    monkeypatch.setattr("slurm.executors.submit", submit)
    monkeypatch.setattr("slurm.local._result", lambda job: "failed")
    ledger = Ledger(tmp_path, "local")
    jobs = [make_job(tmp_path, name, cluster="local", gpus_per_node=2) for name in "abc"]
    Local(ledger, gpus=["4", "GPU-5", "6", "7"]).run(ledger.merge(jobs))
    assert given == ["4,GPU-5", "6,7", "4,GPU-5"]
    job = make_job(tmp_path, "d", cluster="local")  # without a GPU: not another job's
    Local(ledger, gpus=["4"]).run(ledger.merge([job]))
    assert given[-1] == ""
    with pytest.raises(UserError, match=r"needs 2 GPU\(s\); this machine has 1"):
        Local(ledger, gpus=["0"]).run(jobs)


def test_progress_comes_from_the_end_of_the_metrics(tmp_path):
    manifest = {**MANIFEST, "config": {"SOLVER": {"MAX_ITER": 100}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert progress(tmp_path) is None
    rows = [{"time": 10.0 + i, "iteration": 2 * i, "total_loss": 1.0} for i in range(21)]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"time": 99, "iter')
    found = progress(tmp_path)
    assert found == Progress(0.4, pytest.approx(30.0), "40/100")  # 60 left, 2 a second


def test_time_in_the_queue_is_not_time_of_computing(tmp_path):
    """A run that waited ten hours between two sessions had them in its ETA."""
    began = "2026-01-01T10:00:00+00:00"
    start = datetime.fromisoformat(began).timestamp()
    manifest = {**MANIFEST, "config": {"SOLVER": {"MAX_ITER": 100}}, "sessions": [{}]}
    manifest["sessions"].append({"started": began})
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    rows = [{"time": start - 36_000 + i, "iteration": 2 * i} for i in range(10)]
    rows += [{"time": start + 5, "iteration": 20}]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(lines)
    assert progress(tmp_path) == Progress(0.2, None, "20/100")  # no rate yet
    (tmp_path / "metrics.jsonl").write_text(
        lines + json.dumps({"time": start + 10, "iteration": 30})
    )
    assert progress(tmp_path) == Progress(0.3, pytest.approx(35.0), "30/100")


def test_gpus_are_named_as_the_environment_names_them(monkeypatch):
    """By UUID or MIG, as sites do; jobs were given the first ones of the machine instead."""
    import torch

    for named, count, expected in (
        ("GPU-a,MIG-b", 2, ["GPU-a", "MIG-b"]),
        ("2, 3", 2, ["2", "3"]),
        ("0,1,2,3", 0, []),  # of another machine
        ("", 0, []),
        (None, 2, ["0", "1"]),
    ):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if named is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert visible_gpus() == expected


def test_folders_of_any_name_are_looked_into(tmp_path):
    """Ledgers beside a ledger are of its logs and copies of the sources; runs are everywhere."""
    for name in ("codec", "slurm", "mine"):
        Ledger(tmp_path / name, "local").write()
    for name in ("code", "code1", "slurm"):
        Ledger(tmp_path / "mine" / name, "local").write()
        (tmp_path / "mine" / name / "run").mkdir()
        (tmp_path / "mine" / name / "run" / "manifest.json").write_text(json.dumps(MANIFEST))
    assert [ledger.folder.name for ledger in find([tmp_path])] == ["codec", "mine", "slurm"]
    assert [run.parent.name for run in by_hand([tmp_path])] == ["code", "code1", "slurm"]


def test_a_run_by_hand_whose_process_is_gone_is_not_running(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_text(json.dumps(MANIFEST))
    assert survey([tmp_path])[0].status.state == "running"
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    (run / ".lock").write_text(f"process {done.pid} on {socket.gethostname()}, started 1\n")
    found = survey([tmp_path])[0].status
    assert found.state == "interrupted"
    assert found.detail == f"its process {done.pid} has ended without recording it"


def test_status_also_shows_runs_by_hand_and_names_a_damaged_one(tmp_path):
    for name, text in (("good", json.dumps(MANIFEST)), ("damaged", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(text)
    (tmp_path / "good" / "metrics.jsonl").write_text('{"time": 1.0, "epoch": 1.0}\n')
    command = [sys.executable, str(ROOT / "slurm" / "status.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert re.search(r"pretrain +\S+/good +running +25% epoch 1.0/4", done.stdout), done.stdout
    assert re.search(r"damaged +failed .*not valid JSON", done.stdout), done.stdout
    absent = subprocess.run([*command, "nowhere"], capture_output=True, text=True, timeout=60)
    assert absent.returncode == 2
    assert absent.stderr.startswith("error: nowhere is not a folder")


def test_a_run_whose_launcher_was_killed_is_running_and_can_be_cancelled(tmp_path, capsys):
    """It was `failed`, and `--cancel` cancelled nothing, while it trained on."""
    folder = tmp_path / "one"
    code = (
        "import sys, time\nfrom intl_transfer.runs.lock import directory_lock\n"
        "with directory_lock(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as orphan:
        assert orphan.stdout.readline() == "held\n"
        (folder / "manifest.json").write_text(json.dumps(MANIFEST))
        ledger = Ledger(tmp_path, "local")
        (job,) = ledger.merge([make_job(tmp_path, "one", cluster="local")])
        job.job_id, job.outcome = "1", "running"
        ended = subprocess.Popen(["true"])
        ended.wait()
        ledger.launcher = {"pid": ended.pid, "host": socket.gethostname(), "started": 1}
        ledger.write()
        (entry,) = survey([tmp_path])
        found = entry.status
        assert (found.state, found.detail) == (
            "running",
            f"process {orphan.pid}; its launcher has ended",
        )
        assert cancel([tmp_path]) == 0
        assert "1 job(s) cancelled" in capsys.readouterr().out
        assert orphan.wait(20) == -signal.SIGTERM
    (entry,) = survey([tmp_path])
    assert entry.status.state == "failed"


def test_a_launch_that_is_refused_writes_nothing(tmp_path):
    """The running launcher's sweep.yaml was that of the refused one."""

    def refused(*more):
        with pytest.raises(UserError, match=more[0]):
            launching.launch_copy(
                *(tmp_path, "local", lambda code: [make_job(tmp_path, "one", cluster="local")]),
                ROOT,
                files={"sweep.yaml": "new"},
            )
        assert sorted(path.name for path in tmp_path.iterdir()) == list(more[1:])

    with directory_lock(tmp_path / "slurm"):
        refused("in use by", "slurm")
