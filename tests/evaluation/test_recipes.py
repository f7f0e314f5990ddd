"""The recipes, held against the published settings line by line; settings that cannot be.

As in tests/pretrain/test_recipes.py: every key of a recipe that decides a result has one line.
"""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import functools
import math

import pytest
import yaml

from intl_transfer.errors import UserError
from intl_transfer.evaluation.command import CONFIGS, configuration
from intl_transfer.evaluation.config import protocol
from intl_transfer.evaluation.learner import schedule
from intl_transfer.runs.settings import flatten, select

OWN = {
    *("shapes_linear", "shapes_knn", "shapes_semi10", "shapes_supervised"),
    *("photo_cutouts_linear", "photo_cutouts_knn", "photo_cutouts_supervised"),
}

TABLE = """
# recipes                 key                     value

# what learns
*_linear*                 kind                    linear
*_semi*                   kind                    semi
*_knn                     kind                    knn

# linear: 100 epochs, batch 256, SGD, momentum 0.9, no weight decay; ImageNet-100 as ImageNet
imagenet*_linear*         optim.epochs            100
imagenet*                 optim.batch_size        256
imagenet*                 optim.base_batch_size   256
imagenet*                 optim.optimizer         sgd
imagenet*                 optim.momentum          0.9
imagenet*                 optim.weight_decay      0
# rate of the head: 0.2 (2 views), 0.4 (multi-crop); a tenth at epochs 60 and 80
imagenet_linear           optim.lr                0.2
imagenet100_linear        optim.lr                0.2
imagenet_linear_multicrop optim.lr                0.4
imagenet*_linear*         optim.schedule          steps
imagenet*                 optim.milestones        [60, 80]
imagenet*                 optim.final_lr          null
imagenet*_linear*         optim.backbone_lr       null
# the head starts as N(0, 0.01^2)
imagenet*                 optim.head_std          0.01

# few labels: 20 epochs, rate of the head 0.2, of the backbone 0.004 (multi-crop), 0.006 (2 views)
*_semi*                   optim.epochs            20
*_semi*                   optim.lr                0.2
*_semi1                   optim.backbone_lr       0.006
*_semi10                  optim.backbone_lr       0.006
*_semi*_multicrop         optim.backbone_lr       0.004
*_semi*                   optim.schedule          cosine
*_semi1                   data.labels_percent     1
*_semi1_multicrop         data.labels_percent     1
*_semi10                  data.labels_percent     10
*_semi10_multicrop        data.labels_percent     10
*_linear*                 data.labels_percent     null
*_knn                     data.labels_percent     null

# images: torchvision's crops at their defaults, 256 -> 224 to test
imagenet*                 data.size               224
imagenet*                 data.crop_pct           0.875
*                         data.interpolation      bilinear
*                         data.exif_orientation   false
imagenet*                 data.augment            true
*                         data.scale_min          0.08

# CIFAR: Adam, 1e-2 to 1e-6 exponentially, 500 epochs, batch 1000, weight decay 5e-6
cifar*_linear             optim.optimizer         adam
cifar*_linear             optim.lr                0.01
cifar*_linear             optim.final_lr          0.000001
cifar*_linear             optim.schedule          exponential
cifar*_linear             optim.epochs            500
cifar*_linear             optim.batch_size        1000
cifar*_linear             optim.base_batch_size   null
cifar*_linear             optim.weight_decay      0.000005
cifar*_linear             optim.momentum          0.9
cifar*_linear             optim.backbone_lr       null
cifar*_linear             optim.milestones        [60, 80]
# torch's default initialization
cifar*_linear             optim.head_std          null
# images as they are, by the data set's statistics
cifar*                    data.size               32
cifar*                    data.crop_pct           1
cifar10_*                 data.normalize          cifar10
cifar100_*                data.normalize          cifar100
imagenet*                 data.normalize          null
cifar*_linear             data.augment            false
cifar*_knn                data.augment            true

# nearest neighbors: k = 5
*                         k                       5

# data
cifar10_*                 data.name               cifar10
cifar100_*                data.name               cifar100
imagenet_*                data.name               imagenet
imagenet100_*             data.name               imagenet100

# not published: what a user chooses; of random weights
*                         data.subset             null
*                         seed                    0
*                         engine.precision        fp32
*                         model.backbone          resnet50
*                         model.stem              imagenet
*                         model.zero_init_residual  null
"""
LINES = [
    (*line.split(maxsplit=2)[:2], yaml.safe_load(line.split(maxsplit=2)[2]))
    for line in TABLE.splitlines()
    if line and not line.startswith("#")
]
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in OWN)


@functools.cache
def resolved(name):
    return configuration(name, [])


def deciding(config):
    settings = dataclasses.asdict(config)
    keys = select("evaluation", settings, "decides", "weights", "seed")
    written = flatten(settings)  # of two spellings of one meaning, that of the recipe
    return {key: written[key] for key in keys}


def differences(name, config):
    wrong = []
    for key, value in deciding(config).items():
        lines = [line for line in LINES if fnmatch.fnmatch(name, line[0]) and line[1] == key]
        if len(lines) != 1 or lines[0][2] != value:
            wrong.append(key)
    return wrong


