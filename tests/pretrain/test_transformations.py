"""Losses of any spectral transformation under the stage, and the spectrum of what it makes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from intl_transfer.data.views import ViewConfig
from intl_transfer.runs.settings import deciding, differences
from intl_transfer.runs.wording import in_words, method_title
from intl_transfer.spectral import (
    IterNorm,
    PowerTransform,
    ScalarTransform,
    diagnose,
    scalar_expression,
)
from pretrain.config import LossConfig, ModelConfig, OptimConfig, PretrainConfig
from pretrain.learner import loss_of
from pretrain.monitor import output_spectrum


def configured(**loss):
    return PretrainConfig(
        views=[ViewConfig(size=32)] * 3,
        loss=LossConfig(**loss),
        optim=OptimConfig(epochs=1, base_lr=0.1, batch_size=16),
        model=ModelConfig(embedding=48),
    )


def embeddings(leading=1.0):
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(16, 48, generator=generator) for _ in range(3)]
    for view in views:
        view[:, :1] += leading * 20
    return [view.requires_grad_() for view in views]


def gradients(config, views):
    loss, parts = loss_of(views, config)
    return loss, parts, torch.autograd.grad(loss, views[1:])


@pytest.mark.parametrize("method", ["intl", "intl_ema"])
@pytest.mark.parametrize("axis", ["channel", "batch"])
def test_the_direct_iteration_is_the_stable_one_where_both_are_right(method, axis):
    views = embeddings(0.0)
    stable = gradients(configured(method=method, axis=axis), views)
    direct = gradients(configured(method=method, axis=axis, stable=False), views)
    torch.testing.assert_close(direct[0], stable[0], rtol=1e-4, atol=1e-5)
    for name in ("mismatch", "trace_loss"):
        torch.testing.assert_close(direct[1][name], stable[1][name], rtol=1e-4, atol=1e-4)
    for one, other in zip(direct[2], stable[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-4)


def test_the_direct_iteration_diverges_at_many_iterations():
    views = embeddings()
    direct, _ = loss_of(views, configured(iterations=15, stable=False))
    stable, _ = loss_of(views, configured(iterations=15))
    assert not torch.isfinite(direct) or direct > 100 * stable
    assert torch.isfinite(stable)


def test_a_power_against_a_moving_average_gives_no_gradient_to_the_target():
    views = embeddings(0.0)
    loss, _ = loss_of(views, configured(method="power_ema", options={"p": 0.5}))
    loss.backward()
    assert views[0].grad is None
    assert views[1].grad.abs().max() > 0
    written = configured(method="spectral_ema", g="x ** -0.5")
    torch.testing.assert_close(loss_of(views, written)[0], loss)


@pytest.mark.parametrize("axis", ["channel", "batch"])
@pytest.mark.parametrize(
    "transform",
    [
        lambda axis: PowerTransform(0.0, axis),
        lambda axis: PowerTransform(0.3, axis),
        lambda axis: PowerTransform(1.5, axis),
        lambda axis: IterNorm(4, axis),
        lambda axis: IterNorm(9, axis),
        lambda axis: IterNorm(5, axis, stable=False),
        lambda axis: ScalarTransform(scalar_expression("1 / (1 + x)"), axis),
    ],
)
def test_the_logged_output_spectrum_is_the_outputs(transform, axis):
    z = torch.randn(12, 40, generator=torch.Generator().manual_seed(1)).double()
    z = z * torch.logspace(0, -1, 40).double()
    made = transform(axis)
    found = output_spectrum(z, diagnose([z, z], axis).eigenvalues, made)
    z_hat = made.apply_to(z)
    divisor = 39 if axis == "channel" else 11
    expected = torch.linalg.svdvals(z_hat).square() / divisor
    torch.testing.assert_close(found, expected[: len(found)], rtol=1e-6, atol=1e-9)


def test_a_method_without_a_transformation_or_a_diverged_one_has_no_output_spectrum():
    z = embeddings()[0].detach()
    values = diagnose([z, z]).eigenvalues
    assert output_spectrum(z, values, None) is None
    assert output_spectrum(z, values, IterNorm(30, stable=False)) is None
    nothing = output_spectrum(torch.zeros(4, 8), torch.zeros(4).double(), PowerTransform(1.5))
    assert nothing.tolist() == [0.0] * 4


def test_what_the_new_keys_say_and_decide():
    now = dataclasses.asdict(configured(iterations=9, stable=False))
    before = dataclasses.asdict(configured(iterations=9))
    changed = differences("pretrain", before, now)
    assert list(changed) == ["loss.stable"]
    assert in_words({"loss.stable": False}) == "direct iteration"
    old = {key: value for key, value in before["loss"].items() if key not in ("stable", "g")}
    assert differences("pretrain", {**before, "loss": old}, before) == {}
    assert deciding("pretrain", {**before, "loss": old})["loss.stable"] is True
    power = {"method": "power_ema", "options": {"p": 0.5}, "trace_weight": 0.1}
    assert method_title(power) == "Spectral power p = 0.5 + EMA + trace loss"
    formula = {"method": "spectral", "g": "1 / (1 + x)", "trace_weight": None}
    assert method_title(formula) == "Spectral transformation g(x) = 1 / (1 + x)"
