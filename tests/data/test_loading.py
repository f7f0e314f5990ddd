from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from intl_transfer.data.datasets import ViewsDataset
from intl_transfer.data.images import UnreadableImageError
from intl_transfer.data.loaders import GlobalBatchSampler, build_loader, rank_batch_size
from intl_transfer.data.source import ImageSource
from intl_transfer.data.sources import open_source
from intl_transfer.data.views import ViewConfig, build_views
from intl_transfer.errors import UserError
from intl_transfer.evaluation import EvaluationImages


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(6):
            pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{i}.png")
    return tmp_path


class Own(ImageSource):
    """Someone's arrays; None cannot be read."""

    def __init__(self, images, labels, classes=("a", "b")):
        self.images, self.labels, self.classes = images, labels, classes

    def name(self, index):
        return f"image {index}"

    def image(self, index):
        if self.images[index] is None:
            raise UnreadableImageError("gone")
        return self.images[index]

    def content(self, index):
        return b""


def _views_of(source):
    return ViewsDataset(source, build_views([ViewConfig(size=16)]), seed=0)


@pytest.mark.parametrize("read", [_views_of, lambda source: EvaluationImages(source, 16)])
def test_own_sources_are_checked_once_for_all(read):
    """Floats were cut to integers, -1 taken for images that cannot be read."""
    rgb = np.zeros((20, 24, 3), np.uint8)
    for labels, expected in (
        (np.array([0.0, 1.7]), r"labels are float64 of shape \(2,\)"),
        (np.array([0, -1]), "1 of 2 images have a label that is none .*: image 1 has -1"),
        (np.array([0, 2]), "image 1 has 2; expected 0 to 1"),
        (np.array([[0], [1]]), r"labels are int64 of shape \(2, 1\)"),
    ):
        with pytest.raises(UserError, match=f"Own: .*{expected}"):
            read(Own([rgb, rgb], labels))
    for image, found in (
        (rgb[..., 0], r"uint8 \(20, 24\)"),
        (rgb[..., :1], r"uint8 \(20, 24, 1\)"),
        (rgb.transpose(2, 0, 1), r"uint8 \(3, 20, 24\)"),
        (np.concatenate([rgb, rgb[..., :1]], -1), r"uint8 \(20, 24, 4\)"),
        (rgb / 255, r"float64 \(20, 24, 3\)"),
        (Image.fromarray(rgb), "Image"),
    ):
        data = read(Own([image], np.array([0])))
        with pytest.raises(
            UserError, match=rf"image 0: Own\.image returns {found}; expected uint8"
        ):
            data[(0, 0) if isinstance(data, ViewsDataset) else 0]
    data = read(Own([None, rgb], [0, 1]))  # a list will do
    assert data[(0, 0) if isinstance(data, ViewsDataset) else 0] is not None


@settings(max_examples=60, deadline=None)
@given(
    batches=st.integers(1, 5),
    rows=st.integers(1, 4),
    world_size=st.sampled_from([1, 2, 3, 4]),
    rest=st.integers(0, 3),
    epoch=st.integers(0, 3),
    start=st.integers(0, 2),
)
def test_the_global_batch_does_not_depend_on_the_ranks(
    batches, rows, world_size, rest, epoch, start
):
    size = rows * world_size
    length = batches * size + min(rest, size - 1)

    def epoch_of(rank, ranks):
        sampler = GlobalBatchSampler(length, size, 7, rank, ranks)
        sampler.epoch, sampler.start = epoch, min(start, batches)
        out = list(sampler)
        assert len(out) == len(sampler)
        return out

    single = epoch_of(0, 1)
    shares = [epoch_of(rank, world_size) for rank in range(world_size)]
    joined = [[key for part in parts for key in part] for parts in zip(*shares, strict=True)]
    assert joined == single
    indices = [index for batch in single for _, index in batch]
    assert len(set(indices)) == len(indices) == (batches - min(start, batches)) * size
    assert all(e == epoch for batch in single for e, _ in batch)


def test_epochs_differ_and_seeds_differ():
    def order(seed, epoch):
        sampler = GlobalBatchSampler(64, 8, seed)
        sampler.epoch = epoch
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0)
    assert [i for b in order(0, 0) for _, i in b] != [i for b in order(0, 1) for _, i in b]


def test_batches_that_cannot_be_shared_out():
    assert rank_batch_size(256, 8) == 32
    with pytest.raises(UserError, match=r"3 ranks do not divide .* 256; .*: 2 or 4"):
        rank_batch_size(256, 3)
    with pytest.raises(UserError, match="5 images do not fill one global batch of 8"):
        GlobalBatchSampler(5, 8, 0)


def test_a_source_may_have_an_order_of_its_own():
    sampler = GlobalBatchSampler(9, 4, 0, epoch_order=lambda seed, epoch: np.arange(9)[::-1])
    assert [i for batch in sampler for _, i in batch] == [8, 7, 6, 5, 4, 3, 2, 1]


def rows(dataset, keys):
    return [dataset[key].views for key in keys]


@pytest.mark.parametrize("workers", [0, 2])
def test_views_depend_on_seed_epoch_and_index_alone(images, workers):
    source = open_source(images)
    views = build_views([ViewConfig(size=16), ViewConfig(size=8)])
    reference = ViewsDataset(source, views, seed=3)
    sampler = GlobalBatchSampler(len(source), 4, seed=3)
    sampler.epoch = 2
    loader = build_loader(ViewsDataset(source, views, 3, cache=True), sampler, workers, False)
    for keys, batch in zip(sampler, loader, strict=True):
        expected = rows(reference, keys)
        assert batch.unreadable == []
        assert not batch.gone
        for view, size in enumerate((16, 8)):
            assert batch.views[view].dtype == torch.uint8
            assert batch.views[view].shape == (4, size, size, 3)
            assert torch.equal(batch.views[view], torch.cat([row[view] for row in expected]))
            assert batch.views[view].is_shared() == (workers > 0)
    torch.manual_seed(123)
    expected_next = torch.rand(1)
    torch.manual_seed(123)
    reference[(2, 0)]  # drawing views leaves the process's own generator alone
    assert torch.equal(torch.rand(1), expected_next)
    one = reference[(2, 0)].views[0]
    assert not torch.equal(one, reference[(3, 0)].views[0])
    assert not torch.equal(one, ViewsDataset(source, views, 4)[(2, 0)].views[0])


@pytest.mark.parametrize("cache", [False, True])
def test_another_image_takes_the_place_of_one_that_cannot_be_read(images, cache):
    (images / "a" / "3.png").write_bytes(b"no image")
    source = open_source(images)
    views = build_views([ViewConfig(size=16)])
    dataset = ViewsDataset(source, views, seed=0, cache=cache)
    batch = dataset.__getitems__([(0, i) for i in range(6)])
    ((index, reason),) = batch.unreadable
    assert index == 3
    assert "3.png cannot be read as an image (none of the formats JPEG, PNG" in reason
    # Whoever asks, alone or among others, gets the same image in its place.
    assert torch.equal(dataset[(0, 3)].views[0][0], batch.views[0][3])
    assert batch.views[0][3].any()
    assert not batch.gone


def test_a_data_set_that_has_gone_is_noticed(images):
    dataset = ViewsDataset(open_source(images), build_views([ViewConfig(size=16)]), seed=0)
    for file in images.rglob("*.png"):
        file.unlink()
    batch = dataset[(0, 3)]
    assert batch.gone
    assert len(batch.unreadable) == 16
