from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from intl_transfer.data.datasets import ViewsDataset, decode, image_folder
from intl_transfer.data.loaders import GlobalBatchSampler, build_loader, rank_batch_size
from intl_transfer.data.views import ViewConfig, build_view, build_views, normalise
from intl_transfer.errors import UserError


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(6):
            pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{i}.png")
    return tmp_path


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


@pytest.mark.parametrize("workers", [0, 2])
def test_views_depend_on_seed_epoch_and_index_alone(images, workers):
    files = [file for file, _ in image_folder(images)]
    views = build_views([ViewConfig(size=16), ViewConfig(size=8)])
    reference = ViewsDataset(files, views, seed=3)
    sampler = GlobalBatchSampler(len(files), 4, seed=3)
    sampler.epoch = 2
    loader = build_loader(ViewsDataset(files, views, 3, cache=True), sampler, workers, False)
    for keys, batch in zip(sampler, loader, strict=True):
        expected = [reference[key] for key in keys]
        for view, size in enumerate((16, 8)):
            assert batch[view].dtype == torch.uint8
            assert batch[view].shape == (4, 3, size, size)
            assert torch.equal(batch[view], torch.stack([e[view] for e in expected]))
    torch.manual_seed(123)
    expected_next = torch.rand(1)
    torch.manual_seed(123)
    reference[(2, 0)]  # drawing views leaves the process's own generator alone
    assert torch.equal(torch.rand(1), expected_next)
    assert not torch.equal(reference[(2, 0)][0], reference[(3, 0)][0])
    assert not torch.equal(reference[(2, 0)][0], ViewsDataset(files, views, 4)[(2, 0)][0])


def test_view_probabilities_and_ranges():
    torch.manual_seed(0)
    # Left half black, right half white: a flip swaps them, solarisation inverts the white one.
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    image[:, :, 32:] = 200
    plain = {"jitter": 0.0, "grey": 0.0, "blur": 0.0, "scale_min": 1.0}
    flips = build_view(ViewConfig(size=64, solarise=0.0, flip=0.5, **plain))
    count = sum(int(flips(image)[0, 32, 2] > 100) for _ in range(400))
    assert 160 < count < 240
    solarised = build_view(ViewConfig(size=64, solarise=0.2, flip=0.0, **plain))
    values = [int(solarised(image)[0, 32, 60]) for _ in range(400)]
    assert set(values) == {200, 55}
    assert 50 < values.count(55) < 110


def test_blur_has_the_drawn_strength():
    torch.manual_seed(0)
    image = torch.zeros(3, 33, 33, dtype=torch.uint8)
    image[:, 16, 16] = 255
    view = build_view(
        ViewConfig(size=33, scale_min=1.0, jitter=0, grey=0, solarise=0, flip=0, blur=1.0)
    )
    peaks = torch.tensor([float(view(image)[0, 16, 16]) / 255 for _ in range(300)])
    # The peak of a blurred point is the kernel's centre: 1 for sigma 0.1, 0.0398 for sigma 2.
    assert peaks.max() > 0.9
    assert 0.03 < peaks.min() < 0.06


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blur": 1.5}, "blur is 1.5"),
        ({"scale_min": 0.5, "scale_max": 0.2}, "crop scale 0.5 to 0.2"),
        ({"scale_min": 0.0}, "crop scale 0.0"),
    ],
)
def test_impossible_views_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        build_view(ViewConfig(**change))


def test_normalise_equals_torchvision():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    transform = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    torch.testing.assert_close(normalise(images), transform(images), rtol=1e-5, atol=1e-5)


def test_bad_folders_and_files(tmp_path):
    with pytest.raises(UserError, match="no image folder"):
        image_folder(tmp_path / "absent")
    with pytest.raises(UserError, match="no images in class folders"):
        image_folder(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="no images in class folders"):
        image_folder(tmp_path)
    broken = tmp_path / "a" / "x.png"
    broken.write_bytes(b"\x89PNG nothing")
    with pytest.raises(UserError, match=r"x\.png cannot be read as an image"):
        decode(str(broken))


def test_grey_and_palette_images_become_rgb(tmp_path):
    for mode in ("L", "P", "RGBA", "CMYK"):
        file = tmp_path / f"{mode}.tiff"
        Image.new(mode, (5, 4)).save(file)
        assert decode(str(file)).shape == (3, 4, 5)
