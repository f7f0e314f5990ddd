"""Generated scenes: an image and its objects, written in COCO's and in VOC's layout.

Boxes and masks cover exactly the visible pixels: occluding objects are subtracted.
"""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from intl_transfer.data.augment import Pixels
from intl_transfer.data.polygons import mask_to_polygons
from intl_transfer.runs.atomic import write_json

Mask = NDArray[np.bool_]

#: Called with (part, done, total).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SceneObject:
    """One annotated object in a scene.

    Attributes:
        label: class index.
        mask: its visible pixels, (H, W).
        visible: visible fraction of its pixels.
        iscrowd: True for a cluster of small items annotated as one.
    """

    label: int
    mask: Mask
    visible: float
    iscrowd: bool

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of the visible pixels; right and bottom exclusive."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    @property
    def difficult(self) -> bool:
        """VOC's flag: crowds, and objects of which less than half is visible."""
        return self.iscrowd or self.visible < 0.5


@dataclass(frozen=True)
class Scene:
    """An image and its objects.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        objects: back to front.
    """

    image: Pixels
    objects: list[SceneObject]


@dataclass(frozen=True)
class SceneSplit:
    """Names and numbering of a split's scenes.

    Attributes:
        name: of the data set, for descriptions.
        version: of the data set.
        coco: the split's name in COCO's layout.
        voc: in VOC's.
        first: number of the first scene; no number is used in two splits.
        classes: names, in the order of the labels.
    """

    name: str
    version: int
    coco: str
    voc: str
    first: int
    classes: Sequence[str]


def write_scenes(
    root: Path, split: SceneSplit, scenes: Iterable[Scene], total: int, report: Progress
) -> None:
    """Writes scenes below ``root/coco`` and ``root/voc``: the same images, the same objects.

    Args:
        root: the data set's folder.
        split: names and numbers.
        scenes: in the order of their numbers.
        total: how many, for ``report``.
        report: called after each.
    """
    coco_images, voc = root / "coco" / split.coco, root / "voc"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (voc / folder).mkdir(parents=True, exist_ok=True)
    coco_images.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes, split.first):
        name = f"{number:06d}.jpg"
        # VOC's layout and its readers want JPEG; both layouts get the same bytes.
        Image.fromarray(scene.image).save(coco_images / name, quality=95, subsampling=0)
        shutil.copyfile(coco_images / name, voc / "JPEGImages" / name)
        height, width = scene.image.shape[:2]
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for thing in scene.objects:
            annotations.append(_coco_annotation(len(annotations) + 1, number, thing))
        tree = _voc_tree(split.name, split.classes, name, scene)
        tree.write(voc / "Annotations" / f"{number:06d}.xml", encoding="utf-8")
        report(f"scenes, {split.coco}", len(images), total)
    write_json(
        root / "coco" / "annotations" / f"instances_{split.coco}.json",
        {
            "info": {"description": f"{split.name} {split.coco}", "version": str(split.version)},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i + 1, "name": n} for i, n in enumerate(split.classes)],
        },
    )
    names = "".join(f"{image['id']:06d}\n" for image in images)
    (voc / "ImageSets" / "Main" / f"{split.voc}.txt").write_text(names)


def _coco_annotation(number: int, image: int, thing: SceneObject) -> dict[str, Any]:
    left, top, right, bottom = thing.box
    return {
        "id": number,
        "image_id": image,
        "category_id": thing.label + 1,
        "bbox": [left, top, right - left, bottom - top],
        "area": int(thing.mask.sum()),
        "iscrowd": int(thing.iscrowd),
        "segmentation": _run_lengths(thing.mask) if thing.iscrowd else mask_to_polygons(thing.mask),
    }


def _run_lengths(mask: Mask) -> dict[str, Any]:
    """COCO's uncompressed run lengths: column by column, zeros first."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return {"counts": ([0] if flat[0] else []) + counts, "size": list(mask.shape)}


def _voc_tree(
    folder: str, classes: Sequence[str], name: str, scene: Scene
) -> ElementTree.ElementTree[Any]:
    """VOC's annotation: boxes in 1-based pixel numbers, both ends inclusive."""
    root = ElementTree.Element("annotation")

    def add(parent: ElementTree.Element, tag: str, text: object = None) -> ElementTree.Element:
        child = ElementTree.SubElement(parent, tag)
        child.text = None if text is None else str(text)
        return child

    add(root, "folder", folder)
    add(root, "filename", name)
    height, width, depth = scene.image.shape
    size = add(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", depth)):
        add(size, tag, value)
    add(root, "segmented", 0)
    for thing in scene.objects:
        node = add(root, "object")
        add(node, "name", classes[thing.label])
        add(node, "pose", "Unspecified")
        add(node, "truncated", 0)
        add(node, "occluded", int(thing.visible < 1))
        add(node, "difficult", int(thing.difficult))
        left, top, right, bottom = thing.box
        box = add(node, "bndbox")
        for tag, value in (
            ("xmin", left + 1),
            ("ymin", top + 1),
            ("xmax", right),
            ("ymax", bottom),
        ):
            add(box, tag, value)
    ElementTree.indent(root)
    return ElementTree.ElementTree(root)


def annotated(scene: Scene) -> Pixels:
    """A scene's image with its annotations: outlines of masks, and boxes; crowds in white."""
    image = scene.image.copy()
    palette = [(255, 80, 80), (80, 255, 80), (90, 130, 255), (255, 255, 80), (255, 80, 255)]
    for index, thing in enumerate(scene.objects):
        color = np.array((255, 255, 255) if thing.iscrowd else palette[index % 5], dtype=np.uint8)
        inner = thing.mask.copy()
        inner[1:-1, 1:-1] &= (
            thing.mask[:-2, 1:-1]
            & thing.mask[2:, 1:-1]
            & thing.mask[1:-1, :-2]
            & thing.mask[1:-1, 2:]
        )
        image[thing.mask & ~inner] = color
        left, top, right, bottom = thing.box
        image[top, left:right] = image[bottom - 1, left:right] = color
        image[top:bottom, left] = image[top:bottom, right - 1] = color
    return image
