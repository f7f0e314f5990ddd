"""Image files of any kind as uint8 RGB, or a clear error.

All stages open images here: pretraining, classification, fine-tuning, its evaluation, the demo, the
doctor, contact sheets and the report. A file is checked before it is decoded: only formats of a
fixed list are accepted, none of which starts another program (as PostScript does), and size and
memory are bounded according to the header.

Images are turned upright according to their orientation tag, as viewers, annotators and Detectron2
do. Only pretraining and classification can ignore the tag (``data.exif_orientation=false``), as
torchvision's reader and so published protocols do.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from intl_transfer.data.augment import Pixels
from intl_transfer.errors import UserError

#: Accepted formats, by Pillow's names. Each is decoded by a library within this process; JPEG
#: includes MPO (several images in one file, as of some cameras), PPM includes PBM and PGM.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "JPEG2000")
#: Extensions of such files, in lower case.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".gif", ".bmp", ".ppm", ".pgm", ".pbm", ".tif", ".tiff", ".webp"),
    *(".jp2", ".j2k", ".jpe", ".jfif", ".mpo"),
)
#: An image of more pixels is refused: it would fill a worker's memory. ImageNet's largest has 38
#: million.
MAX_PIXELS = 100_000_000
#: Bytes that decoding may need, according to the header.
MAX_MEMORY = 1 << 30

_JPEG_START = b"\xff\xd8\xff"
# Markers of a JPEG (ITU-T T.81, B.1.1.3): of segments in which tags can be, and of the first scan.
_APP1, _START_OF_SCAN = 0xE1, 0xDA
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_STRIP = 1 << 22  # pixels converted at a time
_ORIENTATION = 0x0112  # EXIF's tag
# TIFF 6.0's tags, and the value of the second where 0 is white. Pillow inverts 8-bit pixels itself.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
# Memory of a decoder in addition to its result, bytes per pixel: coefficients of a progressive
# JPEG, two canvases of a WebP, JPEG 2000's 32-bit components.
_DECODER = {"JPEG": 8, "MPO": 8, "WEBP": 8, "JPEG2000": 16}
_JPEG_BYTES = 4 + _DECODER["JPEG"] + 3  # a pixel, as for any other image
_DAMAGE = (
    OSError,
    UnidentifiedImageError,
    SyntaxError,
    ValueError,
    EOFError,
    MemoryError,
    OverflowError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    RuntimeError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class UnreadableImageError(UserError):
    """An image that cannot be decoded; the message names it and says why."""


@dataclass(frozen=True)
class ImageHeader:
    """Properties of an image before it is decoded.

    Attributes:
        width: in pixels, turned upright as its orientation tag says.
        height: likewise.
        turned: whether that tag exchanges width and height.
    """

    width: int
    height: int
    turned: bool


def read_image(path: str | Path, upright: bool = True) -> Pixels:
    """Reads an image file as uint8 RGB, (H, W, 3).

    Args:
        path: the file.
        upright: as for :func:`decode_image`.

    Raises:
        UnreadableImageError: if the file cannot be opened or is not an intact image.
    """
    with _opened(path, buffering=0) as file:  # read once, completely
        data = file.read()
    return decode_image(data, str(path), upright)


def decode_image(data: bytes, name: str, upright: bool = True) -> Pixels:
    """Decodes an image file's content as uint8 RGB.

    Grayscale, palette, CMYK and 16-bit images become 8-bit RGB, transparency is dropped, and the
    first frame of an animation is used: all as in :class:`torchvision.datasets.ImageFolder`, except
    16-bit grayscale, which it saturates to white and of which the upper eight bits are taken here,
    whatever its values are.

    Args:
        data: the file's bytes.
        name: for the error message.
        upright: turn the image as its orientation tag says, once (EXIF 2.32, 4.6.5.1). False is
            torchvision's behavior, which ignores the tag (except for TIFF files, which Pillow turns
            while decoding).

    Returns:
        (H, W, 3), writable.

    Raises:
        UnreadableImageError: if it is not an image, is damaged or truncated, has over 100 million
            pixels, or would need over 1 GiB to decode; the last two are checked before decoding.
    """
    decoded = _decode_jpeg(data)
    if decoded is not None and not (upright and _may_be_tagged(data)):
        return decoded
    with _words_for_damage(name, empty=not data), _header(io.BytesIO(data), len(data)) as image:
        if decoded is not None:
            return _turned(decoded, _orientation(image))
        image.load()  # a TIFF is turned by this, and its tag removed: first this, then the tag
        tagged = _orientation(image) if upright else 1
        return _turned(_with_pillow(image), tagged)


def decode_cut_out(data: bytes, name: str) -> Pixels:
    """Decodes an image file's content with its transparency, uint8 RGBA.

    Args:
        data: the file's bytes.
        name: for the error message.

    Returns:
        (H, W, 4), writable; alpha is 255 everywhere if the file has none.

    Raises:
        UnreadableImageError: as for :func:`decode_image`.
    """
    with _words_for_damage(name, empty=not data), _header(io.BytesIO(data), len(data)) as image:
        return np.array(image.convert("RGBA"))


def scaled(
    image: Image.Image,
    size: tuple[int, int],
    how: Image.Resampling,
    box: tuple[int, int, int, int] | None = None,
) -> Pixels:
    """Scales by Pillow, columns before rows, so that every version of it gives the same pixels.

    It scales one axis after the other and rounds between, and since 13 the shape decides which is
    first: levels of a small, high image differ by up to 12 from those of earlier versions.

    Args:
        image: of 8 bits; colors are weighted by alpha, so that transparent pixels do not bleed.
        size: of the result, (width, height).
        how: the filter.
        box: the part that is scaled, (left, top, right, bottom); pixels around it are seen by the
            filter, as in ``Image.resize``.

    Returns:
        (height, width) and channels, uint8.
    """
    width, height = size
    left, top, right, bottom = box or (0, 0, *image.size)
    weighted = image.convert("RGBa") if image.mode == "RGBA" else image
    narrow = weighted.resize((width, image.height), how, box=(left, 0, right, image.height))
    result = narrow.resize((width, height), how, box=(0, top, width, bottom))
    return np.asarray(result.convert(image.mode))


def read_header(path: str | Path) -> ImageHeader:
    """Inspects an image file without decoding it (except the few whose header is insufficient).

    Raises:
        UnreadableImageError: if it cannot be opened, has an unknown format, or is too large.
    """
    with (
        _opened(path) as file,
        _words_for_damage(str(path), empty=not os.fstat(file.fileno()).st_size),
        _header(file, os.fstat(file.fileno()).st_size) as image,
    ):
        # Tags may follow a PNG's pixels, and a TIFF's size changes by them.
        tagged = image.format == "TIFF" and _orientation(image) >= 5
        if tagged or (image.format == "PNG" and _has_late_tags(file)):
            image.load()
        swapped = _orientation(image) >= 5
        width, height = image.size[::-1] if swapped else image.size
        return ImageHeader(width, height, swapped or tagged)


@contextlib.contextmanager
def _opened(path: str | Path, buffering: int = -1) -> Iterator[BinaryIO]:
    """A regular file that is small enough to be read."""
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # reading a pipe could block forever
            raise UnreadableImageError(f"{path} cannot be read (not a regular file)")
        with open(path, "rb", buffering) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_MEMORY:
                raise UnreadableImageError(
                    f"{path} cannot be read as an image ({size:,} bytes, over the limit of "
                    f"{MAX_MEMORY:,})"
                )
            yield file
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UnreadableImageError(f"{path} cannot be read ({reason})") from None


@contextlib.contextmanager
def _words_for_damage(name: str, empty: bool) -> Iterator[None]:
    try:
        with contextlib.ExitStack() as stack:
            if threading.current_thread() is threading.main_thread():  # filters are the process's
                stack.enter_context(warnings.catch_warnings())
                # Pillow's limit is below ours; its warnings on palettes and tags are irrelevant.
                warnings.simplefilter("ignore")
            yield
    except _DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = reason.replace(f" {io.BytesIO.__name__}", "")
        if isinstance(error, UnidentifiedImageError):
            reason = f"none of the formats {', '.join(FORMATS)}"
        if empty:
            reason = "the file is empty"
        raise UnreadableImageError(f"{name} cannot be read as an image ({reason})") from None


@contextlib.contextmanager
def _header(file: BinaryIO, size: int) -> Iterator[Image.Image]:
    """The image before it is decoded, within all bounds.

    Raises:
        ValueError: if it is not.
    """
    with Image.open(file, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width} x {height} pixels, over the limit of {MAX_PIXELS:,}")
        if image.mode == "F":
            raise ValueError("floating-point pixels, whose range is unknown")
        needed = width * height * _bytes_a_pixel(image) + size
        if needed > MAX_MEMORY:
            raise ValueError(
                f"{width} x {height} pixels of {image.format}, {image.mode}: decoding needs about "
                f"{needed / 2**20:,.0f} MiB, over the limit of {MAX_MEMORY >> 20:,} MiB"
            )
        yield image


def _bytes_a_pixel(image: Image.Image) -> int:
    """The memory of Pillow, the decoder and the result together."""
    held = {"1": 1, "L": 1, "P": 1, **dict.fromkeys(_SIXTEEN_BIT, 2)}.get(image.mode, 4)
    decoder = _DECODER.get(image.format or "", 0)
    if isinstance(image, TiffImageFile):  # a strip, which may be all of it, as it is stored
        # A TIFF has them.
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, (1,))
        decoder = -(-sum(bits) // 8)
    return held + decoder + 3


def _has_late_tags(file: BinaryIO) -> bool:
    """Whether a PNG has chunks after its pixels that may hold an orientation."""
    file.seek(8)
    pixels = False
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if pixels and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
            return True
        pixels = pixels or kind == b"IDAT"
        file.seek(length + 4, os.SEEK_CUR)
    return False


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 (upright) to 8; 1 if there is none or it is unreadable."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # any error of Pillow on a damaged tag: the pixels are still good
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _may_be_tagged(data: bytes) -> bool:
    """Whether a JPEG has a segment in which tags can be, or its segments cannot be followed."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != _APP1:
        if data[at + 1] == _START_OF_SCAN:
            return False
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return True


