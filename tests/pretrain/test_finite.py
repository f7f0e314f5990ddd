"""A step that is not finite is as if its data had not been there, and never goes unsaid."""

from __future__ import annotations

import contextlib
import json
import math
import sys

import pytest
import torch
from safetensors.torch import load_file

import pretrain.learner
import pretrain.train
from intl_transfer.runs import RunDirectory, read_manifest, read_metrics, read_results
from intl_transfer.runs.checkpoint import list_checkpoints, load_newest, read_checkpoint, step_of
from intl_transfer.runs.distributed import Ranks
from intl_transfer.runs.finite import StateNotFiniteError, first_nonfinite
from pretrain.export import export
from tests.pretrain.running import ROOT, TINY, train
from tests.pretrain.test_engine import batch, learner
from tests.ranks import run_ranks

KINDS = ["first view", "last view", "statistics", "gradient"]


@contextlib.contextmanager
def poisoned(kind, made):
    """Makes one step not finite, in one of the ways in which that happens."""
    if kind == "gradient":  # of a finite loss, as a degenerate batch's is
        parameter = dict(made.encoder.named_parameters())["backbone.layer2.0.conv1.weight"]
        handle = parameter.register_hook(lambda gradient: gradient * math.nan)
        yield
        handle.remove()
        return
    real, calls = pretrain.learner.normalize, []
    # Statistics overflow before the loss does: batch norm divides by infinity, which gives zeros.
    factor = {"first view": math.inf, "last view": math.nan, "statistics": 1e25}[kind]
    hit = {"first view": (0,), "last view": (2,), "statistics": (0, 1, 2)}[kind]

    def normalize(images, *arguments):
        calls.append(None)
        return real(images, *arguments) * (factor if len(calls) - 1 in hit else 1.0)

    pretrain.learner.normalize = normalize
    try:
        yield
    finally:
        pretrain.learner.normalize = real


def everything(made):
    state = {
        "model": made.encoder.state_dict(),
        "target": made.target.encoder.state_dict() if made.target else {},
        "optimizer": made.optimizer.state_dict()["state"],
        "scaler": made.scaler.state_dict(),
    }
    return json_like(state)


def json_like(value):
    if isinstance(value, dict):
        return {key: json_like(inner) for key, inner in value.items()}
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def assert_equal(one, other, place=""):
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_equal(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    else:
        assert one == other, place


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        *((kind, ("loss.method=intl_ema", "optim.clip_norm=1")) for kind in KINDS),
        ("statistics", ("loss.method=intl",)),
        ("first view", ("loss.method=intl_ema", "engine.precision=bf16", "optim.optimizer=lars")),
        ("last view", ("loss.method=intl_ema", "engine.activation_checkpointing=true")),
        ("gradient", ("loss.method=vicreg", "optim.base_lr=0.01")),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1].split(".")[-1],
)
def test_a_skipped_step_leaves_no_trace(kind, overrides):
    """To the bit: the state after it, and the run that continues, are those without its data."""
    disturbed, calm = learner(*overrides), learner(*overrides)
    for made in (disturbed, calm):
        made.step(0, batch(0))
    before = everything(disturbed)
    with poisoned(kind, disturbed):
        done = disturbed.step(1, batch(1))
    assert "NaN or infinity" in done.skipped
    assert_equal(everything(disturbed), before)
    for step in (2, 3):
        one, two = disturbed.step(step, batch(step)), calm.step(step, batch(step))
        assert one.skipped is two.skipped is None
        assert_equal(everything(disturbed), everything(calm))


def test_a_skipped_step_leaves_no_trace_under_gradient_scaling():
    overrides = ("engine.precision=fp16", "loss.method=intl_ema")
    disturbed, calm = learner(*overrides), learner(*overrides)
    for made in (disturbed, calm):
        first = made.step(0, batch(0))  # the first scale is too large, which is normal
        assert first.overflowed
        assert first.skipped is None
        made.scaler.update(16.0)
        assert not made.step(1, batch(1)).overflowed
    with poisoned("last view", disturbed):
        done = disturbed.step(2, batch(2))
    assert done.skipped is not None
    assert not done.overflowed
    assert_equal(everything(disturbed), everything(calm))
    disturbed.step(3, batch(3))
    calm.step(3, batch(3))
    assert_equal(everything(disturbed), everything(calm))


