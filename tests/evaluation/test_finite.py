"""A step of an evaluation that is not finite is as if its data had not been there, and counted."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from intl_transfer.evaluation.backbone import EvaluatedBackbone
from intl_transfer.evaluation.learner import Learner
from intl_transfer.runs import read_manifest, read_metrics, read_results
from intl_transfer.runs.checkpoint import list_checkpoints, read_checkpoint
from intl_transfer.runs.distributed import Ranks
from tests.evaluation.test_learner import ALONE, Flat, batch
from tests.evaluation.test_stage import KINDS, evaluate
from tests.ranks import run_ranks


def learned(learner):
    """Everything that a step may change, statistics of the backbone included."""
    parts = {"all": learner.classifier.state_dict()}
    for number, state in learner.optimizer.state_dict()["state"].items():
        parts[str(number)] = state
    return {f"{a}.{b}": v.clone() for a, part in parts.items() for b, v in part.items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def make(config):
    torch.manual_seed(0)
    return Learner(EvaluatedBackbone(Flat(), 12, "resnet18"), 3, config, ALONE)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("linear", {"momentum": 0.9}),
        ("linear", {"optimizer": "adam", "lr": 0.01}),
        ("semi", {"momentum": 0.9}),
        ("semi", {"optimizer": "adam", "lr": 0.01}),
    ],
)
@pytest.mark.parametrize("at", [0, 2])
def test_a_skipped_step_leaves_no_trace(kind, options, at, make_config):
    config = make_config(kind, **options)
    disturbed, calm = make(config), make(config)
    inputs = disturbed.inputs
    for step in range(4):
        if step == at:
            before = learned(disturbed)
            disturbed.inputs = lambda pixels: inputs(pixels) * math.inf
            disturbed.step(1.0, *batch(step))
            disturbed.inputs = inputs
            if at:  # an optimizer makes its state at the first step
                assert_equal(learned(disturbed), before)
            continue
        for learner in (disturbed, calm):
            learner.step(1.0, *batch(step))
    assert_equal(learned(disturbed), learned(calm))
    skips = disturbed.skips.read()
    assert (skips.total, skips.in_a_row, skips.longest) == (1, 0, 1)
    assert calm.skips.read().total == 0


def on_a_rank(rank, world_size, config):
    ranks = Ranks(rank, world_size, rank, torch.device("cpu"))
    torch.manual_seed(0)
    learner = Learner(EvaluatedBackbone(Flat(), 12, "resnet18"), 3, config, ranks)
    inputs = learner.inputs
    for step in range(3):
        if step == 1 and rank == 1:
            learner.inputs = lambda pixels: inputs(pixels) * math.nan
        learner.step(1.0, *batch(10 * step + rank, rows=4))
        learner.inputs = inputs
    weights = learner.classifier.state_dict()
    return {k: v.numpy() for k, v in weights.items()}, learner.skips.read().total


@pytest.mark.parametrize("kind", ["linear", "semi"])
def test_all_ranks_skip_what_one_of_them_meets(kind, make_config):
    (one, skipped), (two, skipped_too) = run_ranks(on_a_rank, 2, make_config(kind))
    assert skipped == skipped_too == 1
    for name, value in one.items():
        assert (value == two[name]).all(), name


@pytest.fixture
def poisoned(monkeypatch):
    """Makes the batches of some steps infinite, from 1."""

    def poison(bad):
        real, calls = Learner.step, [0]

        def step(self, factor, inputs, labels):
            calls[0] += 1
            own = self.inputs
            if calls[0] in bad:
                self.inputs = lambda pixels: own(pixels) * math.inf
            try:
                return real(self, factor, inputs, labels)
            finally:
                self.inputs = own

        monkeypatch.setattr(Learner, "step", step)

    return poison


@pytest.mark.parametrize("kind", ["linear", "cached", "semi"])
def test_bad_steps_are_counted_told_and_leave_finite_weights(
    kind, classes, trained, tmp_path, capsys, poisoned
):
    poisoned({1, 3})
    evaluate(classes, trained, tmp_path / "run", *KINDS[kind], "log.steps=2")
    printed = capsys.readouterr().out
    assert "step 2: 1 step was skipped, the loss or its gradients being NaN or infinite" in printed
    assert "(2 so far)" in printed
    assert read_results(tmp_path / "run")["skipped_steps"] == 2
    rows = [row for row in read_metrics(tmp_path / "run") if "skipped_steps" in row]
    assert [row["skipped_steps"] for row in rows] == [1, 2]
    weights = load_file(tmp_path / "run" / "classifier.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_an_undisturbed_evaluation_counts_none(classes, trained, tmp_path, capsys):
    evaluate(classes, trained, tmp_path / "run")
    assert read_results(tmp_path / "run")["skipped_steps"] == 0
    assert "skipped" not in capsys.readouterr().out


def test_counts_go_on_and_no_checkpoint_is_taken_among_them(
    classes, trained, tmp_path, capsys, poisoned
):
    output = tmp_path / "run"
    poisoned({2, 4})  # the fourth is the epoch's last
    evaluate(classes, trained, output, "engine.stop_after_steps=3")
    assert [path.name for path in list_checkpoints(output / "checkpoints")] == ["step_00000003.pt"]
    evaluate(classes, trained, output, "engine.stop_after_steps=1", expected=74)
    assert len(list_checkpoints(output / "checkpoints")) == 1
    evaluate(classes, trained, output)
    assert read_results(output)["skipped_steps"] == 1  # step 4 was made again, from step 3


def test_a_rate_that_blows_the_head_up_leaves_whole_checkpoints_alone(
    classes, trained, tmp_path, capsys
):
    output, long = tmp_path / "run", ["optim.epochs=3", "log.test_epochs=0"]
    evaluate(classes, trained, output, *long, "engine.stop_after_steps=4")
    wild = ["optim.lr=1e38", "optim.weight_decay=9", "--allow-config-change"]
    evaluate(classes, trained, output, *long, *wild, expected=2)
    printed = capsys.readouterr().err
    assert "5 consecutive steps" in printed
    assert "use a smaller optim.lr" in printed
    assert read_manifest(output)["status"] == "failed"
    kept = list_checkpoints(output / "checkpoints")
    assert kept
    assert all(read_checkpoint(path) for path in kept)
    evaluate(classes, trained, output, *long, "--allow-config-change")
    assert read_results(output)["skipped_steps"] == 0


@pytest.mark.parametrize("kind", ["linear", "cached", "knn"])
def test_features_that_are_not_finite_are_refused(kind, classes, trained, tmp_path, capsys):
    weights = load_file(trained)
    weights["layer3.1.bn2.bias"] += 3e38  # sums of such overflow
    file = tmp_path / "large.safetensors"
    save_file(weights, str(file))
    late = [] if kind == "knn" else ["optim.epochs=9", "log.test_epochs=0"]
    evaluate(classes, file, tmp_path / "run", *KINDS[kind], *late, expected=2)
    printed = capsys.readouterr().err
    if kind == "linear":  # whose features come batch by batch
        assert "NaN or infinity in the loss or its gradients, 5 consecutive steps" in printed
    else:
        assert "images contain NaN or infinity" in printed
    assert read_results(tmp_path / "run") is None


def test_answers_that_are_not_finite_are_no_result(classes, trained, tmp_path, capsys):
    wild = ["optim.lr=1e38", "optim.weight_decay=9", "engine.nonfinite_steps=99"]
    evaluate(classes, trained, tmp_path / "run", *wild, expected=2)
    assert "NaN or infinity in the outputs for 21 of 21 test images" in capsys.readouterr().err
