"""Augmentations of uint8 images (H, W, 3), equal to torchvision's up to rounding.

The resize is torch's own antialiased bicubic, on bytes, or Pillow's bilinear; color and blur are
OpenCV's. No float images are created. Nothing here is random: :mod:`intl_transfer.data.views` draws
the parameters.

Every operation writes into ``out`` if given, an array of the result's shape that may be the image
itself (in place, with the same result); otherwise into a new array.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Interpolation = Literal["bicubic", "bilinear"]

# ITU-R 601, as PIL and torchvision weigh red, green and blue.
_LUMA = (0.299, 0.587, 0.114)
# torchvision truncates, OpenCV rounds half to even; an offset of just under a half makes them
# agree.
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
    out: Pixels | None = None,
) -> Pixels:
    """Crops a box and resizes it to a square, with antialiasing.

    Args:
        image: (H, W, 3).
        top: first row of the box.
        left: first column.
        height: rows of the box.
        width: columns.
        size: side of the result, in pixels.
        interpolation: ``bicubic``, close to Pillow's and five times as fast; ``bilinear``, by
            Pillow: bit-identical to torchvision's, as in published evaluations.
        out: (size, size, 3), for the result; must not overlap the image.

    Returns:
        (size, size, 3), contiguous.
    """
    crop = np.ascontiguousarray(image[top : top + height, left : left + width])
    if out is None:
        out = np.empty((size, size, 3), np.uint8)
    if height == width == size:
        np.copyto(out, crop)
    elif interpolation == "bilinear":
        resized = Image.fromarray(crop).resize((size, size), Image.Resampling.BILINEAR)
        np.copyto(out, np.asarray(resized))
    else:
        _bicubic(torch.from_numpy(crop), torch.from_numpy(out))
    return out


def flip_horizontally(image: Pixels, out: Pixels | None = None) -> Pixels:
    """Mirrors left and right."""
    return _image(cv2.flip(image, 1, dst=out))


def adjust_brightness(image: Pixels, factor: float, out: Pixels | None = None) -> Pixels:
    """``factor * pixel``, clipped to 0..255."""
    return _affine(image, factor, 0.0, 0.0, out)


def adjust_contrast(image: Pixels, factor: float, out: Pixels | None = None) -> Pixels:
    """Blends with the mean of the gray image: ``factor * pixel + (1 - factor) * mean``."""
    red, green, blue, _ = cv2.mean(image)
    mean = int(red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2] + 0.5)  # an integer, as Pillow's
    return _affine(image, factor, 0.0, (1 - factor) * mean, out)


def adjust_saturation(image: Pixels, factor: float, out: Pixels | None = None) -> Pixels:
    """Blends with the gray image: ``factor * pixel + (1 - factor) * gray``."""
    return _affine(image, factor, 1 - factor, 0.0, out)


def adjust_hue(image: Pixels, shift: float, out: Pixels | None = None) -> Pixels:
    """Shifts the hue.

    Args:
        image: (H, W, 3).
        shift: fraction of the color circle, -0.5 to 0.5; resolved to 1/256, as PIL does.
        out: for the result.
    """
    hsv = _image(cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL, dst=out))
    turn = np.zeros((hsv.shape[1], 3), np.uint8)
    turn[:, 0] = int(shift * 255) % 256
    hsv += turn  # wraps
    return _image(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, dst=hsv))


def to_gray(image: Pixels, out: Pixels | None = None) -> Pixels:
    """The luminance in all three channels."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return _image(cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB, dst=out))


def gaussian_blur(image: Pixels, sigma: float, out: Pixels | None = None) -> Pixels:
    """Blurs with a Gaussian, reflecting at the borders.

    Args:
        image: (H, W, 3).
        sigma: standard deviation in pixels, up to 2. The kernel reaches three of them.
        out: for the result.
    """
    radius = min(_KERNEL_RADIUS_MAX, max(1, math.ceil(3 * sigma)))
    kernel = cv2.getGaussianKernel(2 * radius + 1, sigma, cv2.CV_32F)
    blurred = cv2.sepFilter2D(image, -1, kernel, kernel, out, borderType=cv2.BORDER_REFLECT_101)
    return _image(blurred)


def solarize(image: Pixels, out: Pixels | None = None) -> Pixels:
    """Inverts what is 128 or more: ``255 - v`` is the smaller of the two exactly there."""
    return np.minimum(image, ~image, out=out)


def _bicubic(crop: torch.Tensor, out: torch.Tensor) -> None:
    """Resizes (H, W, 3) into (size, size, 3), antialiased.

    Calls the operator behind ``torch.nn.functional.interpolate``, which always allocates its result
    (a tenth of the time of a resize).
    """
    torch._C._nn._upsample_bicubic2d_aa(  # type: ignore[call-arg]  # its stub lacks `out`
        crop.permute(2, 0, 1).unsqueeze(0),
        out.shape[:2],
        False,  # align_corners
        None,
        None,
        out=out.permute(2, 0, 1).unsqueeze(0),
    )


def _affine(
    image: Pixels, factor: float, greyness: float, offset: float, out: Pixels | None
) -> Pixels:
    """``factor * pixel + greyness * luminance + offset``, truncated and clipped to 0..255."""
    red, green, blue = (greyness * weight for weight in _LUMA)
    cut = offset - _CUT
    matrix = (
        (red + factor, green, blue, cut),
        (red, green + factor, blue, cut),
        (red, green, blue + factor, cut),
    )
    return _image(cv2.transform(image, np.array(matrix, np.float32), dst=out))


def _image(array: Any) -> Pixels:
    """OpenCV's result, whose type its stubs leave open."""
    return array  # type: ignore[no-any-return]  # its stubs say more types than it gives