def test_scaled_gradients_that_never_stop_overflowing_are_said(monkeypatch):
    monkeypatch.setattr(pretrain.learner, "OVERFLOWS", 2)
    made = learner("engine.precision=fp16")
    for parameter in made.encoder.parameters():
        parameter.register_hook(lambda gradient: gradient * math.inf)
    outcomes = [made.step(step, batch(step)) for step in range(4)]
    assert all(done.overflowed for done in outcomes)
    assert [done.skipped is None for done in outcomes] == [True, True, False, False]
    assert "gradients overflow float16, 3 consecutive steps" in outcomes[2].skipped
    assert first_nonfinite(everything(made)) is None


def on_a_rank(rank, world_size, synchronized, kind):
    """Rank 1 alone meets what is not finite; two steps more."""
    from intl_transfer.data.datasets import Batch
    from intl_transfer.runs.config import load_config
    from pretrain.config import PretrainConfig
    from pretrain.learner import Learner

    overrides = [*TINY, "loss.method=intl_ema", f"model.sync_batchnorm={synchronized}"]
    config = load_config(PretrainConfig, "shapes_r18", overrides, ROOT / "configs" / "pretrain")
    ranks = Ranks(rank, world_size, rank, torch.device("cpu"))

    def own(seed):
        whole, rows = batch(seed), 8 // world_size
        part = slice(rank * rows, (rank + 1) * rows)
        return Batch([view[part] for view in whole.views], whole.shown[part], [], False)

    states = []
    for is_disturbed in (True, False):
        torch.manual_seed(0)
        made = Learner(config, ranks, 10)
        made.prepare()
        made.step(0, own(0))
        if is_disturbed:
            with poisoned(kind, made) if rank == 1 else contextlib.nullcontext():
                assert made.step(1, own(1)).skipped is not None
        made.step(2, own(2))
        states.append(everything(made))
    assert_equal(*states)
    return {name: value.numpy() for name, value in states[0]["model"].items()}


@pytest.mark.slow
@pytest.mark.parametrize(("synchronized", "kind"), [(True, "last view"), (False, "statistics")])
def test_all_ranks_skip_what_one_of_them_meets(synchronized, kind):
    one, two = run_ranks(on_a_rank, 2, synchronized, kind)
    for name, value in one.items():
        if synchronized or not name.endswith(("mean", "var")):
            assert (value == two[name]).all(), name


# Whole runs


@pytest.fixture
def trained(images, tmp_path, monkeypatch, capsys):
    """A run, of six steps unless told otherwise, of which some are not finite, in this process."""

    def run(bad, *overrides, output=tmp_path / "run", expected=0):
        real, calls = pretrain.learner.normalize, [0]

        def normalize(pixels, device):
            calls[0] += 1
            step = first + (calls[0] - 1) // 3 + 1  # of three views
            return real(pixels, device) * (math.inf if step in bad else 1.0)

        newest = list_checkpoints(output / "checkpoints")
        first = step_of(newest[0]) if newest else 0
        monkeypatch.setattr(pretrain.learner, "normalize", normalize)
        words = ["train.py", "--config", "shapes_r18", *TINY, f"data.root={images}"]
        monkeypatch.setattr(sys, "argv", [*words, f"--output-dir={output}", *overrides])
        assert pretrain.train.main() == expected
        monkeypatch.setattr(pretrain.learner, "normalize", real)
        return capsys.readouterr()

    return run


def steps_kept(output):
    return sorted(step_of(path) for path in list_checkpoints(output / "checkpoints"))


