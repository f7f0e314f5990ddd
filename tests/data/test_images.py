from __future__ import annotations

import hashlib
import io
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.datasets.folder import default_loader

from intl_transfer.data.images import (
    MAX_MEMORY,
    UnreadableImageError,
    decode_image,
    read_header,
    read_image,
    scaled,
)

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
        "gray-jpeg",
        "cmyk-jpeg",
        "one-pixel",
        "png",
        "palette",
        "gray-alpha",
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
    "text": (b"no image at all" * 9, "none of the formats JPEG, PNG"),
    "jpeg-half": (JPEG[: len(JPEG) // 2], "truncated"),
    "jpeg-head": (JPEG[:40], "Truncated|truncated|none of the formats"),
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


@settings(max_examples=80, deadline=None)
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    mode=st.sampled_from(["RGB", "L"]),
    options=st.fixed_dictionaries(
        {
            "quality": st.integers(1, 100),
            "subsampling": st.integers(0, 2),
            "progressive": st.booleans(),
            "keep_rgb": st.booleans(),
            "restart_marker_blocks": st.integers(0, 3),
            "comment": st.sampled_from([b"", b"Exif\0\0 is no tag here"]),
        }
    ),
    upright=st.booleans(),
)
def test_any_jpeg_is_what_pillow_makes_of_it(size, mode, options, upright):
    if options["keep_rgb"]:  # not converted, so that no channel can be halved
        options["subsampling"] = 0
    data = encode(PHOTOGRAPH.resize(size).convert(mode), "JPEG", **options)
    image = decode_image(data, "x", upright)
    assert image.flags.writeable
    assert np.array_equal(image, pillow(data))


@settings(max_examples=150, deadline=None)
@given(
    progressive=st.booleans(),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_a_damaged_jpeg_is_pillows_image_or_refused_as_by_pillow(progressive, changes):
    data = bytearray(encode(PHOTOGRAPH.resize((40, 30)), "JPEG", progressive=progressive))
    for place, value in changes:
        data[int(place * len(data))] = value
    try:
        expected = pillow(bytes(data))
    except Exception:
        return  # others may read it all the same
    assert np.array_equal(decode_image(bytes(data), "x", upright=False), expected)


def with_segment(data, marker, content):
    """A JPEG with one more segment, as the first."""
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + data[2:]


XMP = (
    b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF xmlns:rdf='http://"
)
XMP += b"www.w3.org/1999/02/22-rdf-syntax-ns#'><rdf:Description xmlns:tiff='http://ns.adobe.com/tiff/1.0/'"
XMP += b' tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'


@pytest.mark.parametrize(
    "data",
    [
        with_segment(JPEG, 0xE1, XMP),
        with_segment(with_segment(JPEG, 0xE1, XMP), 0xED, b"Photoshop 3.0\0\xff\xda\0\2"),
        # Fill bytes before a marker are allowed (T.81, B.1.1.2).
        JPEG[:2] + b"\xff\xff" + with_segment(JPEG, 0xE1, XMP)[2:],
    ],
    ids=["xmp", "after-another-segment", "fill-bytes"],
)
def test_tags_are_found_wherever_a_jpeg_has_them(data):
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert expected.shape == (160, 120, 3)
    assert np.array_equal(decode_image(data, "x"), expected)
    assert np.array_equal(decode_image(data, "x", upright=False), pillow(data))


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


def tagged(kind, orientation, image=PHOTOGRAPH):
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    lossless = {"lossless": True} if kind == "WEBP" else lossless
    return encode(image, kind, exif=exif, **lossless)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_once(tmp_path, kind, orientation):
    """As Pillow and OpenCV turn it, or left as torchvision's reader leaves it."""
    file = tmp_path / "x.img"
    file.write_bytes(tagged(kind, orientation))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)).convert("RGB"))
    upright = read_image(file)
    assert np.array_equal(upright, expected)
    if kind == "JPEG":  # whose tags OpenCV reads
        assert np.array_equal(upright, cv2.imread(str(file), cv2.IMREAD_COLOR_RGB))
    left = read_image(file, upright=False)
    assert np.array_equal(left, np.asarray(default_loader(str(file))))
    assert left.flags.writeable
    header = read_header(file)
    assert (header.height, header.width) == expected.shape[:2]
    assert header.turned == (orientation >= 5)
    assert upright.flags.writeable
    assert upright.flags.c_contiguous


