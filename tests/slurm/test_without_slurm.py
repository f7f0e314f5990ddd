"""What the launchers do where there is no SLURM, or before it is asked."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from intl_transfer.data.made import MADE
from intl_transfer.errors import UserError
from intl_transfer.runs import read_results
from intl_transfer.runs.directory import git_state
from slurm import controller, graph, jobs, launch_detection, launch_pretrain, launching, resources
from slurm.benchmark import Benchmark, BenchmarkPlan, Made, make_data, read
from slurm.executors import make_executor, parse_seeds, with_sources
from slurm.jobs import StageFailedError, StageJob, reachable, require_finished, snapshot
from slurm.ledger import Ledger
from slurm.outcomes import converted, last_error, run_status, settled_status
from slurm.status import survey
from slurm.sweep import SweepPlan
from slurm.sweep import read as read_sweep
from tests.pretrain.running import ROOT, TINY
from tests.results.synthetic import pretraining_run
from tests.slurm.work import MANIFEST, make_job

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
    requested = ["--gpus-per-node=0", "--ranks-per-node=2", "--wait"]
    done = launch(images, tmp_path / "run", *requested, path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "local: 1 job(s) of 1 node(s) x 2 rank(s)" in done.stdout
    assert done.stdout.rstrip().endswith("finished")
    assert read_results(tmp_path / "run")["steps"] == 6
    again = launch(images, tmp_path / "run", *requested, path=tmp_path)
    assert "nothing to submit" in again.stdout
    # One copy of the sources, of the launch that submitted something.
    assert [path.name for path in (tmp_path / "run").glob("code*")] == ["code"]


@pytest.mark.slow
def test_a_job_that_fails_says_so(images, tmp_path):
    requested = ["--gpus-per-node=0", "--wait", "data.root=/nowhere"]
    done = launch(images, tmp_path / "run", *requested, path=tmp_path)
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


def test_texts_of_a_profile_are_what_is_written(tmp_path):
    """They were the integers that YAML 1.1 reads: 83, 750, 493 and 1000."""
    profile = tmp_path / "site.yaml"
    texts = {"partition": "0123", "account": "12:30", "constraint": "0x10"}
    lines = [f"{key}: {text}" for key, text in texts.items()]
    profile.write_text("\n".join([*lines, "environment: {MASK: 0755, T: 1_000}", "nodes: 1_0"]))
    found = resources.checked({**resources.profile(str(profile)), "cluster": "slurm"}, "x")
    assert {key: getattr(found, key) for key in texts} == texts
    assert (found.environment, found.nodes) == ({"MASK": "0755", "T": "1_000"}, 10)


def test_a_profiles_path_follows_the_copy(tmp_path, monkeypatch):
    """It was replaced."""
    monkeypatch.setenv("PYTHONPATH", "/shell")
    job = make_job(tmp_path, "one", environment={"PYTHONPATH": "/site/libs"})
    job.command[1] = "/code/pretrain/train.py"
    assert graph.stage_job(job).environment["PYTHONPATH"] == "/code:/site/libs"
    assert with_sources({}, Path("/code"))["PYTHONPATH"] == "/code:/shell"


def test_data_are_made_where_the_jobs_look(tmp_path, monkeypatch):
    """They were made in ./datasets."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    made = []
    one = SimpleNamespace(spec=MADE["shapes"].spec, is_complete=lambda *_: False)
    one.make = lambda root, _: made.append(root)
    monkeypatch.setitem(MADE, "shapes", one)
    make_data(Benchmark(shapes=Made(make=True)), lambda _: None)
    assert made == [tmp_path / "shapes"]


@pytest.mark.parametrize(
    "words", [["--seeds", "2", "seed=7"], ["--output-dir", "x", "output_dir=y"]]
)
def test_what_the_launcher_sets_is_not_dropped(words, monkeypatch, capsys):
    arguments = [*LAUNCH[2:], "--dry-run", *words]
    monkeypatch.setattr(sys, "argv", ["launch_pretrain.py", *arguments])
    assert launch_pretrain.main() == 2
    assert (
        f"'{words[-1]}' would have no effect: {words[0]} is {words[1]}" in capsys.readouterr().err
    )


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
    assert parse_seeds("5", "--seeds") == [0, 1, 2, 3, 4]
    assert parse_seeds("7,", "--seeds") == [7]
    assert parse_seeds(None, "--seeds") == []


