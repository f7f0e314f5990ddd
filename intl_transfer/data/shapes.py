"""The embedded data set `shapes`: textured forms before photographs, made by code from a seed.

Two flavours: object-centric images in ImageFolder layout, for pretraining and classification, and
scenes for detection, exported alike in COCO's and in VOC's layout. Textures and backgrounds are
cut from the photographs that scikit-image ships.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from intl_transfer.data.polygons import mask_to_polygons
from intl_transfer.data.shapes_drawing import (
    CLASSES,
    Mask,
    Pixels,
    Scene,
    draw_object,
    draw_scene,
    random_stream,
)
from intl_transfer.errors import UserError
from intl_transfer.files.jsons import parse_json
from intl_transfer.runs.atomic import write_json

__all__ = [
    "CLASSES",
    "COMPLETE",
    "ShapesSpec",
    "contact_sheet",
    "is_complete",
    "make_shapes",
    "render_object",
    "render_scene",
]

# Raised whenever the same spec would give other pixels or other annotations.
VERSION = 1
COMPLETE = "COMPLETE.json"
_VAL_OFFSET = 100_000  # scene ids of the validation split begin here, so that no id is used twice

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ShapesSpec:
    """What is made.

    Attributes:
        seed: of everything; image i of a split depends on the seed, the size and i alone.
        object_size: side of object-centric images, in pixels.
        objects_train: their number for training.
        objects_val: their number for validation.
        scene_size: side of scenes, in pixels.
        scenes_train: number of scenes for training.
        scenes_val: number of scenes for validation.
        crowd_fraction: share of scenes with a cluster annotated as a crowd.
    """

    seed: int = 0
    object_size: int = 64
    objects_train: int = 2000
    objects_val: int = 400
    scene_size: int = 128
    scenes_train: int = 400
    scenes_val: int = 100
    crowd_fraction: float = 0.05

    def __post_init__(self) -> None:
        for name in ("objects_train", "objects_val", "scenes_train", "scenes_val"):
            if getattr(self, name) < 1:
                raise UserError(f"shapes: {name} is {getattr(self, name)}; expected at least 1")
        for name in ("object_size", "scene_size"):
            if getattr(self, name) < 32:
                raise UserError(f"shapes: {name} is {getattr(self, name)}; expected at least 32 px")
        if not 0 <= self.crowd_fraction <= 1:
            raise UserError(f"shapes: crowd_fraction is {self.crowd_fraction}; expected 0 to 1")
        if self.scenes_train >= _VAL_OFFSET:
            raise UserError(f"shapes: at most {_VAL_OFFSET - 1} training scenes")


def render_object(spec: ShapesSpec, split: str, index: int) -> tuple[Pixels, int]:
    """Draws one object-centric image.

    Args:
        spec: sizes and seed.
        split: ``"train"`` or ``"val"``.
        index: of the image; classes take turns.

    Returns:
        uint8 (size, size, 3) in RGB, and the class index.
    """
    label = index % len(CLASSES)
    rng = random_stream(VERSION, "object", spec.seed, split, spec.object_size, index)
    return draw_object(spec.object_size, rng, label), label


def render_scene(spec: ShapesSpec, split: str, index: int) -> Scene:
    """Draws one scene of two to five objects.

    Args:
        spec: sizes, seed and share of crowds.
        split: ``"train"`` or ``"val"``.
        index: of the scene.
    """
    rng = random_stream(VERSION, "scene", spec.seed, split, spec.scene_size, index)
    crowd = bool(rng.randint(10_000) < round(10_000 * spec.crowd_fraction))
    return draw_scene(spec.scene_size, rng, crowd)


def is_complete(root: str | Path, spec: ShapesSpec | None = None) -> bool:
    """Whether a folder holds a whole set, of this spec if one is given."""
    try:
        found = parse_json((Path(root) / COMPLETE).read_bytes(), COMPLETE)
    except (OSError, UserError):
        return False
    if not isinstance(found, dict):
        return False
    if spec is None:
        return True
    return bool(found.get("version") == VERSION and found.get("spec") == dataclasses.asdict(spec))


def make_shapes(
    root: str | Path,
    spec: ShapesSpec | None = None,
    progress: Progress | None = None,
    force: bool = False,
) -> Path:
    """Makes the data set, or leaves it alone if it is there.

    Everything is built in a folder beside ``root`` and takes its place in one step, so that an
    interrupted call leaves nothing that could be taken for a whole set.

    Args:
        root: the set's folder.
        spec: what to make; the defaults if None.
        progress: called with (part, done, total).
        force: replace a set of another spec.

    Returns:
        ``root``.

    Raises:
        UserError: if ``root`` holds a set of another spec (and not ``force``), or something else.
    """
    root, spec = Path(root), spec or ShapesSpec()
    if is_complete(root, spec):
        return root
    if is_complete(root):
        if not force:
            raise UserError(
                f"{root} holds another set ({_differences(root, spec)}). "
                "Give another folder, or --force to replace it"
            )
    elif root.exists() and any(root.iterdir()):
        raise UserError(
            f"{root} is not empty and has no {COMPLETE}, so it is not a set made here. "
            "Give another folder, or remove that one"
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    report = progress or (lambda part, done, total: None)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as folder:
        work = Path(folder) / "set"
        for split in ("train", "val"):
            _write_objects(work, spec, split, report)
            _write_scenes(work, spec, split, report)
        write_json(work / COMPLETE, {"version": VERSION, "spec": dataclasses.asdict(spec)})
        if root.exists():
            root.rename(Path(folder) / "old")
        work.rename(root)
    return root


def _differences(root: Path, spec: ShapesSpec) -> str:
    found = parse_json((root / COMPLETE).read_bytes(), str(root / COMPLETE))
    found = found if isinstance(found, dict) else {}
    made = found.get("spec")
    there = {"version": found.get("version"), **(made if isinstance(made, dict) else {})}
    here = {"version": VERSION, **dataclasses.asdict(spec)}
    return ", ".join(
        f"{name}: {there.get(name)} there, {value} wanted"
        for name, value in here.items()
        if there.get(name) != value
    )


def _write_objects(root: Path, spec: ShapesSpec, split: str, report: Progress) -> None:
    folder = root / "classification" / split
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    total = spec.objects_train if split == "train" else spec.objects_val
    for index in range(total):
        image, label = render_object(spec, split, index)
        Image.fromarray(image).save(folder / CLASSES[label] / f"{index:06d}.png")
        report(f"objects, {split}", index + 1, total)


def _write_scenes(root: Path, spec: ShapesSpec, split: str, report: Progress) -> None:
    coco_images, voc = root / "coco" / split, root / "voc"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (voc / folder).mkdir(parents=True, exist_ok=True)
    coco_images.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    total = spec.scenes_train if split == "train" else spec.scenes_val
    first = 1 if split == "train" else _VAL_OFFSET + 1
    for index in range(total):
        scene, number = render_scene(spec, split, index), first + index
        name = f"{number:06d}.jpg"
        # VOC's layout and its readers want JPEG; both layouts get the same bytes.
        Image.fromarray(scene.image).save(coco_images / name, quality=95, subsampling=0)
        shutil.copyfile(coco_images / name, voc / "JPEGImages" / name)
        height, width = scene.image.shape[:2]
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for thing in scene.objects:
            annotation = _coco_annotation(len(annotations) + 1, number, thing)
            annotations.append(annotation)
        tree = _voc_tree(name, scene)
        tree.write(voc / "Annotations" / f"{number:06d}.xml", encoding="utf-8")
        report(f"scenes, {split}", index + 1, total)
    write_json(
        root / "coco" / "annotations" / f"instances_{split}.json",
        {
            "info": {"description": f"shapes {split}", "version": str(VERSION)},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i + 1, "name": n} for i, n in enumerate(CLASSES)],
        },
    )
    names = "".join(f"{image['id']:06d}\n" for image in images)
    voc_split = "trainval" if split == "train" else "test"
    (voc / "ImageSets" / "Main" / f"{voc_split}.txt").write_text(names)


def _coco_annotation(number: int, image: int, thing: Any) -> dict[str, Any]:
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


def _voc_tree(name: str, scene: Scene) -> ElementTree.ElementTree[Any]:
    """VOC's annotation: boxes in 1-based pixel numbers, both ends inclusive."""
    root = ElementTree.Element("annotation")

    def add(parent: ElementTree.Element, tag: str, text: object = None) -> ElementTree.Element:
        child = ElementTree.SubElement(parent, tag)
        child.text = None if text is None else str(text)
        return child

    add(root, "folder", "shapes")
    add(root, "filename", name)
    height, width, depth = scene.image.shape
    size = add(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", depth)):
        add(size, tag, value)
    add(root, "segmented", 0)
    for thing in scene.objects:
        node = add(root, "object")
        add(node, "name", CLASSES[thing.label])
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


def contact_sheet(spec: ShapesSpec, path: str | Path) -> None:
    """Draws a PNG of both flavours: every class four times, and twelve scenes with their truth.

    Args:
        spec: what to draw.
        path: the PNG file.
    """
    side = 128
    rows = []
    for row in range(4):
        tiles = [render_object(spec, "train", row * len(CLASSES) + i)[0] for i in range(8)]
        rows.append(np.concatenate([_resized(tile, side) for tile in tiles], axis=1))
    for row in range(3):
        tiles = [_annotated(render_scene(spec, "train", row * 4 + i)) for i in range(4)]
        rows.append(np.concatenate([_resized(tile, 2 * side) for tile in tiles], axis=1))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows, axis=0)).save(path)


def _resized(image: Pixels, side: int) -> Pixels:
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST))


def _annotated(scene: Scene) -> Pixels:
    image = scene.image.copy()
    palette = [(255, 80, 80), (80, 255, 80), (90, 130, 255), (255, 255, 80), (255, 80, 255)]
    for index, thing in enumerate(scene.objects):
        colour = np.array((255, 255, 255) if thing.iscrowd else palette[index % 5], dtype=np.uint8)
        inner = thing.mask.copy()
        inner[1:-1, 1:-1] &= (
            thing.mask[:-2, 1:-1]
            & thing.mask[2:, 1:-1]
            & thing.mask[1:-1, :-2]
            & thing.mask[1:-1, 2:]
        )
        image[thing.mask & ~inner] = colour
        left, top, right, bottom = thing.box
        image[top, left:right] = image[bottom - 1, left:right] = colour
        image[top:bottom, left] = image[top:bottom, right - 1] = colour
    return image
