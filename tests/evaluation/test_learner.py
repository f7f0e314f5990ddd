"""What a head learns, against formulas; schedules; hits."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from intl_transfer.evaluation.config import OptimConfig
from intl_transfer.evaluation.learner import Learner, schedule
from intl_transfer.evaluation.subject import Subject
from intl_transfer.evaluation.training import hits
from intl_transfer.runs.distributed import Ranks

ALONE = Ranks(0, 1, 0, torch.device("cpu"))
ROOM = OptimConfig(epochs=100, lr=0.2)


class Flat(nn.Module):
    """Pixels of a quarter of the image, and a batch norm that would move in training."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.pool = nn.AdaptiveAvgPool2d(2)

    def forward(self, images):
        return self.pool(self.norm(images)).flatten(1)


def batch(seed=0, rows=6):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (rows, 4, 4, 3), dtype=torch.uint8, generator=generator)
    return pixels, torch.randint(0, 3, (rows,), generator=generator)


def test_a_frozen_backbone_stays_and_the_head_follows_the_formula(make_config):
    config = make_config(lr=0.3, weight_decay=0.01, momentum=0.8)
    torch.manual_seed(0)
    subject = Subject(Flat(), 12, "resnet18")
    learner = Learner(subject, 3, config, ALONE)
    before = {k: v.clone() for k, v in subject.network.state_dict().items()}
    head = learner.classifier.head
    assert torch.equal(head.bias, torch.zeros(3))
    weight, bias = head.weight.detach().double(), head.bias.detach().double()
    speed_w, speed_b = torch.zeros_like(weight), torch.zeros_like(bias)
    for step in range(5):
        pixels, labels = batch(step)
        loss, right = learner.step(0.5, pixels, labels)
        # Softmax regression by hand, in float64: dL/dlogits = (p - y) / n.
        images = subject.images(pixels, ALONE.device)
        with torch.no_grad():
            x = subject.network(images).double()
        logits = x @ weight.T + bias
        p = logits.softmax(1)
        y = nn.functional.one_hot(labels, 3).double()
        assert float(loss) == pytest.approx(-float((y * p.log()).sum(1).mean()), rel=1e-5)
        assert int(right) == int((logits.argmax(1) == labels).sum())
        error = (p - y) / len(labels)
        grad_w, grad_b = error.T @ x + 0.01 * weight, error.sum(0) + 0.01 * bias
        speed_w, speed_b = 0.8 * speed_w + grad_w, 0.8 * speed_b + grad_b
        weight, bias = weight - 0.15 * speed_w, bias - 0.15 * speed_b
    torch.testing.assert_close(head.weight.detach().double(), weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(head.bias.detach().double(), bias, rtol=1e-4, atol=1e-6)
    after = subject.network.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not subject.network.training


def test_few_labels_train_everything_at_two_rates(make_config):
    config = make_config("semi", lr=0.1, backbone_lr=0.02, momentum=0.0)
    torch.manual_seed(0)
    network = Flat()
    learner = Learner(Subject(network, 12, "resnet18"), 3, config, ALONE)
    pixels, labels = batch()
    reference = Learner(Subject(Flat(), 12, "resnet18"), 3, config, ALONE).classifier
    reference.load_state_dict(learner.classifier.state_dict())
    loss = nn.functional.cross_entropy(reference(learner.inputs(pixels)), labels)
    loss.backward()
    learner.step(0.5, pixels, labels)
    for (name, moved), start in zip(
        learner.classifier.named_parameters(), reference.parameters(), strict=True
    ):
        rate = 0.05 if name.startswith("head") else 0.01
        torch.testing.assert_close(moved, start - rate * start.grad)
    assert int(network.norm.num_batches_tracked) == 1  # statistics follow the new images


def test_schedules():
    assert [schedule(s, 10, ROOM) for s in (0, 599, 600, 799, 800)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01]
    )
    cosine = OptimConfig(epochs=20, schedule="cosine")
    assert schedule(0, 5, cosine) == 1
    assert schedule(50, 5, cosine) == pytest.approx(0.5)
    assert schedule(99, 5, cosine) == pytest.approx((1 + math.cos(0.99 * math.pi)) / 2)
    falling = OptimConfig(epochs=500, lr=1e-2, final_lr=1e-6, schedule="exponential")
    rates = [falling.lr * schedule(50 * epoch, 50, falling) for epoch in range(500)]
    assert rates[0] == 1e-2
    ratios = [b / a for a, b in itertools.pairwise(rates)]
    assert ratios == pytest.approx([1e-4 ** (1 / 500)] * 499)
    assert schedule(49, 50, falling) == 1  # it falls epoch by epoch


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(0, 12), classes=st.integers(1, 9), seed=st.integers(0, 999))
def test_hits_are_those_by_hand(rows, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    place = [int((row > row[label]).sum()) for row, label in zip(logits, labels, strict=True)]
    expected = [sum(p < 1 for p in place), sum(p < 5 for p in place), rows]
    assert hits(logits, labels).tolist() == expected
