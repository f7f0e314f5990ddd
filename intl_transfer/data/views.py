"""Random views of an image: crops of several sizes, colour, blur, solarisation.

Everything happens on uint8; :func:`normalise` turns a whole batch to floats in one step, on the
device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as transforms

# Of ImageNet's training images, for channels in [0, 1], RGB.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Wide enough for three standard deviations of the strongest blur (sigma = 2 px) on either side.
_BLUR_KERNEL = 13


@dataclass
class ViewConfig:
    """How one view is drawn from an image.

    Attributes:
        size: side of the square crop, in pixels.
        scale_min: smallest share of the image's area that a crop covers.
        scale_max: largest share.
        blur: probability of a Gaussian blur, sigma uniform in [0.1, 2] px.
        solarise: probability of solarisation at 128.
        jitter: probability of colour jitter.
        brightness: half-width of the brightness factor around 1.
        contrast: half-width of the contrast factor.
        saturation: half-width of the saturation factor.
        hue: half-width of the hue shift, as a share of the circle.
        grey: probability of turning grey.
        flip: probability of a horizontal flip.
    """

    size: int = 224
    scale_min: float = 0.08
    scale_max: float = 1.0
    blur: float = 0.5
    solarise: float = 0.1
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey: float = 0.2
    flip: float = 0.5


View = Callable[[Tensor], Tensor]


def build_view(config: ViewConfig) -> View:
    """Builds the random transformation of one view.

    Args:
        config: sizes and probabilities.

    Returns:
        A function from a uint8 image (3, H, W) to a uint8 crop (3, size, size). It draws from
        torch's global CPU generator.

    Raises:
        ValueError: if a probability or scale is out of range.
    """
    for name in ("blur", "solarise", "jitter", "grey", "flip"):
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name} is {getattr(config, name)}; expected a probability")
    if not 0 < config.scale_min <= config.scale_max <= 1:
        raise ValueError(
            f"crop scale {config.scale_min} to {config.scale_max}; expected 0 < min <= max <= 1"
        )
    jitter = transforms.ColorJitter(
        config.brightness, config.contrast, config.saturation, config.hue
    )
    steps = [
        transforms.RandomResizedCrop(
            config.size,
            scale=(config.scale_min, config.scale_max),
            interpolation=InterpolationMode.BICUBIC,
            antialias=True,
        ),
        transforms.RandomHorizontalFlip(config.flip),
        transforms.RandomApply([jitter], p=config.jitter),
        transforms.RandomGrayscale(config.grey),
    ]
    if config.blur > 0:
        blur = transforms.GaussianBlur(_BLUR_KERNEL, sigma=(0.1, 2.0))
        steps.append(transforms.RandomApply([blur], p=config.blur))
    if config.solarise > 0:
        steps.append(transforms.RandomSolarize(threshold=128, p=config.solarise))
    return cast(View, transforms.Compose(steps))


def build_views(configs: Sequence[ViewConfig]) -> list[View]:
    """Builds one transformation per view, in the order in which the network sees them."""
    return [build_view(config) for config in configs]


def normalise(images: Tensor, device: torch.device | None = None) -> Tensor:
    """Scales a uint8 batch (B, 3, H, W) by ImageNet's mean and standard deviation.

    Args:
        images: uint8, RGB.
        device: where to; the batch is copied there as uint8, a quarter of the traffic.

    Returns:
        float32, (B, 3, H, W).
    """
    images = images.to(device, non_blocking=True).float()
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1) * 255
    return (images - mean) / std
