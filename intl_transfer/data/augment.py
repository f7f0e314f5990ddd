"""Augmentations of uint8 images (H, W, 3), each as torchvision's up to rounding.

The resize is torch's own antialiased bicubic, on bytes, or Pillow's bilinear; colour and blur are
OpenCV's. No float image is ever made. Nothing here is random: :mod:`intl_transfer.data.views` draws
the parameters.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Interpolation = Literal["bicubic", "bilinear"]

# ITU-R 601, as PIL and torchvision weigh red, green and blue.
_LUMA = (0.299, 0.587, 0.114)
# torchvision cuts the fraction off, OpenCV rounds half to even; just under a half makes them agree.
_CUT = 0.499
_KERNEL_RADIUS_MAX = 6


def crop_and_resize(
    image: Pixels,
    top: int,
    left: int,
    height: int,
    width: int,
    size: int,
    interpolation: Interpolation = "bicubic",
) -> Pixels:
    """Cuts a box out and resizes it to a square, antialiased.

    Args:
        image: (H, W, 3).
        top: first row of the box.
        left: first column.
        height: rows of the box.
        width: columns.
        size: side of the result, in pixels.
        interpolation: ``bicubic``, near Pillow's and five times as fast; ``bilinear``, by Pillow:
            torchvision's to the bit, as evaluations are published.

    Returns:
        (size, size, 3), contiguous.
    """
    crop = np.ascontiguousarray(image[top : top + height, left : left + width])
    if crop.shape[:2] == (size, size):
        return crop.copy() if crop is image else crop
    if interpolation == "bilinear":
        return np.array(Image.fromarray(crop).resize((size, size), Image.Resampling.BILINEAR))
    resized = F.interpolate(
        torch.from_numpy(crop)[None].permute(0, 3, 1, 2),
        (size, size),
        mode="bicubic",
        antialias=True,
        align_corners=False,
    )
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def flip_horizontally(image: Pixels) -> Pixels:
    """Mirrors left and right."""
    return _image(cv2.flip(image, 1))


def adjust_brightness(image: Pixels, factor: float) -> Pixels:
    """``factor * pixel``, cut to 0..255."""
    return _affine(image, np.eye(3) * factor, 0.0)


def adjust_contrast(image: Pixels, factor: float) -> Pixels:
    """Blends with the mean of the grey image: ``factor * pixel + (1 - factor) * mean``."""
    mean = int(np.dot(cv2.mean(image)[:3], _LUMA) + 0.5)  # a whole number, as Pillow takes it
    return _affine(image, np.eye(3) * factor, (1 - factor) * mean)


def adjust_saturation(image: Pixels, factor: float) -> Pixels:
    """Blends with the grey image: ``factor * pixel + (1 - factor) * grey``."""
    return _affine(image, np.eye(3) * factor + (1 - factor) * np.array([_LUMA] * 3), 0.0)


def adjust_hue(image: Pixels, shift: float) -> Pixels:
    """Turns the colour circle.

    Args:
        image: (H, W, 3).
        shift: share of the circle, -0.5 to 0.5; resolved to 1/256, as PIL does.
    """
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    turn = np.zeros((hsv.shape[1], 3), np.uint8)
    turn[:, 0] = int(shift * 255) % 256
    hsv += turn  # wraps
    return _image(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, dst=hsv))


def to_grey(image: Pixels) -> Pixels:
    """The luminance in all three channels."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return _image(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB))


def gaussian_blur(image: Pixels, sigma: float) -> Pixels:
    """Blurs with a Gaussian, reflecting at the borders.

    Args:
        image: (H, W, 3).
        sigma: standard deviation in pixels, up to 2. The kernel reaches three of them.
    """
    radius = min(_KERNEL_RADIUS_MAX, max(1, math.ceil(3 * sigma)))
    kernel = cv2.getGaussianKernel(2 * radius + 1, sigma, cv2.CV_32F)
    return _image(cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101))


def solarise(image: Pixels) -> Pixels:
    """Inverts what is 128 or more: ``255 - v`` is the smaller of the two exactly there."""
    return np.minimum(image, ~image)


def _affine(image: Pixels, matrix: npt.NDArray[Any], offset: float) -> Pixels:
    """``matrix @ pixel + offset``, the fraction cut off, within 0..255."""
    column = np.full((3, 1), offset - _CUT)
    return _image(cv2.transform(image, np.hstack([matrix, column]).astype(np.float32)))


def _image(array: Any) -> Pixels:
    """OpenCV's result, whose type its stubs leave open."""
    return array  # type: ignore[no-any-return]  # its stubs say more types than it gives