def _turned(pixels: Pixels, orientation: int) -> Pixels:
    """Turned upright (EXIF 2.32, 4.6.5.1: which row and column of the scene come first)."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _decode_jpeg(data: bytes) -> Pixels | None:
    """Decodes a JPEG by libjpeg-turbo directly: Pillow's pixels in half the time; or None.

    None leaves the file, and the error message, to Pillow: if it is not a JPEG or an unusual one
    (CMYK), has too many pixels, or the decoder warned of anything, such as truncation.
    """
    if not data.startswith(_JPEG_START):
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        pixels = int(height) * int(width)
        usual = space in ("YCbCr", "RGB", "Gray") and pixels <= MAX_PIXELS
        if not usual or pixels * _JPEG_BYTES + len(data) > MAX_MEMORY:
            return None
        return cast(Pixels, simplejpeg.decode_jpeg(data, "RGB"))
    except ValueError:
        return None


def _with_pillow(image: Image.Image) -> Pixels:
    """A loaded image's pixels; strip by strip, so that no second copy of a large one is held."""
    deep = image.mode in _SIXTEEN_BIT or image.mode == "I"
    if not deep and image.width * image.height <= _STRIP:
        return np.array(image.convert("RGB"))  # a copy: torch wants writable memory
    bits, is_inverted = _depth(image) if deep else (8, False)
    result = np.empty((image.height, image.width, 3), np.uint8)
    for top, strip in _strips(image):
        if not deep:
            result[top : top + strip.height] = np.asarray(strip.convert("RGB"))
            continue
        values = np.asarray(strip)
        # 32-bit "I" is how Pillow opens some 16-bit files.
        values = values.clip(0, 65535) if image.mode == "I" else values
        levels = (values >> (bits - 8)).astype(np.uint8)
        result[top : top + strip.height] = (255 - levels if is_inverted else levels)[..., None]
    return result


def _depth(image: Image.Image) -> tuple[int, bool]:
    """The bits of deep pixels, and whether 0 is white, as the header says.

    By their values, images of one camera would be scaled differently. Pillow scales the pixels of
    other formats than TIFF to 16 bits; 32-bit ones are taken as 16-bit ones.
    """
    if not isinstance(image, TiffImageFile):
        return 16, False
    tags = image.tag_v2
    bits: int = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    return (bits if 8 < bits < 16 else 16), tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    rows = max(1, _STRIP // max(1, image.width))
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))
