from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchvision import transforms

from intl_transfer.data.sources import open_source
from intl_transfer.evaluation import EvaluationImages, extract_features, knn_accuracy, knn_predict
from intl_transfer.runs.distributed import Ranks
from tests.ranks import run_ranks

CPU = torch.device("cpu")


def by_hand(train, labels, query, k):
    """Sorted by distance; most votes; among equals the one that is met first."""
    order = sorted(range(len(train)), key=lambda i: float((train[i] - query).norm()))[:k]
    votes = Counter(int(labels[i]) for i in order)
    most = max(votes.values())
    return next(int(labels[i]) for i in order if votes[int(labels[i])] == most)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 30),
    q=st.integers(1, 8),
    k=st.integers(1, 12),
    classes=st.integers(1, 5),
    seed=st.integers(0, 999),
)
def test_predictions_are_those_by_hand(n, q, k, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    train = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (n,), generator=generator)
    queries = torch.randn(q, 3, generator=generator, dtype=torch.float64)
    predicted = knn_predict(train, labels, queries, k)
    assert predicted.tolist() == [by_hand(train, labels, query, k) for query in queries]


def over_ranks(rank, world_size):
    generator = torch.Generator().manual_seed(3)
    train = torch.randn(50, 4, generator=generator)
    labels = torch.randint(0, 3, (50,), generator=generator)
    test = torch.randn(21, 4, generator=generator)
    truth = torch.randint(0, 3, (21,), generator=generator)
    ranks = Ranks(rank, world_size, rank, CPU)
    # The first rank has two training images only, the last none.
    bounds = [0, 2, 50, 50]
    share = slice(bounds[rank], bounds[rank + 1])
    own = slice(rank, None, world_size)
    parts = knn_accuracy(train[share], labels[share], test[own], truth[own], 5, ranks)
    whole = 100 * float((knn_predict(train, labels, test, 5) == truth).double().mean())
    return parts, whole


def test_ranks_that_hold_a_part_each_agree_with_one_that_holds_all():
    results = run_ranks(over_ranks, 3)
    assert len({parts for parts, _ in results}) == 1
    assert results[0][0] == pytest.approx(results[0][1])


def test_nothing_to_learn_from_or_to_classify():
    none, labels = torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)
    some = torch.ones(1, 2)
    with pytest.raises(ValueError, match="no training features"):
        knn_predict(none, labels, some)
    with pytest.raises(ValueError, match="no test features"):
        knn_accuracy(some, labels.new_zeros(1), none, labels)
    with pytest.raises(ValueError, match="k is 0"):
        knn_predict(some, labels.new_zeros(1), some, 0)


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    for index, size in enumerate([(64, 64), (80, 120), (301, 200)]):
        folder = tmp_path / "data" / f"class{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        small = generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(small).resize(size[::-1]).save(folder / f"{index}.png")
    return tmp_path / "data"


def test_images_are_looked_at_as_torchvision_would(images):
    source = open_source(images)
    ours = EvaluationImages(source, 56)
    theirs = transforms.Compose(
        [transforms.Resize(64, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(56)]
    )
    for index in range(3):
        image, label = ours[index]
        expected = np.asarray(theirs(Image.open(source.name(index)))).astype(int)
        difference = np.abs(image.numpy().astype(int) - expected)
        assert difference[2:-2, 2:-2].mean() < 3
        assert label == source.labels[index]
    assert torch.equal(EvaluationImages(source, 64)[0][0], torch.from_numpy(source.image(0)))


def test_features_leave_the_training_as_it_was(images):
    (images / "class0" / "broken.png").write_bytes(b"nothing")
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1))
    backbone.append(nn.Flatten())
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    generator = torch.get_rng_state()
    ranks = Ranks(0, 1, 0, CPU)
    features, labels = extract_features(backbone, EvaluationImages(open_source(images), 32), ranks)
    assert features.shape == (3, 4)  # the broken one is left out
    assert sorted(labels.tolist()) == [0, 0, 1]
    assert backbone.training
    assert torch.equal(torch.get_rng_state(), generator)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_rank_without_images_has_no_features_of_the_right_width(images):
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1))
    backbone.append(nn.Flatten())
    before = backbone[1].running_mean.clone()
    data = EvaluationImages(open_source(images), 32)
    features, labels = extract_features(backbone, data, Ranks(7, 8, 7, CPU))
    assert features.shape == (0, 4)
    assert labels.shape == (0,)
    assert torch.equal(backbone[1].running_mean, before)