def test_every_published_recipe_is_there():
    assert set(RECIPES) == {
        *("cifar10_linear", "cifar100_linear", "cifar10_knn", "cifar100_knn"),
        *("imagenet_linear", "imagenet_linear_multicrop", "imagenet100_linear"),
        *("imagenet_semi1", "imagenet_semi10"),
        *("imagenet_semi1_multicrop", "imagenet_semi10_multicrop"),
    }


@pytest.mark.parametrize("name", RECIPES)
def test_every_value_is_the_published_one(name):
    assert differences(name, resolved(name)) == []


@pytest.mark.parametrize("name", RECIPES)
def test_no_value_can_change_unnoticed(name):
    for key in deciding(resolved(name)):
        changed = copy.deepcopy(resolved(name))
        owner, _, leaf = key.rpartition(".")
        place = getattr(changed, owner) if owner else changed
        old = getattr(place, leaf)
        number = isinstance(old, int | float) and not isinstance(old, bool)
        setattr(place, leaf, old + 1 if number else not old if isinstance(old, bool) else "other")
        if key != "kind":  # which decides what else does
            assert differences(name, changed) == [key]


def test_every_line_speaks_of_a_recipe():
    for pattern, key, _ in LINES:
        assert any(
            fnmatch.fnmatch(name, pattern) and key in flatten(dataclasses.asdict(resolved(name)))
            for name in RECIPES
        ), (pattern, key)


@pytest.mark.parametrize("name", sorted(OWN))
def test_every_other_file_can_be_read(name):
    assert resolved(name).data.name == name.rpartition("_")[0]


def test_the_cosine_is_set_once_an_epoch_and_both_schedules_are_offered():
    optim = resolved("imagenet_semi1").optim
    steps = 50
    for epoch in range(20):
        expected = 0.5 * (1 + math.cos(math.pi * epoch / 20))
        for within in (0, 1, steps - 1):
            assert schedule(epoch * steps + within, steps, optim) == pytest.approx(expected)
    # The other schedule of the published code never steps within 20 epochs.
    other = configuration("imagenet_semi1", ["optim.schedule=steps"]).optim
    assert {schedule(step, steps, other) for step in range(20 * steps)} == {1.0}


@pytest.mark.parametrize("name", ["imagenet_linear", "imagenet_semi10_multicrop"])
def test_rates_scale_with_the_batch(name):
    usual, large = (configuration(name, [f"optim.batch_size={n}"]) for n in (256, 1024))
    assert usual.optim.scale() == 1
    assert large.optim.scale() == 4
    assert protocol(large)["lr"] == pytest.approx(4 * usual.optim.lr)
    assert protocol(usual)["lr"] == usual.optim.lr
    assert configuration("cifar10_linear", ["optim.batch_size=500"]).optim.scale() == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("kind=lineal", "kind is 'lineal'; expected one of linear, semi, knn"),
        ("optim.epochs=0", r"optim\.epochs is 0; expected at least 1"),
        ("optim.lr=-1", r"optim\.lr is -1\.0; expected a positive number"),
        ("optim.schedule=step", "expected one of steps, cosine, cosine_steps, exponential"),
        ("optim.schedule=exponential", r"optim\.final_lr is None; expected above 0"),
        ("engine.precision=fp8", "expected one of fp32, bf16, fp16"),
        ("kind=semi", r"optim\.backbone_lr is None; expected a positive number"),
        ("optim.backbone_lr=0.1", "only kind=semi trains the backbone"),
        ("data.labels_percent=10", "belongs to kind=semi"),
        ("data.crop=224", r"no key 'data\.crop'"),
        ("data.crop_pct=1.1", r"data\.crop_pct is 1\.1; expected a fraction above 0, up to 1"),
        ("data.interpolation=nearest", "expected one of bicubic, bilinear"),
        ("data.normalize=cifar", r"data\.normalize is cifar; .* Did you mean 'cifar10'"),
        ("model.stem=cifar_publ", "expected one of imagenet, cifar, cifar_published"),
        ("optim.base_batch_size=0", r"optim\.base_batch_size is 0; expected at least 1"),
        ("k=0", "k is 0; expected at least 1"),
    ],
)
def test_what_cannot_be_is_named(override, message):
    with pytest.raises(UserError, match=message):
        configuration("shapes_linear", [override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["k=7"], "'k=7' has no effect: k is of nearest neighbors only, and kind is linear"),
        (["optim.final_lr=0.1"], "'exponential' only, and optim.schedule is steps"),
        (["data.augment=false", "data.scale_min=0.5"], "random crops only, and data.augment is F"),
        (["kind=knn", "optim={epochs: 50}"], r"optim\.epochs is of training"),
        (["kind=knn", "data.scale_min=0.5"], r"data\.scale_min is of training"),
    ],
)
def test_what_is_given_without_effect_is_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        configuration("shapes_linear", overrides)


def test_what_a_recipe_says_without_effect_is_not():
    assert configuration("shapes_knn", []).optim.epochs == 10  # by its base
