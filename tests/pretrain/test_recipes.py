"""Every shipped configuration, resolved and held against the published table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import nn

from intl_transfer.data.loaders import rank_batch_size
from intl_transfer.runs.config import load_config
from intl_transfer.spectral import default_trace_weight
from pretrain.config import PretrainConfig
from pretrain.learner import learning_rate, parameter_groups
from pretrain.session import check

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "pretrain"
IMAGENET, IMAGENET100, CIFAR = 1_281_167, 126_689, 50_000

TWO_VIEWS = {
    "views": [(224, 0.08, 1.0, 1.0, 0.1), (224, 0.08, 1.0, 0.0, 0.2)],
    "method": "intl",
}
MULTICROP = {
    "views": [
        (224, 0.2, 1.0, 0.5, 0.1),
        (224, 0.2, 1.0, 0.5, 0.1),
        (192, 0.171, 0.857, 0.5, 0.1),
        (160, 0.143, 0.714, 0.5, 0.1),
        (128, 0.114, 0.571, 0.5, 0.1),
        (96, 0.086, 0.429, 0.5, 0.1),
    ],
    "method": "intl_ema",
}
SMALL = {
    "views": [(32, 0.08, 1.0, 0.0, 0.0), (32, 0.08, 1.0, 0.0, 0.2)],
    "method": "intl",
}


@dataclass
class Published:
    """A column of the paper's table; views are size, scale min, max, blur, solarise."""

    images: int
    epochs: int
    batch: int
    base_lr: float
    weight_decay: float
    hidden: int
    embedding: int
    backbone: str
    precision: str
    views: list[tuple[float, ...]]
    method: str
    stem: str = "imagenet"
    decay_1d: bool = False


def imagenet(epochs, base_lr, kind):
    return Published(IMAGENET, epochs, 256, base_lr, 1e-5, 8192, 8192, "resnet50", "fp16", **kind)


def cifar():
    return Published(
        *(CIFAR, 1000, 256, 0.3, 1e-4, 2048, 2048, "resnet18", "fp32"),
        **SMALL,
        stem="cifar",
        decay_1d=True,
    )


TABLE = {
    "cifar10_r18_ep1000": cifar(),
    "cifar100_r18_ep1000": cifar(),
    "imagenet100_r18_ep400": Published(
        *(IMAGENET100, 400, 128, 0.5, 2.5e-5, 4096, 8192, "resnet18", "fp16"), **TWO_VIEWS
    ),
    # Published for 800 epochs; the shorter ones keep the settings.
    **{f"imagenet_r50_ep{e}": imagenet(e, 0.3, TWO_VIEWS) for e in (100, 200, 400, 800)},
    **{
        f"imagenet_r50_ep{epochs}_multicrop_ema": imagenet(epochs, base_lr, MULTICROP)
        for epochs, base_lr in ((100, 0.5), (200, 0.4), (400, 0.4), (800, 0.3))
    },
}


def test_every_published_recipe_is_there_and_every_file_is_known():
    names = {path.stem for path in CONFIGS.glob("*.yaml")}
    assert names == {*TABLE, "shapes_r18", "shapes_r50"}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_file_resolves(path):
    check(load_config(PretrainConfig, path.stem, [], CONFIGS))


@pytest.mark.parametrize("ranks", [1, 8, 32])
@pytest.mark.parametrize("name", sorted(TABLE))
def test_resolved_values_are_the_published_ones(name, ranks):
    config, published = load_config(PretrainConfig, name, [], CONFIGS), TABLE[name]
    model, optim, loss = config.model, config.optim, config.loss

    assert (model.backbone, model.stem) == (published.backbone, published.stem)
    assert model.zero_init_residual == (published.backbone != "resnet18")
    assert model.sync_batchnorm
    shape = (model.projector_layers, model.projector_hidden, model.embedding)
    assert shape == (3, published.hidden, published.embedding)
    assert config.engine.precision == published.precision

    # The batch is the global one, whatever the number of ranks.
    per_rank = rank_batch_size(optim.batch_size, ranks)
    assert per_rank * ranks == published.batch
    steps = published.images // published.batch
    total, warmup = published.epochs * steps, round(optim.warmup_epochs * steps)
    assert warmup == 2 * steps
    peak = published.base_lr * published.batch / 256
    assert learning_rate(0, total, warmup, optim) == pytest.approx(peak / warmup)
    assert learning_rate(warmup - 1, total, warmup, optim) == pytest.approx(peak)
    middle = learning_rate(warmup + (total - warmup) // 2, total, warmup, optim)
    assert middle == pytest.approx(peak * 1.001 / 2, rel=1e-3)
    assert learning_rate(total, total, warmup, optim) == pytest.approx(0.001 * peak)
    assert (optim.optimizer, optim.momentum, optim.clip_norm) == ("sgd", 0.9, None)

    assert (loss.method, loss.axis, loss.iterations) == (published.method, "channel", 4)
    assert loss.trace_weight is None
    beta = default_trace_weight(per_rank * ranks, model.embedding, loss.axis)
    assert beta == pytest.approx(0.01 * (math.log2(published.batch) - 3))
    if published.method == "intl_ema":
        assert loss.ema_momentum == 0.996

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    groups = parameter_groups(network, optim)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for parameter in network.parameters():
        is_free = parameter.dim() == 1 and not published.decay_1d
        assert decay[id(parameter)] == (0 if is_free else published.weight_decay)

    found = [(v.size, v.scale_min, v.scale_max, v.blur, v.solarise) for v in config.views]
    assert found == published.views
    for view in config.views:
        colour = (view.jitter, view.brightness, view.contrast, view.saturation, view.hue)
        assert colour == (0.8, 0.4, 0.4, 0.2, 0.1)
        assert (view.grey, view.flip) == (0.2, 0.5)


def test_projector_of_the_recipes():
    from intl_transfer.models import build_projector

    layers = list(build_projector(512, 2048, 2048, 3))
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    assert [layer.bias is not None for layer in linear] == [False, False, True]
    assert isinstance(layers[-1], nn.Linear)
    assert sum(isinstance(layer, nn.BatchNorm1d) for layer in layers) == 2
