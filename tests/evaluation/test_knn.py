from __future__ import annotations

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torchvision import transforms
from torchvision.transforms import functional as TF

from intl_transfer.data.images import read_image
from intl_transfer.data.sources import open_source
from intl_transfer.data.views import View, ViewConfig
from intl_transfer.evaluation import (
    EvaluationImages,
    extract_features,
    knn,
    knn_accuracy,
    knn_predict,
)
from intl_transfer.evaluation.features import center_crop
from intl_transfer.runs.distributed import Ranks
from pretrain.monitor import network_size
from tests.data.photographs import STAMPS, needs_stamps
from tests.ranks import run_ranks

CPU = torch.device("cpu")


def by_scikit_learn(train, labels, queries, k):
    """Brute force in float64; of a tie the smallest label."""
    classifier = KNeighborsClassifier(min(k, len(train)), algorithm="brute")
    classifier.fit(train.double().numpy(), labels.numpy())
    return classifier.predict(queries.double().numpy()).tolist()


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(1, 30),
    q=st.integers(1, 8),
    k=st.integers(1, 12),
    classes=st.integers(1, 5),
    seed=st.integers(0, 999),
)
def test_predictions_are_scikit_learns(n, q, k, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    train = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (n,), generator=generator)
    queries = torch.randn(q, 3, generator=generator, dtype=torch.float64)
    predicted = knn_predict(train, labels, queries, k)
    assert predicted.tolist() == by_scikit_learn(train, labels, queries, k)


def test_a_tie_goes_to_the_smallest_label():
    train = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    labels = torch.tensor([7, 2, 7, 2])
    queries = torch.tensor([[-1.0], [4.0], [1.4]])
    assert knn_predict(train, labels, queries, 4).tolist() == [2, 2, 2]
    assert by_scikit_learn(train, labels, queries, 4) == [2, 2, 2]
    # Two votes each and one for another: the nearest of them, 7, does not matter.
    labels = torch.tensor([9, 5, 9, 5])
    assert knn_predict(train, labels, torch.tensor([[-1.0]]), 4).tolist() == [5]


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e4])
def test_what_all_features_have_in_common_costs_no_precision(offset):
    generator = torch.Generator().manual_seed(0)
    # Features that a float32 holds exactly, offset included: an eighth apart at least.
    train = torch.randint(-40, 40, (400, 16), generator=generator) / 8
    labels = torch.randint(0, 10, (400,), generator=generator)
    queries = torch.randint(-40, 40, (200, 16), generator=generator) / 8 + 1 / 64
    moved = knn_predict(train + offset, labels, queries + offset, 5)
    truth = by_scikit_learn(train, labels, queries, 5)
    assert moved.tolist() == knn_predict(train, labels, queries, 5).tolist()
    assert np.mean(np.array(moved.tolist()) == truth) > 0.98  # of equal distances any may be taken