def test_a_copy_without_git_has_all_that_jobs_run(tmp_path, monkeypatch):
    """An archive, or a clone of another user's, which git refuses: conversion, evaluations and the
    report are scripts in slurm/, and failed.
    """
    monkeypatch.setenv("PATH", str(tmp_path))
    copied = snapshot(ROOT, tmp_path / "code")
    for name in ("slurm/convert.py", "slurm/module.py", "pretrain/train.py", "configs/pretrain"):
        assert (copied / name).exists()
    assert not (copied / "configs" / "slurm").exists()


def test_a_name_that_is_no_text_does_not_stop_a_copy(tmp_path):
    root = tmp_path / "clone"
    (root / "pretrain").mkdir(parents=True)
    (root / "pretrain" / "train.py").touch()
    (root / os.fsdecode(b"r\xe9sultats.txt")).touch()
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    assert (snapshot(root, tmp_path / "code") / "pretrain" / "train.py").exists()


def test_a_snapshot_is_what_was_there(tmp_path):
    copied = snapshot(ROOT, tmp_path / "code")
    for name in ("pretrain/train.py", "intl_transfer/spectral/losses.py", "configs/pretrain"):
        assert (copied / name).exists()
    assert (copied / "pretrain/train.py").read_text() == (ROOT / "pretrain/train.py").read_text()
    assert json.loads((copied / "REVISION.json").read_text()) == git_state(ROOT)
    assert git_state(copied) == git_state(ROOT)
    assert not (copied / "tests").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain/train.py", "--config", "shapes_r18"],
        ["detection/train_net.py", "--config", "shapes_coco_R18_C4"],
        ["slurm/convert.py", "run", "out.pth"],
        ["slurm/module.py", "intl_transfer", "evaluate", "--config", "shapes_knn"],
        ["slurm/module.py", "intl_transfer.results", "runs"],
        ["slurm/module.py", "intl_transfer.machine.task", "folder"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_jobs_run_the_copy_although_they_start_in_the_clone(tmp_path, words):
    copied = snapshot(ROOT, tmp_path / "code")
    (copied / "intl_transfer" / "errors.py").write_text('raise SystemExit("of the copy")\n')
    environment = with_sources(dict(os.environ), copied)
    command = [sys.executable, str(copied / words[0]), *words[1:]]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (1, "of the copy")


@pytest.mark.parametrize("name", ["shapes_methods", "photo_cutouts", "sweep_axis"])
def test_every_job_of_a_plan_names_a_script_of_the_copy(tmp_path, name):
    copied = tmp_path / "code"
    if name.startswith("sweep"):
        made = SweepPlan(read_sweep(name, []), name, tmp_path, copied, {}, {"cluster": "local"}, 0)
    else:
        made = BenchmarkPlan(read(name, []), name, tmp_path, copied, {}, {"cluster": "local"}, 0)
    jobs = made.jobs()
    assert {"pretrain", "evaluation", "collect"} <= {job.stage for job in jobs}
    for job in jobs:
        assert job.command[0] == sys.executable
        assert Path(job.command[1]).is_relative_to(copied), job.command


def test_names_that_resolve_are_left_as_they_are():
    assert reachable("127.0.0.1") == "127.0.0.1"
    assert reachable("localhost") == "localhost"


def fake(folder, name, text):
    """A program first on the path."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


@pytest.mark.parametrize(
    ("answer", "address"),
    [
        ('[ "$1" = getaddrs ] && echo "node7: 10.0.0.7:6818"', "10.0.0.7"),
        ('[ "$1" = getaddrs ] && echo "node7: [fd00::7]:6818"', "fd00::7"),
        ('[ "$1" = show ] && echo "   NodeAddr=10.0.0.8 NodeHostName=node7"', "10.0.0.8"),
        ("exit 1", "node7.invalid"),
    ],
)
def test_a_name_that_does_not_resolve_is_looked_up_in_slurm(tmp_path, monkeypatch, answer, address):
    fake(tmp_path, "scontrol", answer)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert reachable("node7.invalid") == address


def test_files_that_show_late_are_waited_for(tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    manifest = dict.fromkeys(("id", "stage", "name"), "")
    manifest.update(schema=1, status="running", config={}, seed=0, inputs=[], sessions=[])
    (run / "manifest.json").write_text(json.dumps(manifest))

    def later():
        (run / "manifest.json").write_text(json.dumps({**manifest, "status": "finished"}))

    timer = threading.Timer(0.7, later)
    timer.start()
    assert run_status(run) == "running"
    assert settled_status(run, 20) == "finished"
    require_finished(run)
    monkeypatch.setattr(jobs, "LATE_SECONDS", 1)
    with pytest.raises(StageFailedError, match=r"status 0, but .* without a readable manifest"):
        require_finished(tmp_path)
    timer.join()


def test_a_rank_that_was_not_told_itself_puts_the_job_back(tmp_path, monkeypatch):
    """The stage's ranks agree to stop; the signal may have reached another rank only."""
    fake(tmp_path, "scontrol", f'echo "$@" >> {tmp_path}/asked')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(jobs, "_PATIENCE", 0)
    monkeypatch.setattr(jobs, "_LAG", 0)
    slurm = {"JOB_ID": "7", "NTASKS": "1", "JOB_NUM_NODES": "1", "NODEID": "0"}
    slurm.update(PROCID="0", LOCALID="0", JOB_NODELIST="localhost", RESTART_COUNT="0")
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path))
    job = StageJob([sys.executable, "-c", "raise SystemExit(75)"], str(tmp_path), max_requeues=1)
    assert job() == "interrupted"
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(StageFailedError, match="requeued 1 times, the maximum"):
        job()