def test_a_png_may_tell_how_it_is_turned_after_its_pixels(tmp_path):
    data = tagged("PNG", 6)
    start = data.index(b"eXIf") - 4
    length = 12 + struct.unpack(">I", data[start : start + 4])[0]
    moved = data[:start] + data[start + length : -12] + data[start : start + length] + data[-12:]
    (tmp_path / "late.png").write_bytes(moved)
    assert read_image(tmp_path / "late.png").shape == (160, 120, 3)
    header = read_header(tmp_path / "late.png")
    assert (header.width, header.height) == (120, 160)


def test_damaged_tags_leave_an_image_as_it_is():
    data = bytearray(tagged("JPEG", 6))
    data[data.index(b"Exif") + 6 : data.index(b"Exif") + 10] = b"XXXX"
    assert decode_image(bytes(data), "x").shape == (120, 160, 3)


DEEP = (np.arange(40 * 60, dtype=np.uint32).reshape(40, 60) * 27).astype(np.uint16)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.png", lambda file: cv2.imwrite(str(file), DEEP)),
        ("a.tif", lambda file: tifffile.imwrite(file, DEEP)),
        ("big-endian.tif", lambda file: tifffile.imwrite(file, DEEP, byteorder=">")),
        ("deflated.tif", lambda file: tifffile.imwrite(file, DEEP, compression="zlib")),
        ("32-bit.tif", lambda file: tifffile.imwrite(file, DEEP.astype(np.int32))),
        ("a.pgm", lambda file: cv2.imwrite(str(file), DEEP)),
        ("rgb.png", lambda file: cv2.imwrite(str(file), np.repeat(DEEP[..., None], 3, 2))),
        ("rgb.tif", lambda file: tifffile.imwrite(file, np.repeat(DEEP[..., None], 3, 2))),
    ],
)
def test_sixteen_bits_of_any_file_keep_their_upper_eight(tmp_path, name, write):
    write(tmp_path / name)
    image = read_image(tmp_path / name)
    assert np.array_equal(image, np.repeat((DEEP >> 8).astype(np.uint8)[..., None], 3, 2))


@pytest.mark.parametrize("values", [DEEP, (DEEP >> 8).astype(np.uint8)], ids=["16", "8"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_white_is_what_a_tiff_says(tmp_path, values, photometric):
    """As OpenCV reads it."""
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, values, photometric=photometric)
    levels = read_image(file)[..., 0]
    assert np.array_equal(levels, cv2.imread(str(file), cv2.IMREAD_GRAYSCALE))
    assert (levels[0, 0] > levels[-1, -1]) == (photometric == "miniswhite")


@pytest.mark.parametrize("most", [65535, 4095, 256, 255])
def test_exposures_of_one_camera_are_scaled_alike(tmp_path, most):
    values = (DEEP.astype(np.int64) * most // DEEP.max()).astype(np.uint16)
    for name in ("a.png", "a.tif"):
        cv2.imwrite(str(tmp_path / name), values)
        assert np.array_equal(read_image(tmp_path / name)[..., 0], values >> 8)


def test_twelve_bits_are_scaled_by_their_own_range(tmp_path):
    # Two pixels in three bytes, which no library here writes: an uncompressed file by hand.
    values = (DEEP >> 4).astype(np.uint16).ravel()
    packed = bytearray()
    for first, second in values.reshape(-1, 2).tolist():
        packed += bytes([first >> 4, (first & 15) << 4 | second >> 8, second & 255])
    entries = [
        (256, 60),
        (257, 40),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 40),
        (279, len(packed)),
    ]
    table = struct.pack("<H", len(entries))
    for tag, value in entries:
        table += struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value)
    start = 8 + len(packed)
    data = b"II*\0" + struct.pack("<I", start) + bytes(packed) + table + b"\0" * 4
    (tmp_path / "twelve.tif").write_bytes(data)
    image = read_image(tmp_path / "twelve.tif")
    assert np.array_equal(image[..., 0], (DEEP >> 8).astype(np.uint8))


def test_large_images_are_converted_strip_by_strip_to_the_same(monkeypatch):
    from intl_transfer.data import images

    kinds = [
        encode(PHOTOGRAPH.convert("P"), "PNG", transparency=3),
        encode(PHOTOGRAPH.convert("CMYK"), "TIFF"),
        encode(PHOTOGRAPH.convert("LA"), "PNG"),
        encode(PHOTOGRAPH.convert("1"), "PNG"),
        encode(Image.fromarray(DEEP), "PNG"),
    ]
    whole = [decode_image(data, "x") for data in kinds]
    monkeypatch.setattr(images, "_STRIP", 999)
    for data, expected in zip(kinds, whole, strict=True):
        assert np.array_equal(decode_image(data, "x"), expected)


