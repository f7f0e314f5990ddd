from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import skimage.data
import torch
import torchvision.transforms.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import ColorJitter, RandomResizedCrop, v2

from intl_transfer.data import augment
from intl_transfer.data.views import View, ViewConfig, build_views, normalize

PHOTOGRAPHS = {
    "astronaut": skimage.data.astronaut,
    "coffee": skimage.data.coffee,
    "cat": skimage.data.chelsea,
}


@pytest.fixture(params=sorted(PHOTOGRAPHS))
def photograph(request):
    return np.ascontiguousarray(PHOTOGRAPHS[request.param]()[:300, :400])


def difference(ours, theirs):
    """Mean absolute difference, in levels."""
    theirs = np.asarray(theirs).astype(int)
    assert ours.dtype == np.uint8
    assert ours.shape == theirs.shape
    return np.abs(ours.astype(int) - theirs).mean()


@pytest.mark.parametrize("factor", [0.0, 0.6, 0.9, 1.1, 1.4])
def test_color_operations_are_torchvisions(photograph, factor):
    pillow = Image.fromarray(photograph)
    for ours, theirs in [
        (augment.adjust_brightness, TF.adjust_brightness),
        (augment.adjust_contrast, TF.adjust_contrast),
        (augment.adjust_saturation, TF.adjust_saturation),
    ]:
        assert difference(ours(photograph, factor), theirs(pillow, factor)) <= 0.7, ours.__name__


@pytest.mark.parametrize("shift", [-0.5, -0.1, -0.03, 0.0, 0.05, 0.1])
def test_hue_is_torchvisions(photograph, shift):
    theirs = TF.adjust_hue(Image.fromarray(photograph), shift)
    assert difference(augment.adjust_hue(photograph, shift), theirs) <= 1.0


def test_gray_flip_and_solarize_are_torchvisions(photograph):
    pillow = Image.fromarray(photograph)
    assert difference(augment.to_gray(photograph), TF.to_grayscale(pillow, 3)) <= 0.01
    assert difference(augment.flip_horizontally(photograph), TF.hflip(pillow)) == 0
    assert difference(augment.solarize(photograph), TF.solarize(pillow, 128)) == 0


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.7, 1.0, 1.5, 2.0])
def test_blur_is_torchvisions_and_near_pillows(photograph, sigma):
    tensor = torch.from_numpy(photograph).permute(2, 0, 1)
    theirs = TF.gaussian_blur(tensor, [23, 23], [sigma, sigma]).permute(1, 2, 0).numpy()
    ours = augment.gaussian_blur(photograph, sigma)
    assert difference(ours, theirs) <= 0.1
    pillow = Image.fromarray(photograph).filter(ImageFilter.GaussianBlur(sigma))
    assert difference(ours, pillow) <= 1.0


@pytest.mark.parametrize("size", [32, 96, 224])
@pytest.mark.parametrize("box", [(0, 0, 300, 400), (20, 30, 200, 250), (250, 3, 17, 40)])
def test_resized_crop_is_torchvisions(photograph, box, size):
    theirs = TF.resized_crop(
        Image.fromarray(photograph), *box, (size, size), TF.InterpolationMode.BICUBIC
    )
    assert difference(augment.crop_and_resize(photograph, *box, size), theirs) <= 0.5


OPERATIONS = {
    "brightness": lambda x, out=None: augment.adjust_brightness(x, 1.3, out),
    "contrast": lambda x, out=None: augment.adjust_contrast(x, 1.3, out),
    "saturation": lambda x, out=None: augment.adjust_saturation(x, 1.3, out),
    "hue": lambda x, out=None: augment.adjust_hue(x, 0.1, out),
    "grayscale": augment.to_gray,
    "solarize": augment.solarize,
    "flip": augment.flip_horizontally,
    "blur": lambda x, out=None: augment.gaussian_blur(x, 1.9, out),
}


