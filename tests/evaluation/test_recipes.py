"""The recipes, against the published settings; settings that cannot be."""

from __future__ import annotations

import pytest

from intl_transfer.errors import UserError
from intl_transfer.evaluation.command import CONFIGS, configuration

RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
# kind, epochs, batch, lr of the head, of the backbone, schedule
PUBLISHED = {
    "imagenet_linear": ("linear", 100, 256, 0.2, None, "steps"),
    "imagenet_linear_multicrop": ("linear", 100, 256, 0.4, None, "steps"),
    "imagenet100_linear": ("linear", 100, 256, 0.2, None, "steps"),
    "imagenet_semi1": ("semi", 20, 256, 0.2, 0.006, "cosine"),
    "imagenet_semi10": ("semi", 20, 256, 0.2, 0.006, "cosine"),
    "imagenet_semi1_multicrop": ("semi", 20, 256, 0.2, 0.004, "cosine"),
    "imagenet_semi10_multicrop": ("semi", 20, 256, 0.2, 0.004, "cosine"),
    "cifar10_linear": ("linear", 500, 1000, 1e-2, None, "exponential"),
    "cifar100_linear": ("linear", 500, 1000, 1e-2, None, "exponential"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_read(name):
    config = configuration(name, [])
    assert config.data.name in name


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_are_the_published_ones(name):
    config = configuration(name, [])
    optim = config.optim
    found = (config.kind, optim.epochs, optim.batch_size, optim.lr, optim.backbone_lr)
    assert (*found, optim.schedule) == PUBLISHED[name]
    assert optim.head_std == 0.01
    if name.startswith("imagenet"):
        assert (config.data.size, config.data.augment, optim.weight_decay) == (224, True, 0)
        assert (optim.optimizer, optim.momentum) == ("sgd", 0.9)
    if optim.schedule == "steps":
        assert optim.milestones == [60, 80]
    if name.startswith("cifar"):
        assert (optim.optimizer, optim.final_lr, optim.weight_decay) == ("adam", 1e-6, 5e-6)
        assert config.data.size == 32
    if config.kind == "semi":
        assert config.data.labels_percent == (10 if "semi10" in name else 1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("kind=lineal", "kind is 'lineal'; expected one of linear, semi, knn"),
        ("optim.epochs=0", r"optim\.epochs is 0; expected at least 1"),
        ("optim.lr=-1", r"optim\.lr is -1\.0; expected a positive number"),
        ("optim.schedule=step", "expected one of steps, cosine, exponential"),
        ("optim.schedule=exponential", r"optim\.final_lr is None; expected above 0"),
        ("engine.precision=fp8", "expected one of fp32, bf16, fp16"),
        ("kind=semi", r"optim\.backbone_lr is None; expected a positive number"),
        ("optim.backbone_lr=0.1", "only kind=semi trains the backbone"),
        ("data.labels_percent=10", "belongs to kind=semi"),
        ("data.crop=224", r"no key 'data\.crop'"),
        ("k=0", "k is 0; expected at least 1"),
    ],
)
def test_what_cannot_be_is_named(override, message):
    with pytest.raises(UserError, match=message):
        configuration("shapes_linear", [override])