_PEAK = """
import resource, sys
from intl_transfer.data.images import read_image
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(read_image(sys.argv[1]).shape, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_small_file_of_many_pixels_needs_what_was_counted(tmp_path):
    """194 KB that hold 10,000 x 10,000 16-bit pixels: 2 bytes each as decoded, 3 as RGB."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(9)
    rows = packer.compress(b"\0" * 20_001 * 10_000) + packer.flush()
    head = struct.pack(">IIBBBBB", 10_000, 10_000, 16, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    file = tmp_path / "large.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert file.stat().st_size < 200_000
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(file)], capture_output=True, text=True, check=True
    )
    shape, kilobytes = done.stdout.rsplit(" ", 1)
    assert shape == "(10000, 10000, 3)"
    assert int(kilobytes) * 1024 < 100_000_000 * 6


def test_memory_is_bounded_before_decoding(tmp_path):
    import tracemalloc

    # 8 channels of 16 bits: 16 bytes a pixel as stored; the file holds nothing but its header.
    side = 9_000
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((8, 8, 4), np.uint16), photometric="rgb")
    data = bytearray((tmp_path / "x.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        for tag in ("ImageWidth", "ImageLength"):
            place = file.pages[0].tags[tag].valueoffset
            data[place : place + 4] = struct.pack("<I", side)
    tracemalloc.start()
    with pytest.raises(UnreadableImageError, match=r"needs about 1,\d{3} MiB, over the limit"):
        decode_image(bytes(data), "x.tif")
    assert tracemalloc.get_traced_memory()[1] < MAX_MEMORY / 100
    tracemalloc.stop()


def test_no_file_starts_another_program(tmp_path, monkeypatch):
    """PostScript under any name: Pillow would hand it to Ghostscript."""
    called = tmp_path / "called"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {called}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    binary = b"\xc5\xd0\xd3\xc6" + struct.pack("<IIIIIIH", 30, len(page), 0, 0, 0, 0, 0) + page
    for number, data in enumerate((page, binary)):
        file = tmp_path / f"{number}.jpg"
        file.write_bytes(data)
        for read in (read_image, read_header):
            with pytest.raises(UnreadableImageError, match=r"none of the formats JPEG, PNG"):
                read(file)
    assert not called.exists()


def test_images_are_opened_in_one_place():
    root = Path(__file__).resolve().parents[2]
    opener = re.compile(r"Image\.open\(|cv2\.im(read|decode)|utils\.read_image|plt\.imread")
    folders = ("intl_transfer", "detection", "pretrain", "slurm", "scripts")
    found = {
        str(file.relative_to(root))
        for folder in folders
        for file in (root / folder).rglob("*.py")
        if opener.search(file.read_text())
    }
    assert found == {"intl_transfer/data/images.py"}


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for read in (read_image, read_header):
        with pytest.raises(UnreadableImageError, match="not a regular file"):
            read(tmp_path / "pipe.jpg")
    with pytest.raises(UnreadableImageError, match="cannot be read"):
        read_image("a\0b.jpg")
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(UnreadableImageError, match="the file is empty"):
        read_header(tmp_path / "empty.jpg")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 60),
    st.integers(2, 60),
    st.integers(1, 40),
    st.sampled_from(["L", "RGB", "RGBA"]),
)
def test_wide_images_are_scaled_as_by_one_call_of_pillow(height, more, side, mode):
    """Every version scales their columns first."""
    rng = np.random.RandomState(height * 61 + more)
    sequence = rng.randint(0, 256, (height, height + more, 4)).astype(np.uint8)
    image = Image.fromarray(sequence).convert(mode)
    for how in (Image.Resampling.BICUBIC, Image.Resampling.BOX):
        for box in (None, (1, 0, height + 1, height)):
            expected = np.asarray(image.resize((side, side), how, box=box))
            np.testing.assert_array_equal(scaled(image, (side, side), how, box), expected)


def test_high_images_are_scaled_alike_by_every_version_of_pillow():
    """The hash is of one call of Pillow 12.3.0; 13.0.0 scales rows first, to other levels."""
    sequence = np.arange(300 * 40 * 4, dtype=np.uint64) ** 3 // 7 % 256
    image = Image.fromarray(sequence.astype(np.uint8).reshape(300, 40, 4))
    found = scaled(image, (30, 20), Image.Resampling.BICUBIC, (1, 50, 38, 299))
    digest = "f4736d882e27438ad2fb4c2d0c216f5a8b8a59dc0a8f457d3db875210416cfd2"
    assert hashlib.sha256(found.tobytes()).hexdigest() == digest
