from __future__ import annotations

from pathlib import Path

import pytest

from intl_transfer.runs.config import load_config
from intl_transfer.spectral import default_trace_weight
from pretrain.config import PretrainConfig
from pretrain.learner import learning_rate
from pretrain.session import check

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "pretrain"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_file_resolves(path):
    config = load_config(PretrainConfig, path.stem, [], CONFIGS)
    check(config)


def recipe(name: str) -> PretrainConfig:
    config = load_config(PretrainConfig, name, [], CONFIGS)
    assert config.model.backbone == "resnet50"
    assert config.model.zero_init_residual is True
    assert (config.model.projector_layers, config.model.projector_hidden) == (3, 8192)
    assert config.model.embedding == 8192
    assert config.model.sync_batchnorm is True
    assert (config.loss.axis, config.loss.iterations) == ("channel", 4)
    assert config.loss.trace_weight is None
    assert default_trace_weight(config.optim.batch_size, 8192) == pytest.approx(0.05)
    assert (config.optim.batch_size, config.optim.momentum) == (256, 0.9)
    assert (config.optim.weight_decay, config.optim.decay_1d) == (1e-5, False)
    assert (config.optim.warmup_epochs, config.optim.final_lr_factor) == (2, 0.001)
    for view in config.views:
        colour = (view.jitter, view.brightness, view.contrast, view.saturation, view.hue)
        assert colour == (0.8, 0.4, 0.4, 0.2, 0.1)
        assert (view.grey, view.flip) == (0.2, 0.5)
    return config


def test_imagenet_two_views():
    config = recipe("imagenet_r50_ep800")
    assert (config.optim.epochs, config.optim.base_lr, config.loss.method) == (800, 0.3, "intl")
    assert [(v.size, v.scale_min, v.scale_max) for v in config.views] == [(224, 0.08, 1.0)] * 2
    assert [(v.blur, v.solarise) for v in config.views] == [(1.0, 0.1), (0.0, 0.2)]
    assert learning_rate(10_000, 4_003_200, 10_008, config.optim) == pytest.approx(0.3, rel=1e-3)


def test_imagenet_multicrop_with_moving_average():
    config = recipe("imagenet_r50_ep200_multicrop_ema")
    assert (config.optim.epochs, config.optim.base_lr) == (200, 0.4)
    assert (config.loss.method, config.loss.ema_momentum) == ("intl_ema", 0.996)
    assert [v.size for v in config.views] == [224, 224, 192, 160, 128, 96]
    assert [(v.scale_min, v.scale_max) for v in config.views] == [
        *((0.2, 1.0), (0.2, 1.0), (0.171, 0.857), (0.143, 0.714), (0.114, 0.571), (0.086, 0.429))
    ]
    assert {(v.blur, v.solarise) for v in config.views} == {(0.5, 0.1)}