def test_a_busy_controller_is_asked_again_to_requeue(tmp_path, monkeypatch):
    """The job failed at once, with a traceback for its last words."""
    lines = f"echo x >> {tmp_path}/asked; echo busy >&2; test $(wc -l < {tmp_path}/asked) = 2"
    fake(tmp_path, "scontrol", lines)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(jobs, "_WAITS", (0, 0))
    jobs.ask_to_requeue("7")
    with pytest.raises(StageFailedError, match=r"`scontrol requeue 7` says: busy; launch it again"):
        jobs.ask_to_requeue("7")


def test_a_job_whose_submission_was_not_answered_is_looked_for(tmp_path, monkeypatch):
    """The controller may have taken it; it was forgotten, and submitted a second time."""
    says = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    fake(tmp_path, "sbatch", f"echo '{says}' >&2; exit 1")
    fake(tmp_path, "srun", "")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    ledger = Ledger(tmp_path, "slurm")
    (job,) = ledger.merge([make_job(tmp_path, "one")])
    with pytest.raises(UserError, match=r"timed out on send/recv operation\. It may be in the que"):
        list(graph.submit(ledger, [job], {}))
    later = Ledger.read(tmp_path)
    name = later.submitting["name"]
    graph.adopt(later, {"7": controller.Row("7", "PENDING", "", "Priority", name)})
    assert (later.jobs["one"].job_id, later.submitting) == ("7", None)


def test_jobs_of_a_killed_launcher_are_looked_for_before_launching_elsewhere(tmp_path, monkeypatch):
    """The queue was not asked, and they ran beside those on this machine."""
    ledger = Ledger(tmp_path, "slurm")
    ledger.merge([make_job(tmp_path, "one")])
    ledger.submitting = {"name": "work~abc", "keys": ["one"]}
    ledger.write()
    row = controller.Row("44", "RUNNING", "n1", "None", "work~abc")
    monkeypatch.setattr(controller, "available", lambda: True)
    monkeypatch.setattr(controller, "queue", lambda *_: {"44": row})
    with pytest.raises(UserError, match=r"1 job\(s\) are in SLURM's queue, the first: one"):
        launching.launch(tmp_path, "local", [make_job(tmp_path, "one", cluster="local")])
    (entry,) = survey([tmp_path])
    assert entry.status.state == "running"
    assert Ledger.read(tmp_path).submitting is not None  # a launcher may be at it
    # Where there is no queue to ask, they stay unknown.
    graph.adopt(ledger, None)
    assert ledger.submitting is not None


