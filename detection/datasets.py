"""Data sets: the embedded scenes are registered, and all are checked before a model is built."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_voc_instances, register_coco_instances

from intl_transfer.data.shapes import CLASSES, is_complete
from intl_transfer.errors import UserError, did_you_mean


def data_root() -> Path:
    """Detectron2's root of all data sets: ``DETECTRON2_DATASETS``, or ``datasets``."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def register() -> None:
    """Registers the embedded scenes in both layouts; harmless when called again."""
    root = data_root() / "shapes"
    for split in ("train", "val"):
        name = f"shapes_coco_{split}"
        if name not in DatasetCatalog.list():
            json_file = root / "coco" / "annotations" / f"instances_{split}.json"
            register_coco_instances(name, {}, str(json_file), str(root / "coco" / split))
    for split in ("trainval", "test"):
        name = f"shapes_voc_{split}"
        if name not in DatasetCatalog.list():
            folder = str(root / "voc")
            DatasetCatalog.register(
                name, lambda f=folder, s=split: load_voc_instances(f, s, list(CLASSES))
            )
            MetadataCatalog.get(name).set(
                thing_classes=list(CLASSES),
                dirname=folder,
                year=2007,
                split=split,
                evaluator_type="pascal_voc",
            )


def layout(name: str) -> str:
    """``coco`` or ``voc``, by how a data set is evaluated.

    Raises:
        UserError: for an unregistered name or another kind of evaluation.
    """
    known = DatasetCatalog.list()
    if name not in known:
        raise UserError(f"no data set '{name}' is registered.{did_you_mean(name, known)}")
    kind = MetadataCatalog.get(name).get("evaluator_type")
    if kind not in ("coco", "pascal_voc"):
        raise UserError(f"data set '{name}' is evaluated as '{kind}'; only COCO and VOC are known")
    return "coco" if kind == "coco" else "voc"


def check(names: list[str]) -> dict[str, int]:
    """Looks for every file of the data sets, and for annotations that could not be right.

    Args:
        names: registered data sets.

    Returns:
        Number of images of each.

    Raises:
        UserError: naming what is missing or wrong, where it was looked for and what to do.
    """
    counts = {}
    for name in names:
        kind = layout(name)
        if name.startswith("shapes_") and not is_complete(data_root() / "shapes"):
            raise UserError(
                f"data set '{name}' is not there: looked for {data_root() / 'shapes'}. "
                f"Make it with `intl-transfer data shapes --out {data_root() / 'shapes'}`, or set "
                "DETECTRON2_DATASETS to the folder that holds it"
            )
        counts[name] = _check_coco(name) if kind == "coco" else _check_voc(name)
    return counts


def _missing(name: str, path: Path) -> UserError:
    return UserError(
        f"data set '{name}': {path} is missing (looked for {path.resolve()}). Set "
        "DETECTRON2_DATASETS to the folder that holds the data sets; `intl-transfer doctor` shows "
        "what is found"
    )


def _check_coco(name: str) -> int:
    meta = MetadataCatalog.get(name)
    json_file, images = Path(meta.json_file), Path(meta.image_root)
    for path in (json_file, images):
        if not path.exists():
            raise _missing(name, path)
    try:
        content = json.loads(json_file.read_text())
        sizes = {i["id"]: (i["file_name"], i["width"], i["height"]) for i in content["images"]}
        annotations = content["annotations"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{json_file} is not a COCO annotation file ({error!r})") from None
    if not sizes or not annotations:
        raise UserError(
            f"{json_file} is empty: {len(sizes)} images, {len(annotations)} annotations"
        )
    there = _names_below(images)
    absent = [file for file, _, _ in sizes.values() if file not in there]
    if absent:
        raise UserError(
            f"{json_file} names {len(absent)} image(s) that {images} lacks, the first: {absent[0]}"
        )
    for annotation in annotations:
        _check_box(annotation, sizes, json_file)
    return len(sizes)


def _check_box(annotation: dict[str, Any], sizes: dict[Any, Any], json_file: Path) -> None:
    where = f"{json_file}: annotation {annotation.get('id')}"
    if annotation.get("image_id") not in sizes:
        raise UserError(f"{where} is of image {annotation.get('image_id')}, which is not listed")
    file, width, height = sizes[annotation["image_id"]]
    box = annotation.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(math.isfinite(v) for v in box)):
        raise UserError(f"{where}: bbox is {box}; expected [x, y, width, height]")
    x, y, w, h = box
    # Real COCO holds a few boxes of no size, which Detectron2 leaves out by itself.
    if w < 0 or h < 0 or x >= width or y >= height or x + w < 0 or y + h < 0:
        raise UserError(
            f"{where}: the box {box} lies outside its image {file} ({width} x {height}); "
            "correct or remove the annotation"
        )


def _names_below(folder: Path) -> set[str]:
    """Files in a folder and its direct subfolders: one listing, not one call a file."""
    names: set[str] = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                names.update(f"{entry.name}/{inner}" for inner in os.listdir(entry.path))
            else:
                names.add(entry.name)
    return names


def _check_voc(name: str) -> int:
    meta = MetadataCatalog.get(name)
    folder = Path(meta.dirname)
    listing = folder / "ImageSets" / "Main" / f"{meta.split}.txt"
    for path in (listing, folder / "Annotations", folder / "JPEGImages"):
        if not path.exists():
            raise _missing(name, path)
    ids = listing.read_text().split()
    if not ids:
        raise UserError(f"{listing} is empty: no images in data set '{name}'")
    for part, suffix in (("Annotations", ".xml"), ("JPEGImages", ".jpg")):
        there = _names_below(folder / part)
        absent = [f"{i}{suffix}" for i in ids if f"{i}{suffix}" not in there]
        if absent:
            raise UserError(
                f"{listing} names {len(absent)} image(s) that {folder / part} lacks, the first: "
                f"{absent[0]}"
            )
    return len(ids)
