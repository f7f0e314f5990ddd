"""Whatever stops a run, the same command continues, and nothing is lost."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from intl_transfer.errors import UserError
from intl_transfer.runs import read_manifest, read_results
from intl_transfer.runs.checkpoint import list_checkpoints, load_newest, read_checkpoint
from intl_transfer.runs.distributed import Ranks
from pretrain import train as stage
from tests.pretrain.running import TINY, TORCHRUN, assert_same, command, environment, train

LONG = ["optim.epochs=10", "engine.checkpoint_steps=1"]  # 30 steps


def start(images, output, *overrides, launcher=(sys.executable,)):
    return subprocess.Popen(
        command(images, output, *overrides, launcher=launcher),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def newest_step(output):
    found = list_checkpoints(output / "checkpoints")
    return int(found[0].stem.removeprefix("step_")) if found else 0


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)


def kill(process):
    """SIGKILL to the process and all that it started."""
    everyone = [process.pid, *descendants(process.pid)]
    for pid in everyone:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()
    # Those that another process started are reaped by somebody else, a moment later.
    deadline = time.monotonic() + 30
    while any(is_alive(pid) for pid in everyone) and time.monotonic() < deadline:
        time.sleep(0.01)


def descendants(pid):
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants(child)]
    return found


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def assert_same_checkpoints(one, two):
    """Every tensor of the last checkpoint, to the bit."""
    _, first = load_newest(one / "checkpoints")
    _, second = load_newest(two / "checkpoints")
    for part in ("model", "target"):
        assert (first[part] is None) == (second[part] is None)
        for name, value in (first[part] or {}).items():
            assert torch.equal(value, second[part][name]), (part, name)
    buffers = zip(
        first["optimizer"]["state"].values(), second["optimizer"]["state"].values(), strict=True
    )
    assert all(torch.equal(a["momentum_buffer"], b["momentum_buffer"]) for a, b in buffers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "launcher", "overrides"),
    [
        (6, (sys.executable,), ("data.workers=2", "views=[{size: 32}, {size: 32}]")),
        (3, TORCHRUN, ("loss.method=intl_ema", "data.workers=1")),
    ],
    ids=["one-rank-two-views", "two-ranks-multicrop-ema"],
)
def test_killed_anywhere_the_weights_are_those_of_an_undisturbed_run(
    images, tmp_path, kills, launcher, overrides
):
    train(images, tmp_path / "whole", *LONG, *overrides, ranks=2 if launcher is TORCHRUN else 1)
    generator, killed = random.Random(0), tmp_path / "killed"
    for done in range(kills):
        process = start(images, killed, *LONG, *overrides, launcher=launcher)
        if done % 5 == 4:  # while it starts
            time.sleep(generator.uniform(0.5, 6))
        else:
            # One step further than the last session, then anywhere in the next two.
            reached = newest_step(killed)
            wait_for(lambda reached=reached: newest_step(killed) > reached, process)
            time.sleep(generator.uniform(0, 0.6))
        if process.poll() is not None:
            pytest.fail(f"ended before it was killed: {process.communicate()[0]}")
        kill(process)
    assert 0 < newest_step(killed) < 30
    train(images, killed, *LONG, *overrides, launcher=launcher)
    assert len(read_manifest(killed)["sessions"]) >= kills * 3 // 5
    assert_same(tmp_path / "whole", killed)
    assert_same_checkpoints(tmp_path / "whole", killed)
    assert not list((killed / "checkpoints").glob(".*.part"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_ends_the_run_at_the_next_step_with_a_checkpoint(images, tmp_path, number):
    settings = ["optim.epochs=40", "data.workers=1"]
    process = start(images, tmp_path / "run", *settings)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(metrics.exists, process)
    os.killpg(process.pid, number)  # to the loading process too, as a scheduler does
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert f"stopped by {number.name} after step" in output
    assert output.count("stopping after this step") == (number == signal.SIGINT)
    manifest = read_manifest(tmp_path / "run")
    assert manifest["status"] == "interrupted"
    step = newest_step(tmp_path / "run")
    assert f"after step {step}" in manifest["error"]
    train(images, tmp_path / "run", *settings, "engine.stop_after_steps=1")
    assert newest_step(tmp_path / "run") == step + 1


@pytest.mark.slow
def test_a_signal_to_one_of_two_ranks_stops_both(images, tmp_path):
    process = start(images, tmp_path / "run", "optim.epochs=200", launcher=TORCHRUN)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(metrics.exists, process)
    os.kill(descendants(process.pid)[-1], signal.SIGUSR2)
    output, _ = process.communicate(timeout=120)
    assert "after step" in output
    assert output.count("exitcode  : 75") + output.count("exitcode: 75") >= 1, output
    step = newest_step(tmp_path / "run")
    done = train(
        images, tmp_path / "run", "optim.epochs=200", "engine.stop_after_steps=1", launcher=TORCHRUN
    )
    assert f"from step {step}" in done.stdout


def test_another_number_of_ranks_takes_over(images, tmp_path):
    train(images, tmp_path / "run", "engine.stop_after_steps=2")
    done = train(images, tmp_path / "run", launcher=TORCHRUN)
    assert (
        "2 rank(s) where there were 1: the global batch stays 8, 4 images per rank" in done.stdout
    )
    assert "loss head of 8 x 32: gathered" in done.stdout
    assert read_results(tmp_path / "run")["steps"] == 6


def test_other_settings_are_shown_and_refused_unless_asked_for(images, tmp_path):
    run = tmp_path / "run"
    train(images, run, "engine.stop_after_steps=2")
    done = train(images, run, "optim.base_lr=0.1", "loss.iterations=5", check=False)
    assert done.returncode == 2
    assert "loss.iterations: 4 before, 5 now; optim.base_lr: 0.5 before, 0.1 now" in done.stderr
    assert "--allow-config-change" in done.stderr
    done = train(images, run, "optim.base_lr=0.1", "--allow-config-change")
    assert "from step 2" in done.stdout
    assert "changed: optim.base_lr, 0.5 before, 0.1 now" in done.stdout
    last = read_manifest(run)["sessions"][-1]
    assert last["changes"] == {"optim.base_lr": {"before": 0.5, "now": 0.1}}
    # Weight decay and momentum are with the optimizer's state in the checkpoint.
    options = ["optim.base_lr=0.1", "optim.weight_decay=0.25", "optim.momentum=0.5"]
    train(images, run, *options, "--allow-config-change", "optim.epochs=3")
    group = load_newest(run / "checkpoints")[1]["optimizer"]["param_groups"][0]
    assert (group["weight_decay"], group["momentum"]) == (0.25, 0.5)
    # How the machine is used and what is told is nobody's business.
    done = train(images, run, *options, "optim.epochs=3", "data.workers=1", "log.steps=2")
    assert "nothing to do" in done.stdout


def here(images, output, *overrides, allow=False):
    """The stage in this process, which is faster; returns its exit status."""
    words = [*TINY, f"data.root={images}", "data.workers=0", *overrides]
    config = stage.begun("shapes_r18", words, str(output))
    return stage.train(config, "shapes_r18", Ranks(0, 1, 0, torch.device("cpu")), allow)


def checkpoints_alone(run, copy, lacking):
    """A run directory of which only the checkpoints were copied."""
    shutil.copytree(run / "checkpoints", copy / "checkpoints")
    for file in (copy / "checkpoints").iterdir():
        content = torch.load(file, weights_only=True)
        torch.save({k: v for k, v in content.items() if k not in lacking}, file)
    return copy


# Those of before this version hold no manifest, but the settings and what weights say of the run.
@pytest.mark.parametrize("lacking", [(), ("manifest",)], ids=["new", "old"])
def test_checkpoints_without_their_manifest_say_what_they_were_trained_with(
    images, tmp_path, lacking
):
    first, other = tmp_path / "first", ("optim.base_lr=0.1", "seed=7")
    here(images, first, "engine.stop_after_steps=2")
    same, changed = (checkpoints_alone(first, tmp_path / name, lacking) for name in "ab")
    expected = r"optim\.base_lr: 0\.5 before, 0\.1 now; seed: 0 before, 7 now"
    with pytest.raises(UserError, match=expected):
        here(images, changed, *other)
    assert not (changed / "manifest.json").exists()
    # Continued on purpose, the weights themselves say it.
    here(images, changed, *other, allow=True)
    with safe_open(changed / "backbone.safetensors", "pt") as file:
        settings = json.loads(file.metadata()["pretrain_run"])["settings"]
    assert settings["changed.optim.base_lr"] == "0.5 to 0.1"
    # With the same settings it is the run itself, to the bit.
    here(images, same)
    here(images, first)
    assert_same(first, same)
    found, whole = read_manifest(same), read_manifest(first)
    assert (found.id, found.dataset) == (whole.id, whole.dataset)
    continued = {"checkpoint": "step_00000002.pt", "run": whole.id}
    assert [one.continues for one in found.sessions] == [None, continued]
    assert [one.continues for one in whole.sessions] == [None, None]


def test_a_change_on_record_is_no_other_run(images, tmp_path, capsys):
    """Ended before the first checkpoint under new settings, a run continues from one before."""
    run, other = tmp_path / "run", "optim.base_lr=0.1"
    here(images, run, "engine.stop_after_steps=2")
    before = list_checkpoints(run / "checkpoints")[0]
    content = before.read_bytes()
    here(images, run, other, "engine.stop_after_steps=1", allow=True)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    before.write_bytes(content)
    capsys.readouterr()
    here(images, run, other, "engine.stop_after_steps=1")
    assert "from step 2" in capsys.readouterr().out
    assert read_manifest(run).sessions[-1].continues is None


def test_checkpoints_of_another_run_beside_a_manifest(images, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    for folder, settings in ((run, ()), (other, ("optim.base_lr=0.1",))):
        here(images, folder, *settings, "engine.stop_after_steps=1")
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(other / "checkpoints", run / "checkpoints")
    with pytest.raises(UserError, match=r"optim\.base_lr: 0\.1 before, 0\.5 now"):
        here(images, run)
    here(images, run, "engine.stop_after_steps=1", allow=True)
    last = read_manifest(run).sessions[-1]
    assert last.continues["run"] == read_manifest(other).id
    assert last.changes == {"optim.base_lr": {"before": 0.1, "now": 0.5}}


@pytest.mark.parametrize(
    ("sync", "said"), [("true", "rounding differs"), ("false", "become others")]
)
def test_every_sessions_ranks_are_recorded_where_batch_norms_depend_on_them(
    images, tmp_path, capsys, sync, said
):
    run, setting = tmp_path / "run", f"model.sync_batchnorm={sync}"
    here(images, run, setting, "engine.stop_after_steps=5")
    file = run / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["sessions"][0]["world_size"] = 4
    file.write_text(json.dumps(manifest))
    capsys.readouterr()
    here(images, run, setting)
    assert said in capsys.readouterr().out
    with safe_open(run / "backbone.safetensors", "pt") as weights:
        settings = json.loads(weights.metadata()["pretrain_run"])["settings"]
    # As for detection: not the last session's alone, nor where statistics are of the whole batch.
    assert settings.get("batch_norm.ranks") == (None if sync == "true" else [4, 1])


def test_longer_training_of_a_finished_run(images, tmp_path):
    train(images, tmp_path / "run")
    done = train(images, tmp_path / "run", "optim.epochs=3", "--allow-config-change")
    assert "from step 6" in done.stdout
    assert read_results(tmp_path / "run")["steps"] == 9


def test_two_runs_in_one_directory(images, tmp_path):
    process = start(images, tmp_path / "run", "optim.epochs=400")
    try:
        wait_for((tmp_path / "run" / "metrics.jsonl").exists, process)
        done = train(images, tmp_path / "run", "optim.epochs=400", check=False)
        assert done.returncode == 2
        assert f"is in use by process {process.pid} on" in done.stderr
    finally:
        kill(process)
    # What was killed leaves no lock.
    train(images, tmp_path / "run", "optim.epochs=400", "engine.stop_after_steps=1")


def damage_truncated(file):
    file.write_bytes(file.read_bytes()[:-1000])


def damage_flipped(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)


def damage_external(file):
    torch.save({"state_dict": {}}, file)


@pytest.mark.parametrize("damage", [damage_truncated, damage_flipped, damage_external])
def test_a_bad_checkpoint_is_named_and_the_one_before_taken(images, tmp_path, damage):
    run = tmp_path / "run"
    train(images, run, "engine.stop_after_steps=4", "engine.checkpoint_steps=1")
    newest = list_checkpoints(run / "checkpoints")[0]
    damage(newest)
    done = train(images, run)
    assert f"{newest.name} is" in done.stderr
    assert "from step 3" in done.stdout


def test_no_checkpoint_left_that_can_be_read(images, tmp_path):
    run = tmp_path / "run"
    train(images, run, "engine.stop_after_steps=2")
    for file in list_checkpoints(run / "checkpoints"):
        damage_truncated(file)
    done = train(images, run, check=False)
    assert done.returncode == 2
    assert "none of the 1 checkpoints" in done.stderr


def test_a_full_disk_fails_the_write_and_not_the_run(images, tmp_path):
    run = tmp_path / "run"
    train(images, run, "engine.stop_after_steps=3")
    before = list_checkpoints(run / "checkpoints")

    def small_files():  # the backbone fits, a checkpoint does not
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000_000, 60_000_000))

    done = train(images, run, "engine.checkpoint_steps=1", preexec_fn=small_files)
    assert "was not written" in done.stderr
    assert "the run continues, the newest is step_00000003.pt" in done.stderr
    assert list_checkpoints(run / "checkpoints") == before
    assert not list((run / "checkpoints").glob(".*"))
    read_checkpoint(before[0])
    assert read_results(run)["steps"] == 6


def test_milestones_stay(images, tmp_path):
    settings = ["optim.epochs=5", "engine.milestone_epochs=2", "engine.keep_checkpoints=1"]
    train(images, tmp_path / "run", *settings)
    names = [file.name for file in list_checkpoints(tmp_path / "run" / "checkpoints")]
    assert names == ["step_00000015.pt", "step_00000012.pt", "step_00000006.pt"]


def test_a_folder_that_cannot_be_written(images, tmp_path):
    (tmp_path / "file").write_text("")
    done = train(images, tmp_path / "file" / "run", check=False)
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_run_ends_where_only_the_export_was_missing(images, tmp_path):
    """Killed between the last checkpoint and the results."""
    run = tmp_path / "run"
    train(images, run)
    manifest_before = (run / "results.json").read_text()
    shutil.copytree(run, tmp_path / "copy")
    (run / "results.json").unlink()
    (run / "backbone.safetensors").unlink()
    manifest = (run / "manifest.json").read_text()
    (run / "manifest.json").write_text(
        manifest.replace('"status": "finished"', '"status": "running"')
    )
    train(images, run)
    assert_same(tmp_path / "copy", run)
    assert '"final_loss"' in manifest_before
    assert read_results(run)["final_loss"] == read_results(tmp_path / "copy")["final_loss"]


def test_what_could_not_be_saved_is_no_reason_to_be_put_back_into_the_queue(images, tmp_path):
    """Where the folder of checkpoints should be lies a file: no write can succeed."""
    output = tmp_path / "run"
    output.mkdir()
    (output / "checkpoints").write_text("in the way")
    done = train(images, output, "engine.stop_after_steps=2", check=False)
    assert done.returncode == 74, done.stderr
    assert "step 2, which was not saved; the same command continues" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    manifest = read_manifest(output)
    assert manifest.status == "interrupted"
    assert manifest.failed_saves == 1
    assert "was not written" in manifest.failed_save
    (output / "checkpoints").unlink()
    assert train(images, output).returncode == 0
    assert (read_manifest(output).failed_saves, read_manifest(output).failed_save) == (1, None)


def test_a_moving_average_that_no_checkpoint_has_is_named(images, tmp_path):
    here(images, tmp_path / "run", "loss.method=intl", "engine.stop_after_steps=1")
    with pytest.raises(UserError, match=r"no moving average, which loss\.method=intl_ema needs"):
        here(images, tmp_path / "run", "loss.method=intl_ema", allow=True)