def test_gpus_of_a_gres_are_counted_as_slurm_counts_them():
    """Without a number it is one; there were eight ranks for it, by default."""
    counts = {"gpu": 1, "gpu:a100": 1, "gpu:2080ti:4": 4, "gpu:1g.5gb:2": 2, "gpu:a:2,gpu:b": 3}
    counts |= {"tmpfs:1T,gpu:v100:8(S:0-1)": 8, "gpu:1": 1, "gres/gpu:4": 4, "gpu=4": 4}
    for gres, number in counts.items():
        requested = resources.checked({"gres": gres, "cluster": "slurm"}, "x")
        assert requested.gpus_per_node == number, gres
    assert resources.layered({"gres": "gpu:a100"}, {"gpus_per_node": 2})["gres"] == "gpu:a100:2"


@pytest.mark.parametrize(
    ("gres", "requested"), [("shard:2", False), ("GPU:8", False), ("gpumem:4", True), ("x:1", True)]
)
def test_a_gres_without_a_number_of_gpus_needs_one(gres, requested):
    """There were eight ranks for two shares of a GPU, and no GPU beside a disk."""
    values = {"gres": gres, "cluster": "slurm"}
    with pytest.raises(UserError, match=f"x: gres {gres} has no known number of GPUs; give gpus"):
        resources.checked(values, "x")
    lines = script_of({**values, "gpus_per_node": 8})
    assert ("--gpus-per-node=8" in lines) == requested


def script_of(values):
    """The lines for sbatch."""
    executor = mock.Mock()
    with mock.patch("submitit.AutoExecutor", return_value=executor):
        make_executor(resources.checked(values, "x"), Path("x"), "name")
    given = executor.update_parameters.call_args[1]
    further = given.pop("slurm_additional_parameters")
    return [f"--{key.replace('_', '-')}={value}" for key, value in {**given, **further}.items()]


def test_options_of_sbatch_stand_there_once():
    """`false` was `--exclusive=False`, and `kill_on_invalid_dep` stood beside ours."""
    options = {"exclusive": False, "kill_on_invalid_dep": "no", "L": ["a", "b"], "nice": 0}
    lines = script_of({"cluster": "slurm", "sbatch": options})
    found = [line for line in lines if re.match("--(excl|kill|lic|nice|L)", line)]
    assert found == ["--kill-on-invalid-dep=no", "--licenses=a,b", "--nice=0"]


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="no sbatch here")
def test_letters_are_those_of_sbatch(tmp_path):
    (tmp_path / "slurm.conf").write_text("ClusterName=x\nSlurmctldHost=x\n")
    environment = {**os.environ, "SLURM_CONF": f"{tmp_path}/slurm.conf"}
    done = subprocess.run(["sbatch", "--help"], env=environment, capture_output=True, text=True)
    found = dict(re.findall(r"^ *-(\w), --([a-z-]+)", done.stdout, re.MULTILINE))
    assert len(found) > 20
    assert found.items() <= resources._LETTERS.items()


def test_a_job_cannot_be_told_to_save_before_it_begins():
    values = {"cluster": "slurm", "time": 2}
    with pytest.raises(UserError, match=r"x: signal_seconds is 120, and time is 2 minute"):
        resources.in_time(resources.checked(values, "x"), "x")
    resources.in_time(resources.checked({**values, "signal_seconds": 30}, "x"), "x")
    resources.in_time(resources.checked({**values, "cluster": "local"}, "x"), "x")


def test_sbatch_does_not_see_what_belongs_to_the_job_it_is_called_in():
    """And no variable of its own that contradicts the script: it would prefer the variable."""
    environment = dict.fromkeys(
        ["SLURM_CONF", "SLURM_ARRAY_JOB_ID", "SLURM_MEM_PER_CPU", "SUBMITIT_FOLDER", "HOME"], "x"
    )
    environment |= dict.fromkeys(["SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_WCKEY"], "x")
    environment |= {"SBATCH_TIMELIMIT": "5", "SBATCH_ARRAY_INX": "0-3", "SBATCH_GRES": "gpu:1"}
    stated = ["partition", "time", "job-name"]
    outside = ["SBATCH_PARTITION", "SBATCH_TIMELIMIT", "SBATCH_ARRAY_INX", "SBATCH_GRES"]
    assert controller.hidden(environment, stated) == outside
    inside = {**environment, "SLURM_JOB_ID": "12"}
    found = set(controller.hidden(inside, stated)) - set(outside)
    assert found == {
        *("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_MEM_PER_CPU", "SUBMITIT_FOLDER"),
    }


