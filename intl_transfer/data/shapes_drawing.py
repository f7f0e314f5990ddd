"""How the images of the `shapes` data set are drawn: forms, textures, backgrounds, scenes.

Every decision is made in integers from a random stream whose sequence numpy guarantees, and
photographs are scaled by Pillow's fixed-point filters, so that a seed gives the same pixels on
every machine.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from intl_transfer.data.augment import Pixels
from intl_transfer.data.images import read_image, scaled
from intl_transfer.data.scenes import Mask, Scene, SceneObject

# Coordinates are integers in units of 1/16 pixel.
_UNIT = 16

# (radius / outer radius, angle in turns) of each corner, for radius 1024.
Outline = list[tuple[int, int]]


@dataclass(frozen=True)
class Kind:
    """A class: a form and the photograph that its texture is cut from.

    Attributes:
        name: of the class.
        corners: outlines in units of 1/1024 of the radius, filled by the even-odd rule.
        photograph: file in scikit-image's data folder.
        region: (left, top, right, bottom) of the part to cut from, in pixels.
        cut: smallest and largest side of a cut, in pixels of the photograph.
        tint: multipliers of red, green and blue, in 1/256.
    """

    name: str
    corners: tuple[tuple[tuple[int, int], ...], ...]
    photograph: str
    region: tuple[int, int, int, int]
    cut: tuple[int, int]
    tint: tuple[int, int, int]


def _ring(count: int, radii: tuple[int, ...], turn: float = 0.0) -> tuple[tuple[int, int], ...]:
    """A closed outline of ``count`` corners whose radii repeat."""
    corners = []
    for i in range(count):
        angle = 2 * math.pi * (i / count + turn)
        radius = radii[i % len(radii)]
        corners.append((round(radius * math.cos(angle)), round(radius * math.sin(angle))))
    return tuple(corners)


_CROSS = (
    (-380, -980), (380, -980), (380, -380), (980, -380), (980, 380), (380, 380),
    (380, 980), (-380, 980), (-380, 380), (-980, 380), (-980, -380), (-380, -380),
)  # fmt: skip
_HALF = tuple((x, y - 420) for x, y in _ring(48, (1024,)) if y >= 0)

KINDS: tuple[Kind, ...] = (
    Kind("disc", (_ring(48, (1024,)),),
         "brick.png", (0, 0, 512, 512), (150, 260), (330, 190, 150)),
    Kind("square", (_ring(4, (1024,)),),
         "grass.png", (0, 0, 512, 512), (150, 260), (180, 330, 120)),
    Kind("triangle", (_ring(3, (1024,)),),
         "gravel.png", (0, 0, 512, 512), (150, 260), (250, 260, 300)),
    Kind("star", (_ring(10, (1024, 500)),),
         "chelsea.png", (60, 30, 400, 270), (90, 160), (280, 256, 220)),
    Kind("cross", (_CROSS,),
         "ihc.png", (0, 0, 512, 512), (90, 180), (256, 256, 256)),
    Kind("ring", (_ring(48, (1024,)), _ring(32, (460,))),
         "hubble_deep_field.jpg", (0, 0, 1000, 872), (120, 220), (300, 300, 330)),
    Kind("hexagon", (_ring(6, (1024,)),),
         "page.png", (20, 10, 370, 180), (70, 120), (256, 256, 256)),
    Kind("half-moon", (_HALF,),
         "retina.jpg", (350, 350, 1060, 1060), (180, 330), (300, 256, 200)),
)  # fmt: skip

CLASSES: tuple[str, ...] = tuple(kind.name for kind in KINDS)

_BACKGROUNDS = ("astronaut.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "camera.png")


@functools.cache
def _photograph(name: str) -> Image.Image:
    import skimage

    return Image.fromarray(read_image(Path(skimage.__file__).parent / "data" / name))


def random_stream(*key: object) -> np.random.RandomState:
    """A stream that depends only on the key (numpy guarantees RandomState's sequence)."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.RandomState(np.frombuffer(digest[:16], dtype="<u4").astype(np.uint32))


def multiplied(pixels: Pixels, factors: Sequence[int]) -> Pixels:
    """Each channel multiplied by factor / 256, saturated."""
    product = pixels.astype(np.int32) * np.array(factors, dtype=np.int32) >> 8
    saturated: Pixels = np.minimum(product, 255).astype(np.uint8)
    return saturated


def _cut(
    image: Image.Image,
    region: tuple[int, int, int, int],
    side: int,
    size: int,
    rng: np.random.RandomState,
) -> Pixels:
    """A random square of ``side`` pixels in ``region``, resized, rotated and mirrored."""
    left = rng.randint(region[0], max(region[0], region[2] - side) + 1)
    top = rng.randint(region[1], max(region[1], region[3] - side) + 1)
    box = (int(left), int(top), int(min(left + side, region[2])), int(min(top + side, region[3])))
    pixels = scaled(image, (size, size), Image.Resampling.BICUBIC, box)
    pixels = np.rot90(pixels, rng.randint(4))
    return np.ascontiguousarray(pixels[:, ::-1] if rng.randint(2) else pixels)


def texture(label: int, size: int, rng: np.random.RandomState) -> Pixels:
    """A square of the class's texture, uint8 (size, size, 3)."""
    kind = KINDS[label]
    side = int(rng.randint(kind.cut[0], kind.cut[1] + 1))
    pixels = _cut(_photograph(kind.photograph), kind.region, side, size, rng)
    light = int(rng.randint(190, 320))
    factors = [t * light * int(rng.randint(230, 283)) >> 16 for t in kind.tint]
    return multiplied(pixels, factors)


def background(size: int, rng: np.random.RandomState) -> Pixels:
    """A piece of another photograph, dimmed and tinted, uint8 (size, size, 3)."""
    image = _photograph(_BACKGROUNDS[rng.randint(len(_BACKGROUNDS))])
    width, height = image.size
    side = int(rng.randint(min(width, height) // 3, min(width, height) + 1))
    pixels = _cut(image, (0, 0, width, height), side, size, rng)
    light = int(rng.randint(120, 230))
    factors = [light * int(rng.randint(220, 293)) >> 8 for _ in range(3)]
    return multiplied(pixels, factors)


def form_mask(label: int, size: int, center: tuple[int, int], radius: int, turn: int) -> Mask:
    """The pixels whose centers lie inside a class's form.

    Args:
        label: the class.
        size: side of the square image, in pixels.
        center: (x, y), in 1/16 pixel.
        radius: in 1/16 pixel.
        turn: angle, in 1/1024 of a full turn.

    Returns:
        Shape (size, size).
    """
    angle = 2 * math.pi * turn / 1024
    cosine, sine = round(4096 * math.cos(angle)), round(4096 * math.sin(angle))
    ys, xs = np.mgrid[0:size, 0:size].astype(np.int64) * _UNIT + _UNIT // 2
    inside = np.zeros((size, size), dtype=bool)
    for outline in KINDS[label].corners:
        points = [
            (
                center[0] + (x * cosine - y * sine) * radius // (4096 * 1024),
                center[1] + (x * sine + y * cosine) * radius // (4096 * 1024),
            )
            for x, y in outline
        ]
        for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]], strict=True):
            # A ray to the right crosses the edge a-b; all in exact integers.
            across = (ay > ys) != (by > ys)
            left = (xs - ax) * (by - ay) < (bx - ax) * (ys - ay)
            inside ^= across & (left if by > ay else (xs - ax) * (by - ay) > (bx - ax) * (ys - ay))
    return inside