def test_one_bad_step_is_counted_told_and_leaves_finite_weights(trained, tmp_path):
    printed = trained({2}).out
    assert "step 2 skipped: NaN or infinity in the embeddings or the loss" in printed
    assert "(1 step was skipped so far)" in printed
    assert "backbone.safetensors; 1 step was skipped" in printed
    results = read_results(tmp_path / "run")
    assert (results["skipped_steps"], results["steps"]) == (1, 6)
    assert "gradient_overflows" not in results
    rows = read_metrics(tmp_path / "run")
    assert [row["skipped_steps"] for row in rows if row["step"] == 2] == [1]
    assert [row["step"] for row in rows if "loss" in row] == [1, 3, 4, 5, 6]
    weights = load_file(tmp_path / "run" / "backbone.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_an_undisturbed_run_says_nothing_and_counts_none(trained, tmp_path):
    printed = trained(set())
    assert "skipped" not in printed.out + printed.err
    assert read_results(tmp_path / "run")["skipped_steps"] == 0


def test_counts_are_those_of_all_sessions(trained, tmp_path):
    trained({1}, "engine.stop_after_steps=2")
    trained({4})
    assert read_results(tmp_path / "run")["skipped_steps"] == 2


def test_no_checkpoint_is_taken_among_skipped_steps(trained, tmp_path):
    keep = ["engine.checkpoint_steps=1", "engine.keep_checkpoints=9"]
    trained({3, 4}, *keep)  # the epoch's end, 3, among them
    assert steps_kept(tmp_path / "run") == [1, 2, 5, 6]
    # The state before them is in the one before them, and after them again.
    _, before = load_newest(tmp_path / "run" / "checkpoints")
    assert before["progress"]["last"]["skipped_steps"] == 2


def test_a_run_that_is_stopped_among_them_goes_on_from_before(trained, tmp_path):
    # What was not saved is no reason to be put back into the queue.
    stop = ("engine.stop_after_steps=2", "engine.checkpoint_steps=1")
    printed = trained({2}, *stop, expected=74).out
    assert "step 2, which was not saved; the same command continues from the last" in printed
    assert steps_kept(tmp_path / "run") == [1]
    assert "from step 1" in trained(set()).out


def test_a_run_whose_last_step_is_bad_ends_with_a_warning(trained, tmp_path):
    printed = trained({6}).out
    assert "warning: the last 1 step was skipped" in printed
    results = read_results(tmp_path / "run")
    assert (results["skipped_steps"], math.isfinite(results["final_loss"])) == (1, True)


def test_a_run_of_bad_steps_alone_has_no_results(trained, tmp_path):
    printed = trained({1, 2, 3}, "optim.epochs=1", expected=2).err
    assert "none of 3 steps had a finite loss: nothing was learned" in printed
    assert read_results(tmp_path / "run") is None
    assert not (tmp_path / "run" / "backbone.safetensors").exists()


def test_finding_the_scale_is_counted_quietly(images, tmp_path):
    done = train(images, tmp_path / "run", "engine.precision=fp16")
    results = read_results(tmp_path / "run")
    assert results["gradient_overflows"] >= 1
    assert results["skipped_steps"] == 0
    assert "skipped" not in done.stdout + done.stderr
    assert "overflow" not in done.stdout + done.stderr  # it is normal


def test_a_rate_that_blows_weights_up_leaves_whole_checkpoints_alone(trained, tmp_path):
    run = tmp_path / "run"
    settings = ["engine.checkpoint_steps=1", "optim.epochs=8"]
    trained(set(), *settings, "engine.stop_after_steps=4")
    wild = ["optim.base_lr=1e12", "--allow-config-change"]
    printed = trained(set(), *settings, *wild, expected=2).err
    assert "5 consecutive step(s)" in printed
    assert read_manifest(run)["status"] == "failed"
    kept = list_checkpoints(run / "checkpoints")
    assert kept
    assert all(read_checkpoint(path) for path in kept)  # whole: nothing in them is NaN
    assert f"The last checkpoint, {kept[0].name}, is intact" in printed
    (dump,) = run.glob("nonfinite_step_*.json")
    assert json.loads(dump.read_text())["last_checkpoint"] == kept[0].name
    # What was written after the weights had blown up is set aside, and the run continues.
    assert list((run / "checkpoints").glob("unproven_*"))
    printed = trained(set(), *settings, "--allow-config-change", "engine.stop_after_steps=3").out
    assert f"from step {step_of(kept[0])}" in printed
    assert "skipped" not in printed


def test_a_retry_that_fails_at_once_costs_no_checkpoint(trained, tmp_path):
    """Whatever is wrong, such as a GPU: what an earlier session left is not its doing."""
    keep = ["engine.checkpoint_steps=1", "optim.epochs=4"]
    trained(set(), *keep, "engine.stop_after_steps=3")
    for _ in range(3):
        trained(set(range(4, 20)), *keep, expected=2)
        assert steps_kept(tmp_path / "run") == [2, 3]
    assert "from step 3" in trained(set(), *keep).out


def test_a_backbone_that_is_not_finite_is_not_exported(images, tmp_path):
    made = learner()
    made.encoder.backbone.layer3[0].bn1.running_var[3] = math.inf
    run = RunDirectory.start(
        *(tmp_path / "run",), stage="pretrain", name="r", config_name="r", config={}, seed=0
    )
    with pytest.raises(
        StateNotFiniteError, match=r"layer3\.0\.bn1\.running_var contains NaN or inf"
    ):
        export(run, made.encoder.backbone, made._config, {"steps": 1, "final_loss": 1.0})
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["manifest.json"]