def test_an_array_is_not_throttled_unless_asked():
    """submitit's own limit is 256 at a time."""
    for parallel, limit in ((None, 1_000_000), (3, 3)):
        requested = resources.checked({"cluster": "slurm", "parallel": parallel}, "x")
        executor = mock.Mock()
        with mock.patch("submitit.AutoExecutor", return_value=executor):
            make_executor(requested, Path("x"), "name")
        assert executor.update_parameters.call_args[1]["slurm_array_parallelism"] == limit


def test_gres_and_the_number_of_gpus_cannot_differ():
    values = resources.layered({"gres": "gpu:a100:8,tmpfs:1T"}, {"gpus_per_node": 2})
    assert values == {"gres": "gpu:a100:2,tmpfs:1T", "gpus_per_node": 2}
    assert resources.checked({"gres": "gpu:4", "cluster": "slurm"}, "x").gpus_per_node == 4
    assert resources.layered({"gres": "gpu:4"}, {"gpus_per_node": 0})["gres"] is None
    with pytest.raises(UserError, match=r"x: gres gpu:4 has 4 .*, but gpus_per_node is 3"):
        resources.checked({"gres": "gpu:4", "gpus_per_node": 3}, "x")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nodez": 1}, "x: no key 'nodez'. Did you mean 'nodes'"),
        ({"nodes": "many"}, "x: nodes: .*many"),
        ({"time": 0}, "x: time is 0; expected at least 1"),
        ({"signal_seconds": -1}, "x: signal_seconds is -1; expected at least 0"),
        ({"sbatch": {"job_name": "mine"}}, "x: sbatch.job_name: the launcher sets it"),
        ({"sbatch": {"mail-user": "me"}}, "x: sbatch.mail-user: give it as mail_user"),
        ({"sbatch": {"p": "gpu"}}, "x: sbatch.p: give it as partition"),
        ({"sbatch": {"gpus": 8}}, "x: sbatch.gpus: give it as gpus_per_node"),
        ({"sbatch": {"r": 8}}, "x: sbatch.r: sbatch has no such option; give its long name"),
        ({"sbatch": {"a_b": 8, "a-b": 8}}, "x: sbatch.a-b: a-b a second time"),
        # YAML's own reading of `off`, `12.10` and `on`.
        ({"environment": {"WANDB_SILENT": True}}, "x: environment.WANDB_SILENT is a text"),
        ({"environment": {"CUDA": 12.1}}, r"x: environment.CUDA .* a number \(12.1\); put it in"),
        ({"partition": True}, "x: partition is a text, and YAML reads it as a truth value"),
        ({"cluster": "slrum"}, "x: cluster is 'slrum'.*Did you mean 'slurm'"),
    ],
)
def test_a_mistake_in_resources_names_the_key(values, message):
    with pytest.raises(UserError, match=message):
        resources.checked(values, "x")


def test_every_shipped_profile_can_be_used():
    for file in resources.PROFILES.glob("*.yaml"):
        assert resources.profile(file.stem)


def test_other_weights_under_the_same_name_are_other_settings(tmp_path):
    """A finished run was `already finished`, whatever its weights had become since."""
    weights = tmp_path / "intl.pth"
    weights.write_bytes(b"weights")
    made = make_job(tmp_path, "one")
    made.stage, made.settings = "detection", {"weights": str(weights), "optim.epochs": 4}
    made.made_with = made.settings
    assert made.changes() == {}  # there is no run yet
    (tmp_path / "one").mkdir()
    used = {"role": "weights", "sha256": hashlib.sha256(b"weights").hexdigest()}
    manifest = {**MANIFEST, "stage": "detection", "status": "finished", "inputs": [used]}
    (tmp_path / "one" / "manifest.json").write_text(json.dumps(manifest))
    assert made.changes() == {}
    weights.write_bytes(b"others")
    now = hashlib.sha256(b"others").hexdigest()
    assert made.changes() == {"weights sha256": {"before": used["sha256"], "now": now}}
    # What was converted anew from the same network of the same source is the same.
    source = {"source_sha256": "1" * 64, "branch": "online", "pixels": {"mean": [1.0]}}
    used["provenance"] = {**source, "pixels": {"mean": [1.0], "source": "stated"}}
    (tmp_path / "one" / "manifest.json").write_text(json.dumps(manifest))
    for change, differing in (
        ({}, set()),
        ({"branch": "target"}, {"weights branch"}),
        ({"pixels": {"mean": [2.0]}}, {"weights pixels"}),
        ({"source_sha256": "2" * 64}, {"weights sha256"}),
    ):
        report = {"provenance": {**source, **change}, "sha256": now}
        weights.with_suffix(".json").write_text(json.dumps(report))
        assert made.changes().keys() == differing
    # A report that is not this file's says nothing of it.
    report = {"provenance": source, "sha256": used["sha256"]}
    weights.with_suffix(".json").write_text(json.dumps(report))
    assert made.changes() == {"weights sha256": {"before": used["sha256"], "now": now}}


