from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from intl_transfer.data.images import UnreadableImageError, decode_image, read_image

PHOTOGRAPH = Image.fromarray(skimage.data.astronaut()[:120, :160])


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize(
    "data",
    [
        encode(PHOTOGRAPH, "JPEG"),
        encode(PHOTOGRAPH, "JPEG", progressive=True, subsampling=0),
        encode(PHOTOGRAPH, "JPEG") + b"\0" * 9,
        encode(PHOTOGRAPH, "JPEG") + b"\0" * 999,
        encode(PHOTOGRAPH.convert("L"), "JPEG"),
        encode(PHOTOGRAPH.convert("CMYK"), "JPEG"),
        encode(PHOTOGRAPH.resize((1, 1)), "JPEG"),
        encode(PHOTOGRAPH, "PNG"),
        encode(PHOTOGRAPH.convert("P"), "PNG", transparency=3),
        encode(PHOTOGRAPH.convert("LA"), "PNG"),
        encode(PHOTOGRAPH.convert("RGBA"), "PNG"),
        encode(PHOTOGRAPH.convert("1"), "PNG"),
        encode(PHOTOGRAPH, "WEBP"),
        encode(PHOTOGRAPH, "TIFF"),
        encode(PHOTOGRAPH.convert("P"), "GIF", save_all=True, append_images=[PHOTOGRAPH] * 2),
    ],
    ids=[
        "jpeg",
        "progressive",
        "trailing-bytes",
        "many-trailing-bytes",
        "grey-jpeg",
        "cmyk-jpeg",
        "one-pixel",
        "png",
        "palette",
        "grey-alpha",
        "alpha",
        "bits",
        "webp",
        "tiff",
        "animated",
    ],
)
def test_every_kind_is_what_pillow_makes_of_it(data):
    image = decode_image(data, "x")
    assert image.flags.writeable
    assert np.array_equal(image, pillow(data))


def test_orientation_tags_are_left_aside_as_torchvision_does():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(PHOTOGRAPH, "JPEG", exif=exif)
    assert decode_image(data, "x").shape == (120, 160, 3)


def test_sixteen_bits_keep_their_shades():
    values = np.linspace(0, 65535, 6400).reshape(80, 80).astype(np.uint16)
    image = decode_image(encode(Image.fromarray(values), "PNG"), "x")
    assert np.abs(image[..., 0].astype(int) - (values >> 8)).max() == 0
    assert (image[..., 0] == image[..., 2]).all()


def png(width, height, *chunks):
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *(chunk(*c) for c in chunks), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


JPEG = encode(PHOTOGRAPH, "JPEG")
BAD = {
    "empty": (b"", "the file is empty"),
    "text": (b"no image at all" * 9, "no image format that is known"),
    "jpeg-half": (JPEG[: len(JPEG) // 2], "truncated"),
    "jpeg-head": (JPEG[:40], "Truncated|truncated|no image format"),
    "jpeg-last-byte": (JPEG[:-1], "truncated"),
    "png-half": (encode(PHOTOGRAPH, "PNG")[:9000], "truncated"),
    "huge": (png(50_000, 50_000, (b"IDAT", zlib.compress(b"\0" * 999))), "bomb|over the limit"),
    "large": (png(11_000, 10_000, (b"IDAT", zlib.compress(b"\0" * 999))), "over the limit"),
    "text-bomb": (
        png(5, 5, (b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 90_000_000))),
        "too large",
    ),
    "float": (encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "floating-point"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_what_is_no_whole_image_is_named(name):
    data, reason = BAD[name]
    with pytest.raises(UnreadableImageError, match=rf"some\.jpg cannot be read .*({reason})"):
        decode_image(data, "some.jpg")


@settings(max_examples=150, deadline=None)
@given(
    which=st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP"]),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=12),
    cut=st.floats(0.1, 1),
)
def test_damage_gives_an_image_or_the_one_error(which, changes, cut):
    data = bytearray(encode(PHOTOGRAPH.resize((40, 30)), which))
    for place, value in changes:
        data[int(place * len(data))] = value
    try:
        image = decode_image(bytes(data[: int(cut * len(data))]), "x")
    except UnreadableImageError:
        return
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(UnreadableImageError, match=r"absent\.jpg cannot be read .No such file"):
        read_image(tmp_path / "absent.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(UnreadableImageError, match="Is a directory"):
        read_image(tmp_path / "folder.jpg")
    locked = tmp_path / "locked.jpg"
    locked.write_bytes(JPEG)
    locked.chmod(0)
    superuser = os.geteuid() == 0  # to whom permissions do not apply
    if superuser:
        os.seteuid(65534)
    try:
        with pytest.raises(UnreadableImageError, match="Permission denied"):
            read_image(locked)
    finally:
        if superuser:
            os.seteuid(0)
