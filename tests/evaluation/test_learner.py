"""What a head learns, against formulas; schedules; hits."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import nn
from torchvision.transforms import functional as TF

from intl_transfer.data.sources import open_source
from intl_transfer.data.views import View, ViewConfig
from intl_transfer.evaluation.backbone import EvaluatedBackbone
from intl_transfer.evaluation.batches import CroppedImages
from intl_transfer.evaluation.config import OptimConfig
from intl_transfer.evaluation.learner import Learner, schedule
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
    subject = EvaluatedBackbone(Flat(), 12, "resnet18")
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
    learner = Learner(EvaluatedBackbone(network, 12, "resnet18"), 3, config, ALONE)
    pixels, labels = batch()
    reference = Learner(EvaluatedBackbone(Flat(), 12, "resnet18"), 3, config, ALONE).classifier
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
    cosine = OptimConfig(epochs=20, schedule="cosine")  # epoch by epoch
    assert [schedule(s, 5, cosine) for s in (0, 4)] == [1, 1]
    assert schedule(50, 5, cosine) == pytest.approx(0.5)
    assert schedule(99, 5, cosine) == pytest.approx((1 + math.cos(0.95 * math.pi)) / 2)
    each = OptimConfig(epochs=20, schedule="cosine_steps")
    assert schedule(0, 5, each) == 1
    assert schedule(50, 5, each) == pytest.approx(0.5)
    assert schedule(99, 5, each) == pytest.approx((1 + math.cos(0.99 * math.pi)) / 2)
    falling = OptimConfig(epochs=500, lr=1e-2, final_lr=1e-6, schedule="exponential")
    rates = [falling.lr * schedule(50 * epoch, 50, falling) for epoch in range(500)]
    assert rates[0] == 1e-2
    ratios = [b / a for a, b in itertools.pairwise(rates)]
    assert ratios == pytest.approx([1e-4 ** (1 / 500)] * 499)
    assert schedule(49, 50, falling) == 1  # it falls epoch by epoch


def test_a_head_trained_to_its_end_is_scikit_learns(make_config):
    """Softmax regression has one optimum, which scikit-learn finds by another algorithm.

    Our decay is on the bias too: there it is the weight of a feature that is always one.
    """
    decay = 0.02
    config = make_config(lr=2.0, weight_decay=decay, momentum=0.9)
    torch.manual_seed(0)
    learner = Learner(EvaluatedBackbone(Flat(), 6, "resnet18"), 3, config, ALONE)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(60, 6, generator=generator)
    labels = (features[:, 0] > 0).long() + (torch.rand(60, generator=generator) > 0.7).long()
    for _ in range(1500):
        learner.step(1.0, features, labels)
    ones = np.hstack([features.double().numpy(), np.ones((60, 1))])
    theirs = LogisticRegression(C=1 / (60 * decay), fit_intercept=False, tol=1e-10, max_iter=5000)
    theirs.fit(ones, labels.numpy())
    head = learner.classifier.head
    ours = torch.cat([head.weight, head.bias[:, None]], 1).detach().double().numpy()
    # Adding the same vector to every class changes no probability; the decay makes it zero.
    np.testing.assert_allclose(ours, theirs.coef_, atol=2e-4)
    probabilities = learner.classifier(features).softmax(1).detach().double().numpy()
    np.testing.assert_allclose(probabilities, theirs.predict_proba(ones), atol=1e-4)


def test_first_weights_of_the_head(make_config):
    heads = {}
    for std in (0.01, None):
        torch.manual_seed(0)
        subject = EvaluatedBackbone(Flat(), 2048, "resnet50")
        heads[std] = Learner(subject, 100, make_config(head_std=std), ALONE).classifier.head
    assert float(heads[0.01].weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert not heads[0.01].bias.any()
    # torch's default: uniform up to 1/sqrt(width), weight and bias.
    for value in (heads[None].weight.detach(), heads[None].bias.detach()):
        assert float(value.abs().max()) <= 2048**-0.5
        assert float(value.std()) == pytest.approx(2048**-0.5 / 3**0.5, rel=0.2)


def test_batches_are_cut_as_torchvision_cuts_them(make_config, classes):
    config = make_config(batch_size=4)
    source = open_source(config.data.train)
    batches = CroppedImages(source, config.data, 3, 4, ALONE)
    view = View(ViewConfig(32, 0.08, blur=0.0, solarize=0.0, jitter=0.0, grayscale=0.0))
    keys = [key for batch in batches.sampler for key in batch]
    rows = [image for pixels, _ in batches for image in pixels.numpy()]
    assert len(keys) == len(rows) == 36
    for (epoch, index), found in zip(keys, rows, strict=True):
        image = source.image(index)
        drawn = view.draw(*image.shape[:2], np.random.default_rng((3, epoch, index)))
        mode = TF.InterpolationMode.BILINEAR
        theirs = TF.resized_crop(Image.fromarray(image), *drawn.box, (32, 32), mode)
        assert np.array_equal(found, np.asarray(TF.hflip(theirs) if drawn.flip else theirs))


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(0, 12), classes=st.integers(1, 9), seed=st.integers(0, 999))
def test_hits_are_those_by_hand(rows, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    place = [int((row > row[label]).sum()) for row, label in zip(logits, labels, strict=True)]
    expected = [sum(p < 1 for p in place), sum(p < 5 for p in place), rows]
    assert hits(logits, labels).tolist() == expected
