"""The embedded data set `shapes`: textured shapes on photographs, generated from a seed.

Two parts: object-centric images in ImageFolder layout, for pretraining and classification, and
scenes for detection, in both COCO's and VOC's layout. Textures and backgrounds are crops of the
photographs that scikit-image ships.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from intl_transfer.data.augment import Pixels
from intl_transfer.data.made_sets import COMPLETE, MadeSet, SetSpec
from intl_transfer.data.scenes import Progress, Scene
from intl_transfer.data.shapes_drawing import CLASSES, draw_object, draw_scene, random_stream

__all__ = [
    "CLASSES",
    "COMPLETE",
    "SHAPES",
    "ShapesSpec",
    "contact_sheet",
    "is_complete",
    "make_shapes",
    "render_object",
    "render_scene",
]

# Incremented whenever the same spec would give other pixels or annotations.
VERSION = 1


@dataclass(frozen=True)
class ShapesSpec(SetSpec):
    """The spec; fields as in :class:`SetSpec`."""

    set_name: ClassVar[str] = "shapes"


def render_object(spec: ShapesSpec, split: str, index: int) -> tuple[Pixels, int]:
    """Draws one object-centric image.

    Args:
        spec: sizes and seed.
        split: ``"train"`` or ``"val"``.
        index: of the image; determines the class.

    Returns:
        uint8 (size, size, 3) in RGB, and the class index.
    """
    label = index % len(CLASSES)
    rng = random_stream(VERSION, "object", spec.seed, split, spec.object_size, index)
    return draw_object(spec.object_size, rng, label), label


def render_scene(spec: ShapesSpec, split: str, index: int) -> Scene:
    """Draws one scene of two to five objects.

    Args:
        spec: sizes, seed and fraction of crowds.
        split: ``"train"`` or ``"val"``.
        index: of the scene.
    """
    rng = random_stream(VERSION, "scene", spec.seed, split, spec.scene_size, index)
    crowd = bool(rng.randint(10_000) < round(10_000 * spec.crowd_fraction))
    return draw_scene(spec.scene_size, rng, crowd)


SHAPES = MadeSet("shapes", "shapes", VERSION, CLASSES, ShapesSpec, render_object, render_scene)


def is_complete(root: str | Path, spec: ShapesSpec | None = None) -> bool:
    """Whether a folder contains the complete data set, of this spec if one is given."""
    return SHAPES.is_complete(root, spec)


def make_shapes(
    root: str | Path,
    spec: ShapesSpec | None = None,
    progress: Progress | None = None,
    force: bool = False,
) -> Path:
    """Generates the data set, unless it already exists: :meth:`MadeSet.make`."""
    return SHAPES.make(root, spec, progress, force)


def contact_sheet(spec: ShapesSpec, path: str | Path) -> None:
    """Draws a contact sheet: :meth:`MadeSet.contact_sheet`."""
    SHAPES.contact_sheet(spec, path)
