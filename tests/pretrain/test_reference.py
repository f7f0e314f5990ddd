"""Whole steps of three recipes, written again from the published formulas in float64.

Nothing of the package is in the reference: torchvision's network, projector, loss, SGD and the
schedules are spelt out here. Widths and views are small, so that it takes seconds.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import pretrain.learner
from intl_transfer.data.datasets import Batch
from intl_transfer.runs.config import load_config
from intl_transfer.runs.distributed import Ranks
from pretrain.config import PretrainConfig
from pretrain.learner import Learner
from tests.pretrain.running import ROOT

N, D, HIDDEN, EPOCHS = 16, 24, 20, 7  # an epoch is one step: two of warm-up, five of the cosine
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
# recipe: base rate, weight decay, decayed 1-D parameters, statistics, m0 of the moving average
RECIPES = {
    "cifar10_r18_ep1000": (0.3, 1e-4, True, CIFAR10, None),
    "imagenet_r50_ep800": (0.3, 1e-5, False, IMAGENET, None),
    "imagenet_r50_ep200_multicrop_ema": (0.4, 1e-5, False, IMAGENET, 0.996),
}
# A small stem keeps the resolution, which costs time.
SIZES = {"cifar10_r18_ep1000": (14, 14), "imagenet_r50_ep800": (32, 32)}
CROPS = (32, 32, 28, 24, 24, 20)


class Reference(nn.Module):
    """Backbone and projector as published, under the names of the package's encoder."""

    def __init__(self, is_cifar):
        super().__init__()
        self.backbone = torchvision.models.resnet18(weights=None)
        self.backbone.fc = nn.Identity()
        if is_cifar:  # a layer of one zero pixel, then 3x3 padded by one; no pooling
            conv = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
            self.backbone.conv1, self.backbone.maxpool = conv, nn.Identity()
            conv.register_forward_pre_hook(lambda _, inputs: (F.pad(inputs[0], (1, 1, 1, 1)),))
        self.projector = nn.Sequential(
            *(nn.Linear(512, HIDDEN, bias=False), nn.BatchNorm1d(HIDDEN), nn.ReLU()),
            *(nn.Linear(HIDDEN, HIDDEN, bias=False), nn.BatchNorm1d(HIDDEN), nn.ReLU()),
            nn.Linear(HIDDEN, D),
        )

    def forward(self, view):
        return self.projector(self.backbone(view))


def iternorm(z):
    """T = 4 Newton steps on the covariance of the samples over their channels."""
    centered = z - z.mean(1, keepdim=True)
    covariance = centered @ centered.T / (D - 1)
    trace = covariance.trace()
    p = torch.eye(N, dtype=torch.float64)
    for _ in range(4):
        p = (3 * p - p @ p @ p @ (covariance / trace)) / 2
    return p @ centered / trace.sqrt()


def trace_loss(z_hat):
    return (1 - z_hat.square().sum(1) / (D - 1)).square().sum()


def mismatch(a, b):
    cosines = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    return 2 - 2 * cosines.mean()


def loss_of(embeddings, with_target):
    beta = 0.01 * (math.log2(N) - 3)
    whitened = [iternorm(z) for z in embeddings]
    first, total = whitened[0], 0.0
    for z_hat in whitened[1:]:
        traces = trace_loss(z_hat) + (0 if with_target else trace_loss(first))
        total = total + mismatch(z_hat, first) + beta * traces
    return total / (len(embeddings) - 1)


def embeddings_of(network, target, views):
    if target is None:
        return [network(view) for view in views]
    with torch.no_grad():
        first = target(views[0])
    return [first, *(network(view) for view in views[1:])]


def rate(step, base):
    peak = base * N / 256
    if step < 2:
        return peak * (step + 1) / 2
    q = 0.5 * (1 + math.cos(math.pi * (step - 2 + 1) / (EPOCHS - 2)))
    return peak * q + 0.001 * peak * (1 - q)


def pixels(step, sizes):
    generator = torch.Generator().manual_seed(100 + step)
    return [
        torch.randint(0, 256, (N, s, s, 3), dtype=torch.uint8, generator=generator) for s in sizes
    ]