def spread(name):
    """Features, and queries, whose neighbors float32's products do not tell."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(250, 16, generator=generator)
    if name == "two tight clusters":
        features = features * 1e-4
        features[::2] += 10
    elif name == "one far away":
        features[0] = 1e5
    else:
        features = features * float(name)
    return features[:200], features[200:]


@pytest.mark.parametrize(
    "name", ["two tight clusters", "one far away", "1e-30", "1e-20", "1e19", "1e30"]
)
def test_neighbors_are_those_of_float64_at_any_scale(name):
    train, queries = spread(name)
    labels = torch.randint(0, 10, (200,), generator=torch.Generator().manual_seed(1))
    scale = float(train.abs().max())  # of a power of ten: scikit-learn's squares may vanish
    truth = by_scikit_learn(train.double() / scale, labels, queries.double() / scale, 5)
    assert knn_predict(train, labels, queries, 5).tolist() == truth


def test_blocks_of_training_features_are_one_set(monkeypatch):
    train, queries = spread("1")
    labels = torch.randint(0, 10, (200,), generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(knn, "_BLOCK", 3)  # fewer than there are neighbors
    truth = by_scikit_learn(train, labels, queries, 5)
    assert knn_predict(train, labels, queries, 5).tolist() == truth


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", [0, 1])
def test_what_is_not_finite_has_no_neighbors(part, value):
    parts = spread("1")
    parts[part][3, 2] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        knn_predict(parts[0], torch.zeros(200, dtype=torch.int64), parts[1], 5)


def identical():
    """60 features of 8 images each, whose labels differ, and queries."""
    generator = torch.Generator().manual_seed(0)
    train = torch.relu(torch.randn(60, 16, generator=generator)).repeat(8, 1)
    labels = torch.randint(0, 10, (480,), generator=generator)
    return train, labels, torch.relu(torch.randn(60, 16, generator=generator))


def by_differences(train, labels, queries, k):
    """Differences squared and summed in float64; images by distance, then label."""
    found = []
    for query in queries.double().numpy():
        distances = ((train.double().numpy() - query) ** 2).sum(1)
        nearest = np.lexsort((labels, distances))[:k]
        found.append(int(np.bincount(labels[nearest]).argmax()))
    return found


@pytest.mark.parametrize("k", [1, 5, 11])
@pytest.mark.parametrize("block", [7, 8192])
def test_of_identical_features_the_smallest_labels_are_nearest(block, k, monkeypatch):
    """Which of them counted depended on the blocks of the products, and on the ranks."""
    monkeypatch.setattr(knn, "_BLOCK", block)
    train, labels, queries = identical()
    truth = by_differences(train, labels, queries, k)
    assert knn_predict(train, labels, queries, k).tolist() == truth
    order = torch.randperm(480, generator=torch.Generator().manual_seed(1))
    assert knn_predict(train[order], labels[order], queries, k).tolist() == truth


def test_features_that_are_all_the_same():
    """A collapsed backbone."""
    labels = torch.arange(50) % 7 + 2
    same = torch.ones(50, 4)
    assert knn_predict(same, labels, same[:3], 5).tolist() == [2, 2, 2]
    zeros = torch.tensor([[0.0], [-0.0]])
    assert knn_predict(zeros, torch.tensor([1, 0]), zeros[:1], 1).tolist() == [0]
    # As many as there are of each: two of 3, one of 1, and then of another feature two of 1.
    train, labels = torch.tensor([[0.0]] * 3 + [[1.0]] * 2), torch.tensor([3, 3, 1, 1, 1])
    for k, label in ((1, 1), (3, 3), (4, 1), (5, 1), (9, 1)):
        assert knn_predict(train, labels, torch.zeros(1, 1), k).tolist() == [label]


def identical_over_ranks(rank, world_size):
    train, labels, queries = identical()
    own = slice(rank, None, world_size)
    ranks = Ranks(rank, world_size, rank, CPU)
    return knn_predict(train[own], labels[own], queries, 5, ranks).tolist()


def test_ranks_do_not_decide_which_of_identical_features_are_near():
    truth = by_differences(*identical(), 5)
    assert run_ranks(identical_over_ranks, 2) == [truth, truth]


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
    theirs = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(56)])
    for index in range(3):
        image, label = ours[index]
        expected = np.asarray(theirs(Image.open(source.name(index))))
        assert np.array_equal(image.numpy(), expected)
        assert label == source.labels[index]
    whole = EvaluationImages(source, 64, crop_pct=1.0)[0][0]
    assert torch.equal(whole, torch.from_numpy(source.image(0)))


def photographs():
    pictures = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()]
    square = np.asarray(Image.fromarray(pictures[0]).resize((224, 224)))
    odd = np.ascontiguousarray(pictures[1][:, 31:330])  # taller than wide, odd sides
    small = np.asarray(Image.fromarray(pictures[2]).resize((61, 47)))
    return [*pictures, square, odd, small]


PUBLISHED_TEST = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])


@pytest.mark.parametrize("index", range(6))
def test_test_crops_of_photographs_are_torchvisions_pixel_by_pixel(index):
    photograph = photographs()[index]
    expected = np.asarray(PUBLISHED_TEST(Image.fromarray(photograph)))
    assert np.array_equal(center_crop(photograph, 224), expected)
    # A stored image of 224 px is resized as well.
    assert not np.array_equal(center_crop(photographs()[3], 224), photographs()[3])


@needs_stamps
def test_test_crops_of_other_pictures_are_torchvisions_pixel_by_pixel():
    files = sorted(STAMPS.rglob("*.png"))[::60]
    assert len(files) >= 3
    for file in files:
        picture = read_image(file)
        expected = np.asarray(PUBLISHED_TEST(Image.fromarray(picture)))
        assert np.array_equal(center_crop(picture, 224), expected), file


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size=st.integers(1, 64),
    seed=st.integers(0, 99),
)
def test_any_image_is_cut_as_torchvision_cuts_it(height, width, size, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    theirs = transforms.Compose([transforms.Resize(size * 256 // 224), transforms.CenterCrop(size)])
    expected = np.asarray(theirs(Image.fromarray(image)))
    assert np.array_equal(center_crop(image, size), expected)


@pytest.mark.parametrize("index", range(6))
def test_training_crops_are_torchvisions_pixel_by_pixel(index):
    photograph = photographs()[index]
    config = ViewConfig(224, 0.08, blur=0.0, solarize=0.0, jitter=0.0, grayscale=0.0)
    view = View(config, "bilinear")
    for seed in range(10):
        drawn = view.draw(*photograph.shape[:2], np.random.default_rng(seed))
        mode = transforms.InterpolationMode.BILINEAR
        theirs = TF.resized_crop(Image.fromarray(photograph), *drawn.box, (224, 224), mode)
        theirs = TF.hflip(theirs) if drawn.flip else theirs
        assert np.array_equal(view.apply(photograph, drawn), np.asarray(theirs))


TRAIN, LABELS = torch.randn(6, 3), torch.arange(6) % 2
QUERIES, TRUTH = torch.randn(4, 3), torch.arange(4) % 2


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"test_labels": TRUTH[:, None]}, r"test_labels have shape \(4, 1\); expected \(4,\)"),
        ({"test_labels": TRUTH[:1]}, r"test_labels have shape \(1,\)"),
        ({"test_labels": TRUTH.float()}, r"test_labels: expected .* integers \(n,\), found .*32"),
        ({"test": QUERIES[:, :1]}, "queries have width 1 and training features 3"),
        ({"test": QUERIES.numpy()}, "test: expected a torch.Tensor of real numbers"),
        ({"train": TRAIN[:, :, None]}, r"train: expected shape \(n, width\), found \(6, 3, 1\)"),
        ({"train": TRAIN[:, :0], "test": QUERIES[:, :0]}, r"found \(4, 0\)|found \(6, 0\)"),
        ({"train_labels": LABELS[:5]}, r"train_labels have shape \(5,\); expected \(6,\)"),
        ({"train_labels": LABELS > 0}, "found torch.bool"),
        ({"k": 5.0}, "k is 5.0; expected a whole number"),
    ],
)
def test_wrong_shapes_and_types_are_refused(changed, expected):
    """Labels (n, 1) were compared with all predictions, and a width of 1 with every feature."""
    right = {"train": TRAIN, "train_labels": LABELS, "test": QUERIES, "test_labels": TRUTH}
    with pytest.raises((TypeError, ValueError), match=expected):
        knn_accuracy(**{**right, **changed})


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.uint8])
def test_labels_are_any_integers(dtype):
    train, queries = spread("1")
    labels = torch.randint(0, 10, (200,), generator=torch.Generator().manual_seed(1))
    truth = by_scikit_learn(train, labels, queries, 5)
    assert knn_predict(train, labels.to(dtype), queries, 5).tolist() == truth
    for shift in (-5, 10**15):
        found = knn_predict(train, labels + shift, queries, 5) - shift
        assert found.tolist() == truth


@pytest.mark.parametrize("exponent", [530, 1020, -570, -1000])
def test_neighbors_are_those_of_any_float64(exponent):
    """Squares beyond float64's range made all distances equal."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randint(-999, 999, (250, 4), generator=generator).double() / 1000
    labels = torch.randint(0, 10, (200,), generator=generator)
    scaled = torch.from_numpy(np.ldexp(features.numpy(), exponent))
    truth = by_scikit_learn(features[:200], labels, features[200:], 5)
    assert knn_predict(scaled[:200], labels, scaled[200:]).tolist() == truth


def test_features_leave_frozen_layers_frozen(images):
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten())
    backbone[1].eval()
    data = EvaluationImages(open_source(images), 8)
    extract_features(backbone, data, Ranks(0, 1, 0, CPU))
    network_size(backbone, 8, CPU)
    assert backbone.training
    assert [module.training for module in backbone] == [True, False, True, True]


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
