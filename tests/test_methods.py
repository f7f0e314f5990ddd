"""The rows of pretraining methods: losses, options, targets, and what documents say of them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from intl_transfer.errors import UserError
from intl_transfer.methods import METHODS, by_name, comparison
from intl_transfer.runs.settings import deciding
from intl_transfer.runs.wording import method_title
from intl_transfer.spectral import (
    PowerTransform,
    barlow_twins_loss,
    intl_ema_loss,
    intl_loss,
    nt_xent_loss,
    spectral_ema_loss,
    spectral_loss,
    vicreg_loss,
    w_mse_loss,
)
from pretrain.checks import check
from pretrain.learner import loss_of
from pretrain.train import begun

ROOT = Path(__file__).resolve().parents[1]
POWER = PowerTransform(0.5)
#: By method, settings beside it, and its loss as a caller of the library computes it.
LOSSES = {
    "intl": ([], intl_loss),
    "intl_ema": ([], lambda views: intl_ema_loss(views[1:], views[0])),
    "power": (["options.p=0.5"], lambda views: spectral_loss(views, POWER)),
    "power_ema": (["options.p=0.5"], lambda v: spectral_ema_loss(v[1:], v[0], POWER)),
    "spectral": (["g=x ** -0.5"], lambda views: spectral_loss(views, POWER)),
    "spectral_ema": (["g=x ** -0.5"], lambda v: spectral_ema_loss(v[1:], v[0], POWER)),
    "w_mse": (["options.whitening_size=16"], lambda v: w_mse_loss(v, whitening_size=16)),
    "barlow_twins": ([], barlow_twins_loss),
    "vicreg": (["options.variance_weight=3"], lambda v: vicreg_loss(v, variance_weight=3)),
    "simclr": (["options.temperature=0.5"], lambda v: nt_xent_loss(v, temperature=0.5)),
}


def configured(*loss: str):
    overrides = [f"loss.{setting}" for setting in loss]
    return begun("shapes_r18", [*overrides, "optim.batch_size=32"], "runs/none")


@pytest.mark.parametrize("name", METHODS)
def test_a_row_is_the_loss_that_the_library_has(name):
    settings, loss = LOSSES[name]
    config = configured(f"method={name}", *settings)
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(32, 8, generator=generator).requires_grad_() for _ in range(2)]
    parts: dict = {}
    found = METHODS[name].loss(views, config.loss, 32, parts)
    expected = loss(views)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    mine, theirs = (torch.autograd.grad(value, views[1])[0] for value in (found, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)
    assert set(parts) == ({"mismatch", "trace_loss"} if METHODS[name].is_iternorm else set())


@pytest.mark.parametrize("name", METHODS)
def test_weights_of_the_trace_loss_with_one_meaning_are_one_setting(name):
    """Null and 0 are one row where they are one loss, and only there."""
    views = [torch.randn(32, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    losses, decided = [], []
    config = configured(f"method={name}", *LOSSES[name][0])
    for weight in (None, 0.0):
        config.loss.trace_weight = weight
        losses.append(float(METHODS[name].loss(views, config.loss, 32, {})))
        decided.append(deciding("pretrain", dataclasses.asdict(config)))
    assert (decided[0] == decided[1]) is (losses[0] == losses[1])


@pytest.mark.parametrize("name", METHODS)
def test_a_target_takes_no_gradient(name):
    config = configured(f"method={name}", *LOSSES[name][0])
    views = [torch.randn(32, 8).requires_grad_() for _ in range(2)]
    METHODS[name].loss(views, config.loss, 32, {}).backward()
    assert (views[0].grad is None) == METHODS[name].has_target
    assert views[1].grad.abs().max() > 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("method=simclr options.temperature=0", "temperature is 0.0; expected a number > 0"),
        ("method=w_mse options.whitening_size=4.5", "is 4.5; expected a whole number >= 1"),
        ("method=w_mse options.shrinkage=2", "shrinkage is 2.0; expected a number from 0 to 1"),
        ("method=vicreg options.eps=nan", "options.eps is nan; expected a finite number"),
        ("method=power options.p=1 options.floor=-1", "floor is -1.0; expected a fraction of"),
    ],
)
def test_options_that_no_loss_can_take_are_refused_before_training(settings, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        check(configured(*settings.split()))


def test_a_method_of_another_version_keeps_its_name_in_tables():
    assert method_title({"method": "byol", "trace_weight": 0}) == "byol"


def test_the_documentation_lists_the_rows():
    """Written by hand, and held to the rows: names, titles, options with their defaults."""
    page = (ROOT / "docs" / "spectral.md").read_text()
    start = page.index("| `loss.method` |")
    table = page[start : page.index("\n\n", start)].splitlines()[2:]
    assert table == [
        f"| `{method.name}` | {method.full_title} | {options_in_words(method) or '–'} |"
        for method in METHODS.values()
    ]


def options_in_words(method):
    words = []
    for name, option in method.options.items():
        usual = "batch size" if option.default is None else f"{option.default:g}"
        words.append(f"`{name}` ({'required' if option.required else usual})")
    return ", ".join([*words, *(["`loss.g` (required)"] if method.takes_g else [])])


def test_embeddings_without_a_loss_end_a_run_in_a_line_that_helps():
    config = configured("method=w_mse", "options.whitening_size=16")
    collapsed = torch.randn(32, 1) @ torch.randn(1, 8)
    with pytest.raises(UserError) as error:
        loss_of([collapsed, torch.randn(32, 8)], config)
    message = str(error.value)
    assert message.startswith("W-MSE has no loss for these embeddings: the covariance of a batch")
    assert "is singular" in message
    assert "loss.options.NAME" in message
    shrunk = configured("method=w_mse", "options.whitening_size=16", "options.shrinkage=0.1")
    assert loss_of([collapsed, torch.randn(32, 8)], shrunk)[0].isfinite()


def test_options_of_a_users_loss_are_its_keywords_that_take_numbers():
    seen = {}

    def loss(z, scale: float, power: int = 2, flag=True, share: float = 1, kind="a", **others):
        seen.update(scale=scale, power=power, flag=flag, share=share, kind=kind, others=others)
        return z[0].sum()

    row = comparison("own", "Own", loss)
    assert list(row.options) == ["scale", "power", "flag", "share"]
    assert row.options["scale"].required == "loss.options.scale"
    assert [row.options[name].default for name in ("power", "flag", "share")] == [2, True, 1]
    assert row.options["share"].is_good(0.5)
    assert not row.options["power"].is_good(0.5)
    settings = configured().loss
    settings.options = {"scale": 3.0, "power": 4.0, "flag": 0.0}
    row.loss([torch.ones(2, 2)], settings, 2, {})
    assert seen.pop("others") == {}
    assert seen == {"scale": 3.0, "power": 4, "flag": False, "share": 1, "kind": "a"}
    assert type(seen["power"]) is int
    assert seen["flag"] is False
    with pytest.raises(ValueError, match="two methods are named 'own'"):
        by_name([row, row])
