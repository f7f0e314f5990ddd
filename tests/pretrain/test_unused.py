"""Settings that a method does not use: by training, rows, refusals and sweeps."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from intl_transfer.data.datasets import Batch
from intl_transfer.errors import UserError
from intl_transfer.methods import METHODS
from intl_transfer.results.collect import collect
from intl_transfer.results.tables import build_tables
from intl_transfer.runs.config import load_config
from intl_transfer.runs.distributed import Ranks
from intl_transfer.runs.settings import deciding, differences, flatten
from pretrain.checks import configuration
from pretrain.config import PretrainConfig
from pretrain.learner import Learner
from slurm.sweep import SweepPlan, read
from tests.results.synthetic import detection_run, start_of

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "pretrain"
TINY = [
    *("model.backbone=resnet18", "model.stem=cifar", "views=[{size: 8}, {size: 8}]"),
    *("model.projector_hidden=16", "model.embedding=8", "optim.batch_size=16", "optim.epochs=3"),
    *("data.name=none", "data.root=none", "optim.base_lr=1", "optim.warmup_epochs=0"),
    "loss.trace_weight=0.1",
]
#: By setting, a value other than that of TINY.
OTHERS = {
    "loss.axis": "batch",
    "loss.iterations": "2",
    "loss.stable": "false",
    "loss.trace_weight": "0.3",
    "loss.ema_momentum": "0.5",
    "model.projector_hidden": "8",
}
NEEDED = {"power": ["loss.options.p=0.5"], "spectral": ["loss.g=1 / (1 + x)"]}


def configured(*overrides: str) -> PretrainConfig:
    return load_config(PretrainConfig, "shapes_r18", [*TINY, *overrides], CONFIGS)


def trained(config: PretrainConfig) -> list[torch.Tensor]:
    """The first and the last weights of all networks after three steps on the same images."""
    torch.manual_seed(0)
    learner = Learner(config, Ranks(0, 1, 0, torch.device("cpu")), steps_per_epoch=1)
    learner.prepare()
    generator = torch.Generator().manual_seed(1)
    shape = (config.optim.batch_size, 8, 8, 3)
    for step in range(3):
        views = [
            torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in range(2)
        ]
        done = learner.step(step, Batch(views, torch.arange(shape[0]), [], False))
        assert done.is_finite
    targets = [learner.target.encoder] if learner.target else []
    found = [list(network.parameters()) for network in (learner.encoder, *targets)]
    return [tensor.detach() for own in found for tensor in (own[0], own[-1])]


@pytest.mark.parametrize(("name", "layers"), [*((name, 2) for name in METHODS), ("intl", 1)])
def test_a_setting_decides_exactly_if_training_changes_with_it(name, layers):
    base = [f"loss.method={name}", f"model.projector_layers={layers}"]
    base += NEEDED.get(name.removesuffix("_ema"), [])
    usual = configured(*base)
    reference = trained(usual)
    for key, value in OTHERS.items():
        other = configured(*base, f"{key}={value}")
        weights = trained(other)
        moved = [tuple(a.shape) for a in reference] != [tuple(b.shape) for b in weights] or any(
            not torch.equal(a, b) for a, b in zip(reference, weights, strict=True)
        )
        decides = differences("pretrain", dataclasses.asdict(usual), dataclasses.asdict(other))
        assert bool(decides) == moved, key


def test_rows_do_not_come_apart_by_what_the_method_does_not_use(tmp_path):
    """Neither of new records nor of those that state all settings, as earlier versions wrote."""
    for index, iterations in enumerate((4, 9)):
        config = configured("loss.method=simclr", f"loss.iterations={iterations}")
        flat = flatten(dataclasses.asdict(config))
        made = flat if index else deciding("pretrain", flat)
        made = {k: v for k, v in made.items() if k in deciding("pretrain", {}) or "loss." in k}
        start = start_of("SimCLR", str(index), id=str(index), seed=index, settings=made)
        detection_run(tmp_path, f"run{index}", 30.0, initialization=start)
    (table,) = build_tables(collect([tmp_path], cache=False))
    assert [len(row.runs) for row in table.rows] == [2]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            ["loss.method=barlow_twins", "loss.iterations=8"],
            "'loss.iterations=8' has no effect: loss.iterations is of IterNorm only, and "
            "loss.method is barlow_twins. Leave it away",
        ),
        (
            ["loss={method: vicreg, axis: batch}"],
            "loss.axis is of spectral transformations only, and loss.method is vicreg",
        ),
        (["knn.test=val"], "of k-NN evaluations during training only, and knn.epochs is 0"),
        (["loss.ema_momentum=0.9"], "of methods with a moving-average copy only"),
        (
            ["model.projector_layers=1", "model.projector_hidden=64"],
            "of projectors with hidden layers only, and model.projector_layers is 1",
        ),
    ],
)
def test_what_is_given_without_effect_is_refused(settings, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        configuration("shapes_r18", settings)


def test_a_sweep_over_what_the_method_does_not_use_is_refused(tmp_path):
    config = read("sweep_shapes", ["grid={loss.iterations: [2, 4]}", "points=[]"])
    config.overrides.append("loss.method=simclr")
    with pytest.raises(UserError, match=r"loss\.iterations is of IterNorm only"):
        SweepPlan(config, "swept", tmp_path, tmp_path, {}, {}, 0).jobs()


def test_a_sweep_without_neighbors_names_no_images_for_them(tmp_path):
    config = read("sweep_shapes", ["overrides=[optim.epochs=1]", "grid={}", "points=[]"])
    config.points = [{"optim.base_lr": 1}]
    jobs = SweepPlan(config, "swept", tmp_path, tmp_path, {}, {}, 0).jobs()
    assert not any("knn." in word for job in jobs for word in job.command)