def test_no_operation_changes_its_input(photograph):
    before = photograph.copy()
    crops = [
        lambda x: augment.crop_and_resize(x, 0, 0, 300, 300, 300),
        lambda x: augment.crop_and_resize(x, 0, 0, 300, 400, 300),
        lambda x: augment.crop_and_resize(x, 0, 0, 300, 400, 300, "bilinear"),
    ]
    for operation in [*OPERATIONS.values(), *crops]:
        result = operation(photograph)
        result[:] = 0
        assert np.array_equal(photograph, before)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 80), width=st.integers(1, 80), seed=st.integers(0, 1000))
def test_operations_in_place_give_the_same_values(height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for name, operation in OPERATIONS.items():
        expected, within = operation(image), image.copy()
        assert operation(within, within) is within, name
        assert np.array_equal(within, expected), name


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_view_is_made_in_the_memory_it_is_given(photograph, interpolation):
    view = View(ViewConfig(size=64, blur=0.5, solarize=0.3), interpolation)
    batch = np.full((12, 64, 64, 3), 7, np.uint8)
    for row in range(10):
        made = view(photograph, np.random.default_rng(row), batch[row])
        assert made.base is batch
        assert np.array_equal(batch[row], view(photograph, np.random.default_rng(row)))
    assert (batch[10:] == 7).all()


def same_distribution(ours, theirs):
    return scipy.stats.ks_2samp(ours, theirs).pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), [(375, 500), (64, 300), (500, 333)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.2, 1.0), (0.086, 0.429)])
def test_boxes_are_drawn_as_torchvision_draws_them(height, width, scale):
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(4000)]
    )
    view = View(ViewConfig(scale_min=scale[0], scale_max=scale[1]))
    generator = np.random.default_rng(0)
    ours = np.array([view.draw(height, width, generator).box for _ in range(4000)])
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    for column in range(4):
        assert same_distribution(ours[:, column], theirs[:, column]), column
    assert same_distribution(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    assert same_distribution(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3])


def test_colors_are_drawn_as_torchvision_draws_them():
    torch.manual_seed(0)
    spread = ([0.6, 1.4], [0.6, 1.4], [0.8, 1.2], [-0.1, 0.1])
    theirs = [ColorJitter.get_params(*spread) for _ in range(4000)]
    view, generator = View(ViewConfig(jitter=1.0)), np.random.default_rng(0)
    ours = [view.draw(300, 300, generator).jitter for _ in range(4000)]
    for operation in range(4):
        values = [dict(jitter)[operation] for jitter in ours]
        assert same_distribution(values, [float(params[1 + operation]) for params in theirs])
    orders = {tuple(operation for operation, _ in jitter) for jitter in ours}
    assert len(orders) == 24  # every order occurs
    first = np.bincount([jitter[0][0] for jitter in ours], minlength=4)
    assert scipy.stats.chisquare(first).pvalue > 1e-3


@settings(max_examples=40, deadline=None)
@given(
    probability=st.integers(0, 100).map(lambda percent: percent / 100),
    name=st.sampled_from(["flip", "grayscale", "solarize", "blur", "jitter"]),
    seed=st.integers(0, 99),
)
def test_probabilities_are_kept(probability, name, seed):
    view, generator = View(ViewConfig(**{name: probability})), np.random.default_rng(seed)
    drawn = [view.draw(50, 50, generator) for _ in range(600)]
    count = {
        "flip": sum(d.flip for d in drawn),
        "grayscale": sum(d.grayscale for d in drawn),
        "solarize": sum(d.solarize for d in drawn),
        "blur": sum(d.sigma is not None for d in drawn),
        "jitter": sum(bool(d.jitter) for d in drawn),
    }[name]
    assert scipy.stats.binomtest(count, 600, probability).pvalue > 1e-6


def published_view(image, config, drawn):
    """The published transformations in their order, by torchvision on a Pillow image."""
    pillow = Image.fromarray(image)
    pillow = TF.resized_crop(
        pillow, *drawn.box, (config.size, config.size), TF.InterpolationMode.BICUBIC
    )
    adjust = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    for operation, value in drawn.jitter:
        pillow = adjust[operation](pillow, value)
    if drawn.grayscale:
        pillow = TF.to_grayscale(pillow, 3)
    if drawn.sigma is not None:
        pillow = pillow.filter(ImageFilter.GaussianBlur(drawn.sigma))
    if drawn.solarize:
        pillow = ImageOps.solarize(pillow)  # at 128
    return TF.hflip(pillow) if drawn.flip else pillow  # the last there, early here: no difference


