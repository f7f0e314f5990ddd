"""Image files of any kind as uint8 RGB, or a clear word on why not."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from intl_transfer.data.augment import Pixels
from intl_transfer.errors import UserError

#: An image of more pixels is refused: it would fill a worker's memory. ImageNet's largest has 38
#: million.
MAX_PIXELS = 100_000_000

_JPEG_END = b"\xff\xd9"
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_DAMAGE = (
    OSError,
    UnidentifiedImageError,
    SyntaxError,
    ValueError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    cv2.error,
)


class UnreadableImageError(UserError):
    """An image that cannot be decoded; the message names it and says why."""


def read_image(path: str | Path) -> Pixels:
    """Reads an image file as uint8 RGB, (H, W, 3).

    Raises:
        UnreadableImageError: if the file cannot be opened or is not a whole image.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UnreadableImageError(f"{path} cannot be read ({error.strerror or error})") from None
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str) -> Pixels:
    """Decodes an image file's content as uint8 RGB.

    Grey, palette, CMYK and 16-bit images become 8-bit RGB, transparency is dropped, of an animation
    the first frame counts, and orientation tags are left aside: all as
    :class:`torchvision.datasets.ImageFolder` has it, but for 16-bit images, which it cuts to white.

    Args:
        data: the file's bytes.
        name: for the error message.

    Returns:
        (H, W, 3), writable.

    Raises:
        UnreadableImageError: if it is no image, is damaged or cut off, or has over 100 million
            pixels.
    """
    try:
        with warnings.catch_warnings():
            # Pillow's own limit is below ours; its remarks on palettes and tags are not news.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise ValueError(f"{width} x {height} pixels, over the limit of {MAX_PIXELS:,}")
                if image.format == "JPEG" and image.mode in ("RGB", "L"):
                    pixels = _decode_jpeg(data, (height, width))
                    if pixels is not None:
                        return pixels
                return _with_pillow(image)
    except _DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = reason.replace(f" {io.BytesIO.__name__}", "")
        if isinstance(error, UnidentifiedImageError):
            reason = "no image format that is known" if data else "the file is empty"
        raise UnreadableImageError(f"{name} cannot be read as an image ({reason})") from None


def _decode_jpeg(data: bytes, size: tuple[int, int]) -> Pixels | None:
    """OpenCV's decoder: the same library, the same pixels, in 60 % of the time; or None.

    It fills what a cut-off file lacks with grey and says nothing: files that do not end as a JPEG
    ends are left to Pillow, which refuses them.
    """
    if _JPEG_END not in data[-64:]:
        return None
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None or pixels.shape[:2] != size:
        return None
    return cast(Pixels, pixels)


def _with_pillow(image: Image.Image) -> Pixels:
    if image.mode in _SIXTEEN_BIT or image.mode == "I":
        values = np.asarray(image).astype(np.int64)
        # 32-bit "I" is how Pillow opens some 16-bit files.
        grey = (
            values.clip(0, 65535) >> 8 if values.max(initial=0) > 255 else values.clip(0)
        ).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    return np.array(image.convert("RGB"))  # a copy: torch wants writable memory
