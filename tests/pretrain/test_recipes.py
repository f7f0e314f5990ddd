"""Every shipped configuration, resolved and held against the published table, line by line.

A line below says: in these recipes, of this view, this key has this value. Every key of a recipe
that decides a result has exactly one line, so that no value can change without a line failing.
"""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import functools
import math
from pathlib import Path

import pytest
import yaml
from torch import nn

from intl_transfer.data.loaders import rank_batch_size
from intl_transfer.data.statistics import STATISTICS
from intl_transfer.models import starts_at_zero
from intl_transfer.runs.config import load_config
from intl_transfer.runs.settings import flatten, role_of
from intl_transfer.spectral import default_trace_weight
from pretrain.checks import check
from pretrain.config import PretrainConfig
from pretrain.learner import learning_rate, parameter_groups

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "pretrain"
IMAGES = {"cifar": 50_000, "imagenet100": 126_689, "imagenet": 1_281_167}
#: Chosen here; the others are published, or published settings shortened.
OWN = {"photo_cutouts_r18", "shapes_r18", "shapes_r50"}

# cifar*: CIFAR-10 and -100. imagenet100*: ImageNet-100. *ep???: ImageNet, two views.
# *_ema: ImageNet, multi-crop with moving average. A view of - is no view's key, * is every view's.
TABLE = """
# recipes                  view  key                     value

# backbone, epochs
cifar*                     -     model.backbone          resnet18
imagenet100*               -     model.backbone          resnet18
imagenet_r50*              -     model.backbone          resnet50
cifar*                     -     model.stem              cifar_published
imagenet*                  -     model.stem              imagenet
cifar*                     -     optim.epochs            1000
imagenet100*               -     optim.epochs            400
*_r50_ep800                -     optim.epochs            800
*_r50_ep800_*_ema          -     optim.epochs            800
*_r50_ep400_*_ema          -     optim.epochs            400
*_r50_ep200_*_ema          -     optim.epochs            200
*_r50_ep100_*_ema          -     optim.epochs            100
# residual branches' last batch norm starts at zero, not for ResNet-18
cifar*                     -     model.zero_init_residual  false
imagenet100*               -     model.zero_init_residual  false
imagenet_r50*              -     model.zero_init_residual  true
*                          -     model.sync_batchnorm    true

# N, base rate
cifar*                     -     optim.batch_size        256
imagenet100*               -     optim.batch_size        128
imagenet_r50*              -     optim.batch_size        256
cifar*                     -     optim.base_lr           0.3
imagenet100*               -     optim.base_lr           0.5
*_r50_ep???                -     optim.base_lr           0.3
*_r50_ep100_*_ema          -     optim.base_lr           0.5
*_r50_ep200_*_ema          -     optim.base_lr           0.4
*_r50_ep400_*_ema          -     optim.base_lr           0.4
*_r50_ep800_*_ema          -     optim.base_lr           0.3

# SGD, momentum, warm-up of 2 epochs, cosine to 0.001 of the rate
*                          -     optim.optimizer         sgd
*                          -     optim.momentum          0.9
*                          -     optim.warmup_epochs     2
*                          -     optim.final_lr_factor   0.001
*                          -     optim.clip_norm         null

# weight decay; none on 1-D parameters, CIFAR: on all
cifar*                     -     optim.weight_decay      1.0e-4
imagenet100*               -     optim.weight_decay      2.5e-5
imagenet_r50*              -     optim.weight_decay      1.0e-5
cifar*                     -     optim.decay_1d          true
imagenet*                  -     optim.decay_1d          false

# projector: hidden -> embedding, 3 layers
*                          -     model.projector_layers  3
cifar*                     -     model.projector_hidden  2048
imagenet100*               -     model.projector_hidden  4096
imagenet_r50*              -     model.projector_hidden  8192
cifar*                     -     model.embedding         2048
imagenet*                  -     model.embedding         8192

# precision: "mixed" there, by fp16; bf16 has no scale to look for
cifar*                     -     engine.precision        fp32
imagenet*                  -     engine.precision        bf16

# the loss: INTL, T = 4, the default axis, beta by its formula; m0 of the moving average
cifar*                     -     loss.method             intl
imagenet100*               -     loss.method             intl
*_r50_ep???                -     loss.method             intl
*_ema                      -     loss.method             intl_ema
*                          -     loss.axis               channel
*                          -     loss.iterations         4
*                          -     loss.stable             true
*                          -     loss.trace_weight       null
*                          -     loss.g                  null
*                          -     loss.options            {}
cifar*                     -     loss.ema_momentum       0.999
imagenet*                  -     loss.ema_momentum       0.996

# views: pixels
cifar*                     0     size                    32
cifar*                     1     size                    32
imagenet100*               0     size                    224
imagenet100*               1     size                    224
*_r50_ep???                0     size                    224
*_r50_ep???                1     size                    224
*_ema                      0     size                    224
*_ema                      1     size                    224
*_ema                      2     size                    192
*_ema                      3     size                    160
*_ema                      4     size                    128
*_ema                      5     size                    96

# views: crop scale
cifar*                     *     scale_min               0.08
imagenet100*               *     scale_min               0.08
*_r50_ep???                *     scale_min               0.08
*_ema                      0     scale_min               0.2
*_ema                      1     scale_min               0.2
*_ema                      2     scale_min               0.171
*_ema                      3     scale_min               0.143
*_ema                      4     scale_min               0.114
*_ema                      5     scale_min               0.086
cifar*                     *     scale_max               1
imagenet100*               *     scale_max               1
*_r50_ep???                *     scale_max               1
*_ema                      0     scale_max               1
*_ema                      1     scale_max               1
*_ema                      2     scale_max               0.857
*_ema                      3     scale_max               0.714
*_ema                      4     scale_max               0.571
*_ema                      5     scale_max               0.429

# views: blur p of view 0, 1, ...
cifar*                     0     blur                    0
cifar*                     1     blur                    0
imagenet100*               0     blur                    1.0
imagenet100*               1     blur                    0.1
*_r50_ep???                0     blur                    1.0
*_r50_ep???                1     blur                    0.1
*_ema                      *     blur                    0.5

# views: solarize p of view 0, 1, ...
cifar*                     0     solarize                0
cifar*                     1     solarize                0.2
imagenet100*               0     solarize                0.0
imagenet100*               1     solarize                0.2
*_r50_ep???                0     solarize                0.0
*_r50_ep???                1     solarize                0.2
*_ema                      *     solarize                0.1

# every view: flip, color jitter, gray
*                          *     flip                    0.5
*                          *     jitter                  0.8
*                          *     brightness              0.4
*                          *     contrast                0.4
*                          *     saturation              0.2
*                          *     hue                     0.1
*                          *     grayscale               0.2

# normalization: CIFAR's own mean and standard deviation, ImageNet's
cifar10_*                  -     data.normalize          cifar10
cifar100_*                 -     data.normalize          cifar100
imagenet*                  -     data.normalize          imagenet
# images as torchvision's reader has them
*                          -     data.exif_orientation   false

# k nearest neighbors of CIFAR
cifar*                     -     knn.k                   5

# data
cifar10_*                  -     data.name               cifar10
cifar100_*                 -     data.name               cifar100
imagenet100*               -     data.name               imagenet100
imagenet_r50*              -     data.name               imagenet

# not published: published settings for 800 epochs, shortened; what a user chooses
*_r50_ep400                -     optim.epochs            400
*_r50_ep200                -     optim.epochs            200
*_r50_ep100                -     optim.epochs            100
*                          -     seed                    0
*                          -     data.subset             null
"""
LINES = [
    (*line.split(maxsplit=3)[:3], yaml.safe_load(line.split(maxsplit=3)[3]))
    for line in TABLE.splitlines()
    if line and not line.startswith("#")
]
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in OWN)