@pytest.mark.parametrize("size", [32, 96, 224])
def test_a_whole_view_is_the_published_one(photograph, size):
    config = ViewConfig(size=size, blur=0.5, solarize=0.3, jitter=0.8)
    view = View(config)
    found = []
    for seed in range(25):
        drawn = view.draw(*photograph.shape[:2], np.random.default_rng(seed))
        ours = view.apply(photograph, drawn)
        found.append(difference(ours, published_view(photograph, config, drawn)))
    # Levels of rounding: hue, and Pillow's blur, which is three boxes and no Gaussian.
    assert np.mean(found) < 1
    assert max(found) < 2.5


def test_the_blur_has_the_published_strengths():
    view, generator = View(ViewConfig(blur=1.0)), np.random.default_rng(0)
    drawn = [view.draw(50, 50, generator).sigma for _ in range(2000)]
    assert scipy.stats.kstest(drawn, scipy.stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size=st.sampled_from([1, 2, 7, 32]),
    seed=st.integers(0, 1000),
)
def test_any_image_gives_a_view(height, width, size, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    view = View(ViewConfig(size=size, blur=1.0, solarize=1.0, jitter=1.0))
    out = view(image, np.random.default_rng(seed))
    assert out.shape == (size, size, 3)
    assert out.dtype == np.uint8


def test_what_is_off_takes_no_part():
    """The other parameters do not depend on whether one of them is used."""
    a, b = View(ViewConfig(blur=1.0)), View(ViewConfig(blur=0.0, grayscale=0.0))
    for seed in range(20):
        one = a.draw(80, 90, np.random.default_rng(seed))
        two = b.draw(80, 90, np.random.default_rng(seed))
        assert (one.box, one.flip, one.jitter, one.solarize) == (
            two.box,
            two.flip,
            two.jitter,
            two.solarize,
        )
        assert two.sigma is None


def test_blur_has_the_drawn_strength():
    image = np.zeros((33, 33, 3), np.uint8)
    image[16, 16] = 255
    config = ViewConfig(size=33, scale_min=1.0, jitter=0, grayscale=0, solarize=0, flip=0, blur=1.0)
    view, generator = View(config), np.random.default_rng(0)
    drawn = [view.draw(33, 33, generator) for _ in range(300)]
    whole = [d.__class__((0, 0, 33, 33), *list(d.__dict__.values())[1:]) for d in drawn]
    peaks = np.array([view.apply(image, d)[16, 16, 0] / 255 for d in whole])
    # The peak of a blurred point is the kernel's center: 1 for sigma 0.1, 0.0398 for sigma 2.
    assert peaks.max() > 0.9
    assert 0.03 < peaks.min() < 0.06


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blur": 1.5}, "blur is 1.5"),
        ({"scale_min": 0.5, "scale_max": 0.2}, "crop scale 0.5 to 0.2"),
        ({"scale_min": 0.0}, r"crop scale 0\.0"),
        ({"hue": 0.7}, r"hue is 0\.7; expected 0 to 0\.5"),
        ({"brightness": -0.1}, r"brightness is -0\.1"),
        ({"size": 0}, "size is 0"),
    ],
)
def test_impossible_views_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        build_views([ViewConfig(), ViewConfig(**change)])


def test_normalize_equals_torchvision():
    images = torch.randint(0, 256, (4, 9, 8, 3), dtype=torch.uint8)
    transform = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    ours = normalize(images)
    torch.testing.assert_close(ours, transform(images.permute(0, 3, 1, 2)), rtol=1e-5, atol=1e-5)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    turned = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)  # not contiguous
    assert torch.equal(normalize(turned), ours)


@pytest.mark.parametrize("scale", [1, 255])
def test_only_bytes_are_normalized(scale):
    images = torch.rand(1, 4, 4, 3) * scale
    with pytest.raises(ValueError, match=r"images are torch\.float32; expected torch\.uint8"):
        normalize(images)