def normalized(images, mean, std):
    scaled = images.permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (mean, std))
    return (scaled - mean) / std


@pytest.fixture
def in_float64(monkeypatch):
    def normalize(images, device, mean=IMAGENET[0], std=IMAGENET[1]):
        return normalized(images, mean, std)

    monkeypatch.setattr(pretrain.learner, "normalize", normalize)


@pytest.mark.parametrize("name", RECIPES)
def test_a_whole_step_is_the_published_one(name, in_float64):
    base, decay, decays_all, statistics, m0 = RECIPES[name]
    sizes = SIZES.get(name, CROPS)
    views = ", ".join(f"{{size: {size}}}" for size in sizes)
    small = [f"optim.epochs={EPOCHS}", f"optim.batch_size={N}", f"views=[{views}]"]
    small += [f"model.projector_hidden={HIDDEN}", f"model.embedding={D}"]
    small += ["model.backbone=resnet18", "engine.precision=fp32"]
    config = load_config(PretrainConfig, name, small, ROOT / "configs" / "pretrain")
    torch.manual_seed(0)
    learner = Learner(config, Ranks(0, 1, 0, torch.device("cpu")), steps_per_epoch=1)
    learner.prepare()
    for encoder in (learner.encoder, *([learner.target.encoder] if m0 else [])):
        encoder.double()

    network = Reference(name.startswith("cifar")).double()
    network.load_state_dict(copy.deepcopy(learner.encoder.state_dict()))
    target = copy.deepcopy(network) if m0 else None
    speed = {key: torch.zeros_like(p) for key, p in network.named_parameters()}
    for step in range(3):
        drawn = pixels(step, sizes)
        images = [normalized(view, *statistics) for view in drawn]
        if target is not None:
            m = 1 - 0.5 * (1 + math.cos(math.pi * step / EPOCHS)) * (1 - m0)
            with torch.no_grad():
                for own, online in zip(target.parameters(), network.parameters(), strict=True):
                    own.copy_(m * own + (1 - m) * online)
        frozen = copy.deepcopy((network, target))
        loss = loss_of(embeddings_of(network, target, images), target is not None)
        network.zero_grad()
        loss.backward()
        if step == 1:
            assert_gradient(frozen, images, network)
        with torch.no_grad():
            for key, p in network.named_parameters():
                is_decayed = decays_all or p.dim() > 1
                speed[key] = 0.9 * speed[key] + p.grad + (decay * p if is_decayed else 0)
                p -= rate(step, base) * speed[key]

        done = learner.step(step, Batch(drawn, torch.arange(N), [], False))
        assert done.skipped is None
        assert float(done.parts["loss"]) == pytest.approx(float(loss.detach()), rel=1e-9)
        assert done.lr == pytest.approx(rate(step, base), rel=1e-12)
        pairs = [(learner.encoder, network)]
        pairs += [(learner.target.encoder, target)] if target is not None else []
        for ours, theirs in pairs:
            found = ours.state_dict()
            for key, value in theirs.state_dict().items():
                torch.testing.assert_close(
                    found[key], value, rtol=1e-7, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}"
                )


def assert_gradient(frozen, images, network):
    """The gradient along a random direction, by central differences; ReLU's kinks cost digits."""
    generator = torch.Generator().manual_seed(7)
    direction = [
        torch.randn(p.shape, generator=generator, dtype=torch.float64) * p.detach().abs().mean()
        for p in network.parameters()
    ]
    pairs = zip(network.parameters(), direction, strict=True)
    slope = sum(float((p.grad * u).sum()) for p, u in pairs)
    values = []
    for h in (1e-8, -1e-8):
        moved, target = copy.deepcopy(frozen)
        with torch.no_grad():
            for p, u in zip(moved.parameters(), direction, strict=True):
                p += h * u
            values.append(float(loss_of(embeddings_of(moved, target, images), target is not None)))
    assert slope == pytest.approx((values[0] - values[1]) / 2e-8, rel=1e-3)