@functools.cache
def resolved(name):
    return load_config(PretrainConfig, name, [], CONFIGS)


def is_free(key):
    return role_of("pretrain", key, {}) == "free"


@functools.cache
def lines_of(name):
    return [line for line in LINES if fnmatch.fnmatch(name, line[0])]


def values_of(config):
    """(view, key) to value, of every key; ``-`` for those that are no view's."""
    nested = dataclasses.asdict(config)
    views = nested.pop("views")
    flat = flatten(nested)
    found = {("-", key): value for key, value in flat.items()}
    return found | {(str(n), key): v for n, view in enumerate(views) for key, v in view.items()}


def differences(name, config):
    """Where a recipe is not as its lines say, and what no line or more than one speaks of."""
    found = values_of(config)
    wrong = []
    for (view, key), value in found.items():
        lines = [
            line
            for line in lines_of(name)
            if line[2] == key and (line[1] == view or (line[1] == "*" and view != "-"))
        ]
        free = view == "-" and is_free(key)
        if len(lines) > 1 or (not lines and not free) or (lines and lines[0][3] != value):
            wrong.append((view, key))
    return wrong


@pytest.mark.parametrize("name", RECIPES)
def test_every_value_is_the_published_one(name):
    config = resolved(name)
    assert differences(name, config) == []
    assert len(config.views) == (6 if name.endswith("ema") else 2)


