"""Random views of an image: crops of several sizes, color, blur, solarization.

Parameters are drawn as in torchvision, by a separate generator per image; pixels stay uint8 until
:func:`normalize` turns a whole batch to floats in one step, on the device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from intl_transfer.data import augment
from intl_transfer.data.augment import Interpolation, Pixels
from intl_transfer.data.statistics import STATISTICS

IMAGENET_MEAN, IMAGENET_STD = STATISTICS["imagenet"].mean, STATISTICS["imagenet"].std

_CROP_TRIES = 10
_LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
_SIGMA = (0.1, 2.0)
# Uniform numbers consumed per view, used or not, so that no draw depends on another's outcome.
_BOX_DRAWS = 2 * _CROP_TRIES + 2
_DRAWS = _BOX_DRAWS + 12  # the last is not used
_ORDERS = [
    (a, b, c, d)
    for a in range(4)
    for b in range(4)
    for c in range(4)
    for d in range(4)
    if len({a, b, c, d}) == 4
]


@dataclass
class ViewConfig:
    """The distribution of a view.

    Attributes:
        size: side of the square crop, in pixels.
        scale_min: minimum fraction of the image's area that a crop covers.
        scale_max: maximum fraction.
        blur: probability of a Gaussian blur, sigma uniform in [0.1, 2] px.
        solarize: probability of solarization at 128.
        jitter: probability of color jitter.
        brightness: half-width of the brightness factor around 1.
        contrast: half-width of the contrast factor.
        saturation: half-width of the saturation factor.
        hue: half-width of the hue shift, as a fraction of the color circle.
        grayscale: probability of conversion to grayscale.
        flip: probability of a horizontal flip.
    """

    size: int = 224
    scale_min: float = 0.08
    scale_max: float = 1.0
    blur: float = 0.5
    solarize: float = 0.1
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale: float = 0.2
    flip: float = 0.5


@dataclass(frozen=True)
class ViewParameters:
    """The parameters drawn for one view of an image.

    Attributes:
        box: top, left, height, width of the crop.
        flip: whether it is mirrored.
        jitter: (operation, value) pairs in their order, operations 0 to 3 being brightness,
            contrast, saturation and hue; empty without jitter.
        grayscale: whether it is converted to grayscale.
        sigma: of the blur, in pixels; None without.
        solarize: whether it is solarized.
    """

    box: tuple[int, int, int, int]
    flip: bool
    jitter: tuple[tuple[int, float], ...]
    grayscale: bool
    sigma: float | None
    solarize: bool


class View:
    """The random transformation of one view.

    Args:
        config: sizes and probabilities.
        interpolation: of the crop's resize.

    Raises:
        ValueError: if a probability, a scale or a size is out of range.
    """

    def __init__(self, config: ViewConfig, interpolation: Interpolation = "bicubic") -> None:
        for name in ("blur", "solarize", "jitter", "grayscale", "flip"):
            if not 0 <= getattr(config, name) <= 1:
                raise ValueError(f"{name} is {getattr(config, name)}; expected a probability")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(config, name) <= 1:
                raise ValueError(f"{name} is {getattr(config, name)}; expected 0 to 1")
        if not 0 <= config.hue <= 0.5:
            raise ValueError(f"hue is {config.hue}; expected 0 to 0.5")
        if not 0 < config.scale_min <= config.scale_max <= 1:
            raise ValueError(
                f"crop scale {config.scale_min} to {config.scale_max}; expected 0 < min <= max <= 1"
            )
        if config.size < 1:
            raise ValueError(f"size is {config.size}; expected at least 1 pixel")
        self.config, self._interpolation = config, interpolation

    def draw(self, height: int, width: int, generator: np.random.Generator) -> ViewParameters:
        """Draws the parameters for an image of this size."""
        config = self.config
        u: list[float] = generator.random(_DRAWS).tolist()
        flip, jittered, *values, ordered, grayed, strength, blurred, solarized = u[_BOX_DRAWS:-1]
        jitter: tuple[tuple[int, float], ...] = ()
        if jittered < config.jitter:
            spread = (config.brightness, config.contrast, config.saturation, config.hue)
            drawn = [(2 * r - 1) * s for r, s in zip(values, spread, strict=True)]
            order = _ORDERS[int(ordered * len(_ORDERS))]
            jitter = tuple([(i, drawn[i] + (i < 3)) for i in order if spread[i] > 0])
        sigma = _SIGMA[0] + strength * (_SIGMA[1] - _SIGMA[0])
        return ViewParameters(
            box=_draw_box(height, width, config, u),
            flip=flip < config.flip,
            jitter=jitter,
            grayscale=grayed < config.grayscale,
            sigma=sigma if blurred < config.blur else None,
            solarize=solarized < config.solarize,
        )

    def apply(self, image: Pixels, parameters: ViewParameters, out: Pixels | None = None) -> Pixels:
        """Renders a view (size, size, 3) of a uint8 image (H, W, 3) from its parameters.

        Args:
            image: unchanged.
            parameters: from :meth:`draw`.
            out: for the result, (size, size, 3) and contiguous: all operations after the resize are
                in place, without allocation.
        """
        view = augment.crop_and_resize(
            image, *parameters.box, self.config.size, self._interpolation, out
        )
        if parameters.flip:
            augment.flip_horizontally(view, view)
        for operation, value in parameters.jitter:
            _JITTER[operation](view, value, view)
        if parameters.grayscale:
            augment.to_gray(view, view)
        if parameters.sigma is not None:
            augment.gaussian_blur(view, parameters.sigma, view)
        if parameters.solarize:
            augment.solarize(view, view)
        return view

    def __call__(
        self, image: Pixels, generator: np.random.Generator, out: Pixels | None = None
    ) -> Pixels:
        """A random view (size, size, 3) of a uint8 image (H, W, 3), made in ``out`` if given."""
        return self.apply(image, self.draw(image.shape[0], image.shape[1], generator), out)


_JITTER = (
    augment.adjust_brightness,
    augment.adjust_contrast,
    augment.adjust_saturation,
    augment.adjust_hue,
)


def _draw_box(
    height: int, width: int, config: ViewConfig, u: list[float]
) -> tuple[int, int, int, int]:
    """A random box, as drawn by ``RandomResizedCrop``."""
    area = height * width
    position = u[2 * _CROP_TRIES : _BOX_DRAWS]
    for tried in range(_CROP_TRIES):
        share = config.scale_min + u[2 * tried] * (config.scale_max - config.scale_min)
        low, high = _LOG_RATIO
        ratio = math.exp(low + u[2 * tried + 1] * (high - low))
        w = round(math.sqrt(area * share * ratio))
        h = round(math.sqrt(area * share / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(position[0] * (height - h + 1)), int(position[1] * (width - w + 1))
            return top, left, h, w
    # The largest central box with an allowed aspect ratio.
    w, h = width, height
    if width / height < 3 / 4:
        h = min(height, max(1, round(width / (3 / 4))))
    elif width / height > 4 / 3:
        w = min(width, max(1, round(height * (4 / 3))))
    return (height - h) // 2, (width - w) // 2, h, w


def build_views(configs: Sequence[ViewConfig]) -> list[View]:
    """One transformation per view, in the order in which the network sees them."""
    return [View(config) for config in configs]


def normalize(
    images: Tensor,
    device: torch.device | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    """Scales a uint8 batch by a mean and a standard deviation, ImageNet's unless given.

    Args:
        images: uint8, (B, H, W, 3).
        device: of the result; the batch is copied to it as uint8, a quarter of the traffic.
        mean: of each channel, for channels in [0, 1].
        std: of each channel.

    Returns:
        float32, (B, 3, H, W), in channels-last memory.

    Raises:
        ValueError: if the batch is not uint8: whether floats end at 1 or 255 cannot be seen.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}; expected torch.uint8")
    batch, height, width, channels = images.shape
    # Rows of W x 3 numbers against one row: far faster on a CPU than broadcasting three numbers.
    rows = images.to(device, non_blocking=True).reshape(batch * height, width * channels).float()
    scale, offset = _scale_and_offset(tuple(mean), tuple(std), width, rows.device)
    rows.mul_(scale).sub_(offset)
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=64)  # a few sizes, on one device
def _scale_and_offset(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Scale and offset for uint8 values, one row of pixels each."""
    center, spread = (torch.tensor(value) * 255 for value in (mean, std))
    return (
        (1 / spread).repeat(width).to(device),
        (center / spread).repeat(width).to(device),
    )