def test_runs_of_one_name_are_not_converted_over_each_other(tmp_path):
    """Jobs in the queue would have started from the second run's weights."""
    target = tmp_path / "weights" / "seed0.pth"
    target.parent.mkdir()
    target.write_bytes(b"converted")
    written = hashlib.sha256(b"converted").hexdigest()
    report = {"provenance": {"source_sha256": "1" * 64}, "sha256": written}
    target.with_suffix(".json").write_text(json.dumps(report))
    run = tmp_path / "b" / "seed0"
    run.mkdir(parents=True)
    with (
        mock.patch("slurm.launch_detection.source_hash", return_value="2" * 64),
        pytest.raises(UserError, match=r"seed0.pth was converted from other weights than those"),
    ):
        launch_detection.convert_once(str(run), target)


def test_a_dry_run_prints_what_jobs_would_run(tmp_path, monkeypatch, capsys):
    """Not the run's folder, which fine-tuning refuses."""
    run = pretraining_run(tmp_path, "seed0").path
    words = ["--config", "shapes_coco_R18_C4", "--weights", str(run), "--cluster", "local"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["launch", *words, "--dry-run"])
    assert launch_detection.main() == 0
    target = tmp_path / "runs/detection/weights/seed0.pth"
    printed = capsys.readouterr().out
    assert f"--weights {target} --seed 0" in printed
    assert re.search(rf"convert\.py {run} {target}$", printed, re.M)


def test_a_conversion_is_done_if_its_report_names_the_source_and_the_file(tmp_path):
    """Another pretraining's weights in its place were `already converted`."""
    source, target = tmp_path / "in.pth", tmp_path / "out.pth"
    source.write_bytes(b"weights")
    written = hashlib.sha256(b"converted").hexdigest()
    report = {"provenance": {"source_sha256": "0" * 64}, "sha256": written}
    target.write_bytes(b"converted")
    (tmp_path / "out.json").write_text(json.dumps(report))
    assert not converted(str(source), target)
    report["provenance"]["source_sha256"] = hashlib.sha256(b"weights").hexdigest()
    (tmp_path / "out.json").write_text(json.dumps(report))
    assert converted(str(source), target)
    assert converted(str(tmp_path / "removed.pth"), target)
    target.write_bytes(b"replaced!")
    assert not converted(str(source), target)
    assert not converted(str(tmp_path / "removed.pth"), target)
    target.write_bytes(b"converted")
    source.write_bytes(b"others")
    assert not converted(str(source), target)
    (tmp_path / "out.json").write_text("{")
    assert not converted(str(source), target)


def test_the_last_error_is_what_the_stage_said(tmp_path):
    made = make_job(tmp_path, "one")
    made.log = str(tmp_path / "12_0_0_log.out")
    err = tmp_path / "12_0_0_log.err"
    ours = (
        "submitit ERROR - Submitted job triggered an exception\nTraceback (most recent call last)\n"
    )
    end = (
        "StageFailedError: rank 0 of 1 on n1: the stage ended with exit status 1\nsrun: error: x\n"
    )
    err.write_text(f"error: no such data\n{ours}slurm.jobs.{end}")
    assert last_error(made) == "no such data"
    err.write_text(f"Traceback\n  File\ntorch.OutOfMemoryError: CUDA out of memory.\n{ours}{end}")
    assert last_error(made) == "torch.OutOfMemoryError: CUDA out of memory."
    err.write_text(f"nothing to show\n{ours}{end}")
    assert last_error(made).startswith("nothing to show (rank 0 of 1 on n1: the stage ended")
    (tmp_path / "12_00_0_log.err").write_text("error: another job's\n")
    assert "another" not in last_error(made)