def draw_object(size: int, rng: np.random.RandomState, label: int) -> Pixels:
    """One object at the center of a square image."""
    image = background(size, rng)
    radius = int(rng.randint(size * _UNIT * 28 // 100, size * _UNIT * 46 // 100))
    slack = max(1, size * _UNIT // 2 - radius)
    offset = rng.randint(-slack, slack + 1, size=2) * 2 // 3
    center = (size * _UNIT // 2 + int(offset[0]), size * _UNIT // 2 + int(offset[1]))
    mask = form_mask(label, size, center, radius, int(rng.randint(1024)))
    image[mask] = texture(label, size, rng)[mask]
    return image


def draw_scene(size: int, rng: np.random.RandomState, crowd: bool) -> Scene:
    """Two to five objects, with occlusion; with ``crowd``, a cluster behind them.

    Placement is redrawn until at least a third of every object is visible.
    """
    count = int(rng.randint(2, 6))
    labels = [int(label) for label in rng.randint(len(KINDS), size=count)]
    while True:
        owners = np.full((size, size), -1)
        full: list[Mask] = []
        if crowd:
            full.append(_cluster(int(labels[0]), size, rng))
        for label in labels:
            radius = int(rng.randint(size * _UNIT * 14 // 100, size * _UNIT * 25 // 100))
            x, y = (int(v) for v in rng.randint(radius, size * _UNIT - radius, size=2))
            full.append(form_mask(label, size, (x, y), radius, int(rng.randint(1024))))
        for index, mask in enumerate(full):
            owners[mask] = index
        shares = [float((owners == i).sum()) / float(mask.sum()) for i, mask in enumerate(full)]
        if min(shares) >= 1 / 3:
            break
    every = [*([labels[0]] if crowd else []), *labels]
    image = background(size, rng)
    objects = []
    for index, label in enumerate(every):
        visible = owners == index
        image[visible] = texture(label, size, rng)[visible]
        objects.append(SceneObject(label, visible, shares[index], crowd and index == 0))
    return Scene(image, objects)


def _cluster(label: int, size: int, rng: np.random.RandomState) -> Mask:
    """Six to ten small items of one class, near each other."""
    mask = np.zeros((size, size), dtype=bool)
    middle = rng.randint(size * _UNIT * 3 // 10, size * _UNIT * 7 // 10, size=2)
    for _ in range(int(rng.randint(6, 11))):
        offset = rng.randint(-size * _UNIT // 5, size * _UNIT // 5, size=2)
        radius = int(rng.randint(size * _UNIT * 4 // 100, size * _UNIT * 7 // 100))
        center = (int(middle[0] + offset[0]), int(middle[1] + offset[1]))
        mask |= form_mask(label, size, center, radius, int(rng.randint(1024)))
    return mask
