"""The data set `photo_cutouts`: cut-out photographs on photographs, composed from a seed.

The cut-outs and backgrounds of the test images are never used for pretraining or training
(:mod:`intl_transfer.data.photo_sources`). As for `shapes`, every decision is made in integers from
a stream whose sequence numpy guarantees, images are scaled by Pillow's fixed-point filters, and
blending is integer arithmetic.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from intl_transfer.data.augment import Pixels
from intl_transfer.data.images import scaled
from intl_transfer.data.made_sets import MadeSet, SetSpec
from intl_transfer.data.photo_sources import CLASSES as FOLDERS
from intl_transfer.data.photo_sources import Library, Part, Source
from intl_transfer.data.scenes import Mask, Progress, Scene, SceneObject
from intl_transfer.data.shapes_drawing import multiplied, random_stream

# Incremented whenever the same spec would give other pixels or annotations.
VERSION = 2
CLASSES = tuple(FOLDERS)
#: Folder of the unlabeled images, and the file that lists the sources of each split.
UNLABELED, SOURCES = "unlabeled", "sources.json"

# Objects without a fixed upright orientation are rotated as well as mirrored.
_ANY_WAY_UP = ("fruit", "vegetable", "flower", "tool", "instrument")
# Minimum visible fraction and number of an object's pixels.
_LEAST_VISIBLE, _LEAST_PIXELS = 1 / 3, 40
_PART: dict[str, Part] = {"train": "train", "val": "test", UNLABELED: "train"}


@dataclass(frozen=True)
class PhotoSpec(SetSpec):
    """The spec; as :class:`SetSpec`, with unlabeled images.

    Attributes:
        unlabeled: number of images for pretraining, of training's cut-outs and backgrounds.
    """

    set_name: ClassVar[str] = "photo-cutouts"

    unlabeled: int = 4000

    @classmethod
    def counts(cls) -> list[str]:
        """Names of the fields that count images."""
        return [*super().counts(), "unlabeled"]


_share: Path | None = None


def use_share(folder: Path | None) -> None:
    """Sets the folder of the packages; None for ``/usr/share``."""
    global _share
    _share = folder
    library.cache_clear()


@functools.cache
def library() -> Library:
    """The sources of scenes.

    Raises:
        UserError: if a Debian package is missing, with the command to install it.
    """
    return Library(_share)


@dataclass(frozen=True)
class _Piece:
    """A cut-out to be pasted onto an image.

    Attributes:
        pixels: (h, w, 4).
        left: of its place, in pixels.
        top: likewise.
    """

    pixels: Pixels
    left: int
    top: int

    @property
    def place(self) -> tuple[slice, slice]:
        height, width = self.pixels.shape[:2]
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    @property
    def solid(self) -> Mask:
        """Pixels that are mostly opaque."""
        mask: Mask = self.pixels[..., 3] > 127
        return mask


def _sources(part: Part, label: int | None = None) -> list[Source]:
    """Cut-outs of a part, of one class or of all; the order is that of the library."""
    return [
        source
        for source in library().cut_outs
        if source.part == part and label in (None, source.label)
    ]


def _lit(pixels: Pixels, light: int, rng: np.random.RandomState) -> Pixels:
    """Random brightness and tint; alpha is unchanged."""
    factors = [light * int(rng.randint(236, 277)) >> 8 for _ in range(3)]
    lit = pixels.copy()
    lit[..., :3] = multiplied(pixels[..., :3], factors)
    return lit


def _background(part: Part, size: int, rng: np.random.RandomState) -> Pixels:
    """A square crop of one of the split's photographs, uint8 (size, size, 3)."""
    sources = [source for source in library().backgrounds if source.part == part]
    pixels = library().background(sources[int(rng.randint(len(sources)))])
    height, width = pixels.shape[:2]
    side = int(rng.randint(min(width, height) // 2, min(width, height) + 1))
    left, top = int(rng.randint(width - side + 1)), int(rng.randint(height - side + 1))
    image = Image.fromarray(pixels)
    box = (left, top, left + side, top + side)
    piece = scaled(image, (size, size), Image.Resampling.BICUBIC, box)
    if rng.randint(2):
        piece = piece[:, ::-1]
    return _lit(np.ascontiguousarray(piece), int(rng.randint(180, 300)), rng)


def _drawn(source: Source, extent: int, longest: int, rng: np.random.RandomState) -> Pixels:
    """A cut-out prepared for pasting: (h, w, 4).

    Args:
        source: which.
        extent: root of its box's area, in pixels.
        longest: maximum side.
        rng: for its orientation and brightness.
    """
    pixels = library().cut_out(source)
    if CLASSES[source.label] in _ANY_WAY_UP:
        pixels = np.rot90(pixels, int(rng.randint(4)))
    if rng.randint(2):
        pixels = pixels[:, ::-1]
    height, width = pixels.shape[:2]
    root = max(1, math.isqrt(height * width))
    divisor = max(root * longest, extent * max(height, width))  # whichever bound is tighter
    new_width, new_height = (max(4, n * extent * longest // divisor) for n in (width, height))
    image = Image.fromarray(np.ascontiguousarray(pixels))
    resized = scaled(image, (new_width, new_height), Image.Resampling.BICUBIC)
    return _lit(resized, int(rng.randint(200, 310)), rng)


def _somewhere(pixels: Pixels, size: int, rng: np.random.RandomState) -> _Piece:
    height, width = pixels.shape[:2]
    return _Piece(pixels, int(rng.randint(size - width + 1)), int(rng.randint(size - height + 1)))


def _blend(image: Pixels, piece: _Piece) -> None:
    """Pastes a cut-out onto an image, by its alpha."""
    alpha = piece.pixels[..., 3:].astype(np.int32)
    below = image[piece.place].astype(np.int32)
    above = piece.pixels[..., :3].astype(np.int32)
    image[piece.place] = ((above * alpha + below * (255 - alpha) + 127) // 255).astype(np.uint8)


def _object(size: int, source: Source, part: Part, rng: np.random.RandomState) -> Pixels:
    """One cut-out on a background, uint8 (size, size, 3)."""
    image = _background(part, size, rng)
    extent = int(rng.randint(size * 50 // 100, size * 80 // 100))
    _blend(image, _somewhere(_drawn(source, extent, size * 94 // 100, rng), size, rng))
    return image


def render_object(spec: PhotoSpec, split: str, index: int) -> tuple[Pixels, int]:
    """Composes one object-centric image.

    Args:
        spec: sizes and seed.
        split: ``"train"`` or ``"val"``.
        index: of the image; determines the class.

    Returns:
        uint8 (size, size, 3) in RGB, and the class index.
    """
    label = index % len(CLASSES)
    key = ("photo object", spec.seed, split, spec.object_size, index)
    rng = random_stream(VERSION, *key)
    sources = _sources(_PART[split], label)
    source = sources[int(rng.randint(len(sources)))]
    return _object(spec.object_size, source, _PART[split], rng), label


def render_unlabeled(spec: PhotoSpec, index: int) -> Pixels:
    """Composes one image for pretraining, from any of the training cut-outs.

    Args:
        spec: sizes and seed.
        index: of the image.

    Returns:
        uint8 (size, size, 3) in RGB.
    """
    rng = random_stream(VERSION, "photo unlabelled", spec.seed, spec.object_size, index)
    sources = _sources(_PART[UNLABELED])
    source = sources[int(rng.randint(len(sources)))]
    return _object(spec.object_size, source, _PART[UNLABELED], rng)


def render_scene(spec: PhotoSpec, split: str, index: int) -> Scene:
    """Composes one scene of two to five objects, with occlusion.

    Args:
        spec: sizes, seed and fraction of crowds.
        split: ``"train"`` or ``"val"``.
        index: of the scene.
    """
    size, part = spec.scene_size, _PART[split]
    rng = random_stream(VERSION, "photo scene", spec.seed, split, size, index)
    crowd = bool(rng.randint(10_000) < round(10_000 * spec.crowd_fraction))
    labels = [int(label) for label in rng.randint(len(CLASSES), size=int(rng.randint(2, 6)))]
    while True:
        layers = [_cluster(labels[0], part, size, rng)] if crowd else []
        for label in labels:
            sources = _sources(part, label)
            source = sources[int(rng.randint(len(sources)))]
            extent = int(rng.randint(size * 24 // 100, size * 46 // 100))
            pixels = _drawn(source, extent, size * 80 // 100, rng)
            layers.append([_somewhere(pixels, size, rng)])
        owners, shares, seen = _ownership(layers, size)
        if min(shares) >= _LEAST_VISIBLE and min(seen) >= _LEAST_PIXELS:
            break
    image = _background(part, size, rng)
    for layer in layers:
        for piece in layer:
            _blend(image, piece)
    named = [*([labels[0]] if crowd else []), *labels]
    return Scene(
        image,
        [
            SceneObject(label, owners == number, shares[number], crowd and number == 0)
            for number, label in enumerate(named)
        ],
    )


def _cluster(label: int, part: Part, size: int, rng: np.random.RandomState) -> list[_Piece]:
    """Six to ten small cut-outs of one class, near each other."""
    sources = _sources(part, label)
    spread = size * 45 // 100
    left, top = (int(v) for v in rng.randint(size - spread + 1, size=2))
    pieces = []
    for _ in range(int(rng.randint(6, 11))):
        source = sources[int(rng.randint(len(sources)))]
        extent = int(rng.randint(size * 9 // 100, size * 15 // 100))
        piece = _somewhere(_drawn(source, extent, spread, rng), spread, rng)
        pieces.append(_Piece(piece.pixels, left + piece.left, top + piece.top))
    return pieces


def _ownership(layers: list[list[_Piece]], size: int) -> tuple[np.ndarray, list[float], list[int]]:
    """The owner of each pixel (-1: background), and each object's visible fraction and pixels."""
    owners = np.full((size, size), -1)
    whole = []
    for number, layer in enumerate(layers):
        own = np.zeros((size, size), dtype=bool)
        for piece in layer:
            own[piece.place] |= piece.solid
        owners[own] = number
        whole.append(int(own.sum()))
    seen = [int((owners == number).sum()) for number in range(len(layers))]
    shares = [part / max(1, total) for part, total in zip(seen, whole, strict=True)]
    return owners, shares, seen


def _further(root: Path, spec: PhotoSpec, report: Progress) -> None:
    """Writes the unlabeled images, and the list of each split's sources."""
    folder = root / UNLABELED / "images"
    folder.mkdir(parents=True)
    for index in range(spec.unlabeled):
        Image.fromarray(render_unlabeled(spec, index)).save(folder / f"{index:06d}.png")
        report("images without labels", index + 1, spec.unlabeled)
    library().write_list(root / SOURCES)


def _prepare() -> None:
    library()


PHOTO_CUTOUTS = MadeSet(
    "photo_cutouts",
    "photo-cutouts",
    VERSION,
    CLASSES,
    PhotoSpec,
    render_object,
    render_scene,
    _further,
    _prepare,
)
