"""Pretraining through a real SLURM; short CPU jobs over gloo."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from intl_transfer.runs import read_manifest, read_metrics, read_results
from intl_transfer.runs.checkpoint import list_checkpoints, load_newest
from intl_transfer.runs.directory import git_state
from tests.pretrain.running import ROOT, TINY, assert_same, train

LAUNCH = [sys.executable, str(ROOT / "slurm" / "launch_pretrain.py"), "--config", "shapes_r18"]
CPU = ["--gpus-per-node", "0", "--cpus-per-gpu", "1", "--time", "60"]
LONG = ["optim.epochs=20", "engine.checkpoint_steps=1"]  # 60 steps


def launch(cluster, images, output, *arguments, check=True):
    command = [*LAUNCH, *CPU, *TINY, f"data.root={images}", f"--output-dir={output}", *arguments]
    done = subprocess.run(
        command,
        env=cluster.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=images,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    done.jobs = re.findall(r"^job (\S+):", done.stdout, re.MULTILINE)
    return done


def logs(output):
    return "\n".join(file.read_text() for file in output.rglob("*_log.*"))


def wait_for_step(output, step, seconds=240):
    deadline = time.monotonic() + seconds
    while not any(row["step"] >= step for row in read_metrics(output)):
        assert time.monotonic() < deadline, logs(output)
        time.sleep(0.1)


@pytest.mark.slow
def test_two_nodes_of_two_ranks_train_what_one_process_trains(cluster, images, tmp_path):
    """One step at the full learning rate moves weights by up to 0.08; all agree to 1e-5.

    After several steps of so small a network rounding decides: in float32, no two orders of
    summation lead to the same weights.
    """
    settings = ["engine.stop_after_steps=1", "optim.warmup_epochs=0"]
    train(images, tmp_path / "still", *settings, "optim.base_lr=1e-20")
    train(images, tmp_path / "one", *settings)
    done = launch(cluster, images, tmp_path / "four", "--nodes=2", "--ranks-per-node=2", *settings)
    (job,) = done.jobs
    assert "slurm: 1 job(s) of 2 node(s) x 2 rank(s), 0 GPU(s) per node" in done.stdout
    assert cluster.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED", logs(tmp_path)
    session = read_manifest(tmp_path / "four")["sessions"][0]
    assert session["world_size"] == 4
    (one,), (four,) = (read_metrics(tmp_path / name) for name in ("one", "four"))
    assert one["loss"] == pytest.approx(four["loss"], rel=1e-5)
    start, first, second = (
        load_newest(tmp_path / name / "checkpoints")[1]["model"]
        for name in ("still", "one", "four")
    )
    moved = [(first[name] - start[name]).abs().max().item() for name in first if "weight" in name]
    assert max(moved) > 1e-2
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_an_array_of_seeds(cluster, images, tmp_path):
    settings = ["--array-seeds=0-2", "--wait", "optim.epochs=1"]
    done = launch(cluster, images, tmp_path / "runs", *settings)
    assert len(done.jobs) == 6  # where they went, and how they ended
    # Besides, those that end before the last are told of meanwhile.
    assert len(re.findall(r"^job \S+: finished", done.stdout, re.MULTILINE)) == 3
    done.jobs = done.jobs[:3]
    for seed, job in enumerate(done.jobs):
        assert cluster.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED", logs(tmp_path)
        run = tmp_path / "runs" / f"shapes_r18_seed{seed}"
        assert read_results(run)["seed"] == seed
        # The copy of the sources knows what it is a copy of.
        assert read_manifest(run)["git"]["revision"] == git_state(ROOT)["revision"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["signal", "requeue", "preemption"])
def test_interrupted_jobs_go_on_and_end_with_the_undisturbed_weights(
    cluster, images, tmp_path, how
):
    train(images, tmp_path / "whole", *LONG)
    run = tmp_path / "run"
    (job,) = launch(cluster, images, run, "--partition=main", *LONG).jobs
    wait_for_step(run, 3)
    if how == "signal":
        cluster.run("scancel", "--signal=USR2", job, check=True)
    elif how == "requeue":
        cluster.run("scontrol", "requeue", job, check=True)
    else:
        blocking = ["sbatch", "--parsable", "-p", "high", "-N2", "--exclusive", "--wrap", "sleep 2"]
        cluster.run(*blocking, "-o", "/dev/null", check=True)
    deadline = time.monotonic() + 180
    while len(read_manifest(run)["sessions"]) < 2:
        assert time.monotonic() < deadline, f"{cluster.state(job)}\n{logs(run)}"
        time.sleep(0.2)
    assert cluster.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED", logs(run)
    assert read_manifest(run)["status"] == "finished"
    assert_same(tmp_path / "whole", run)
    printed = logs(run)
    assert "start 1:" in printed  # the log of the first start is still there
    assert "start 2:" in printed
    assert f"from step {read_manifest_step(printed)}" in printed


def read_manifest_step(printed):
    return re.search(r"from step (\d+)", printed).group(1)


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_job_within_a_minute(cluster, images, tmp_path):
    run = tmp_path / "run"
    settings = ["--nodes=2", "optim.epochs=400"]
    (job,) = launch(cluster, images, run, *settings).jobs
    wait_for_step(run, 2)
    pids = subprocess.run(
        ["pgrep", "-f", f"train.py .*{run}"], capture_output=True, text=True, check=True
    ).stdout.split()
    subprocess.run(["kill", f"-{signal.SIGKILL.value}", pids[-1]], check=True)
    start = time.monotonic()
    assert cluster.wait_for(job, "FAILED", "COMPLETED", seconds=60) == "FAILED"
    assert time.monotonic() - start < 60
    assert "the stage ended with signal 9" in logs(run) or "exit status" in logs(run)
    # Launched again, it continues.
    done = launch(cluster, images, run, *settings, "engine.stop_after_steps=1")
    assert cluster.wait_for(done.jobs[0], "FAILED", "COMPLETED") == "COMPLETED", logs(run)
    assert len(read_manifest(run)["sessions"]) == 2
    assert list_checkpoints(run / "checkpoints")


@pytest.mark.slow
def test_a_cancelled_run_launched_again_goes_on(cluster, images, tmp_path):
    run = tmp_path / "run"
    (job,) = launch(cluster, images, run, *LONG).jobs
    wait_for_step(run, 3)
    cluster.run("scancel", job, check=True)
    cluster.wait_for(job, "CANCELLED")
    (again,) = launch(cluster, images, run, *LONG).jobs
    assert cluster.wait_for(again, "COMPLETED", "FAILED") == "COMPLETED", logs(run)
    train(images, tmp_path / "whole", *LONG)
    assert_same(tmp_path / "whole", run)


@pytest.mark.slow
def test_requeues_are_bounded(cluster, images, tmp_path):
    run = tmp_path / "run"
    (job,) = launch(cluster, images, run, "--max-requeues=0", "optim.epochs=400").jobs
    wait_for_step(run, 1)
    cluster.run("scancel", "--signal=USR2", job, check=True)
    assert cluster.wait_for(job, "FAILED", "COMPLETED") == "FAILED"
    assert "the maximum (max_requeues); launch it again to continue" in logs(run)
    assert read_manifest(run)["status"] == "interrupted"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--partition=nowhere"], "invalid partition"),
        (
            ["--gpus-per-node=9", "--ranks-per-node=1"],
            "Requested node configuration is not available",
        ),
        (["--nodes=3"], "3 ranks do not divide the global batch of 8"),
        (["optim.base_lr=-1"], "optim.base_lr is -1.0; expected a positive number"),
        (["--array-seeds=4-0"], "expected a number of seeds .5., or a list"),
        (["--profile=nosuch"], "no profile 'nosuch'.*expected example"),
        (["--cluster=local", "--nodes=2"], "--cluster local has one node; --nodes 2 needs SLURM"),
    ],
)
def test_what_cannot_be_is_one_clear_line(cluster, images, tmp_path, arguments, message):
    done = launch(cluster, images, tmp_path / "run", *arguments, check=False)
    assert done.returncode == 2, done.stdout
    # sbatch may have said it in its own way before.
    *before, last = done.stderr.strip().splitlines()
    assert all(line.startswith("sbatch: ") for line in before), done.stderr
    assert last.startswith("error: ")
    assert re.search(message, last), done.stderr
    assert done.jobs == []


def test_a_folder_that_cannot_be_written(cluster, images, tmp_path):
    (tmp_path / "file").write_text("")
    done = launch(cluster, images, tmp_path / "file" / "run", check=False)
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


@pytest.mark.parametrize("name", ["50%users", "back\\slash"])
def test_a_folder_that_slurm_reads_as_another_is_refused(cluster, images, tmp_path, name):
    """SLURM's own jobs leave no log there; one of ours died before it started, without a word."""
    folder = tmp_path / name
    folder.mkdir()
    batch = ["sbatch", "--parsable", "-o", f"{folder}/log", "--wrap", "echo told"]
    cluster.wait_for(cluster.run(*batch, check=True), "COMPLETED", "FAILED")
    assert list(folder.iterdir()) == []
    done = launch(cluster, images, folder, check=False)
    assert done.returncode == 2, done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert "expected a folder without %, \\ and line breaks" in line
    assert list(folder.iterdir()) == []
    dry = launch(cluster, images, folder, "--dry-run", check=False)
    assert (dry.returncode, dry.stderr.strip()) == (2, line)