@pytest.mark.parametrize("name", RECIPES)
def test_no_value_can_change_unnoticed(name):
    config = resolved(name)
    for view, key in values_of(config):
        if view == "-" and is_free(key):
            continue
        changed = copy.deepcopy(config)
        owner, _, leaf = key.rpartition(".")
        place = getattr(changed, owner) if owner else changed
        place = place if view == "-" else changed.views[int(view)]
        setattr(place, leaf, other_than(getattr(place, leaf)))
        (wrong,) = differences(name, changed)
        assert wrong in ((view, key), (view, f"{key}.other"))


def other_than(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return {"other": 1.0} if isinstance(value, dict) else f"{value} other"


def test_every_line_speaks_of_a_recipe():
    for pattern, view, key, _ in LINES:
        names = [name for name in RECIPES if fnmatch.fnmatch(name, pattern)]
        assert names, pattern
        for name in names:
            views = {v for v, k in values_of(resolved(name)) if k == key}
            assert view in views or (view == "*" and views - {"-"}), (pattern, view, key)


def test_the_statistics_are_the_published_ones():
    mean = {"imagenet": (0.485, 0.456, 0.406), "cifar10": (0.4914, 0.4822, 0.4465)}
    std = {"imagenet": (0.229, 0.224, 0.225), "cifar10": (0.2470, 0.2435, 0.2616)}
    mean["cifar100"], std["cifar100"] = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    found = {name: (known.mean, known.std) for name, known in STATISTICS.items()}
    assert found == {name: (mean[name], std[name]) for name in mean}


def test_every_published_recipe_is_there_and_every_file_is_known():
    epochs = (100, 200, 400, 800)
    assert set(RECIPES) == {
        *("cifar10_r18_ep1000", "cifar100_r18_ep1000", "imagenet100_r18_ep400"),
        *(f"imagenet_r50_ep{e}" for e in epochs),
        *(f"imagenet_r50_ep{e}_multicrop_ema" for e in epochs),
    }


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_file_resolves(path):
    check(resolved(path.stem))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_random_weights_of_an_evaluation_begin_as_every_recipe_does(path):
    model = resolved(path.stem).model
    assert starts_at_zero(model.backbone) is model.zero_init_residual


@pytest.mark.parametrize("ranks", [1, 8, 32])
@pytest.mark.parametrize("name", RECIPES)
def test_what_follows_from_the_values(name, ranks):
    """Rates, warm-up, trace weight and decayed parameters, whatever the number of ranks."""
    config = resolved(name)
    optim = config.optim
    per_rank = rank_batch_size(optim.batch_size, ranks)
    n = per_rank * ranks
    assert n == optim.batch_size
    images = next(count for key, count in IMAGES.items() if name.startswith(key))
    steps = images // n
    total, warmup = optim.epochs * steps, 2 * steps
    peak = optim.base_lr * n / 256

    def published(step):  # in the words of the table
        if step < warmup:
            return peak * (step + 1) / warmup
        q = (1 + math.cos(math.pi * (step - warmup + 1) / (total - warmup))) / 2
        return q * peak + (1 - q) * 0.001 * peak

    for step in (0, 1, warmup - 1, warmup, (warmup + total) // 2, total - 2, total - 1):
        assert learning_rate(step, total, warmup, optim) == pytest.approx(published(step), rel=1e-9)
    assert learning_rate(total - 1, total, warmup, optim) == pytest.approx(0.001 * peak)

    beta = default_trace_weight(n, config.model.embedding, config.loss.axis)
    assert beta == pytest.approx(0.01 * (math.log2(n) - 3))

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    groups = parameter_groups(network, optim)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for parameter in network.parameters():
        is_free = parameter.dim() == 1 and not name.startswith("cifar")
        assert decay[id(parameter)] == (0 if is_free else optim.weight_decay)


def test_projector_of_the_recipes():
    from intl_transfer.models import build_projector

    layers = list(build_projector(512, 2048, 2048, 3))
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    assert [layer.bias is not None for layer in linear] == [False, False, True]
    assert isinstance(layers[-1], nn.Linear)
    assert sum(isinstance(layer, nn.BatchNorm1d) for layer in layers) == 2
