"""Locations of detection data sets: standard ones, and those of a configuration.

COCO-style sets are a json file and a folder of images, VOC-style ones a folder with lists of images
and an xml file for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from intl_transfer.data.class_names import canonical
from intl_transfer.data.made import MADE
from intl_transfer.errors import UserError, did_you_mean

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


@dataclass(frozen=True)
class DetectionSet:
    """The location of one split of a data set.

    Attributes:
        name: in configurations.
        layout: ``coco`` or ``voc``.
        images: folder of the images.
        annotations: the json file, or the folder of xml files.
        listing: VOC's list of the split's images.
        classes: their names in order; None: from the annotations.
        known_images: number of images, for a published data set.
        year: of VOC's metric: 2007 for the 11-point one, 2012 for the area under the curve.
    """

    name: str
    layout: Literal["coco", "voc"]
    images: Path
    annotations: Path
    listing: Path | None = None
    classes: tuple[str, ...] | None = None
    known_images: int | None = None
    year: int = 2007


def standard_sets(root: Path) -> dict[str, DetectionSet]:
    """COCO 2017, VOC 2007 and 2012, and the generated data sets, at their standard locations."""
    coco = root / "coco"
    sets = [
        DetectionSet(
            f"coco_2017_{split}",
            "coco",
            coco / f"{split}2017",
            coco / "annotations" / f"instances_{split}2017.json",
            known_images=known,
        )
        for split, known in (("train", 118_287), ("val", 5_000))
    ]
    for year, split, known in (
        (2007, "trainval", 5_011),
        (2007, "test", 4_952),
        (2012, "trainval", 11_540),
    ):
        name = f"voc_{year}_{split}"
        sets.append(_voc(name, root / f"VOC{year}", split, VOC_CLASSES, year, known))
    for name, made in MADE.items():
        folder = root / name / "coco"
        for split in ("train", "val"):
            annotations = folder / "annotations" / f"instances_{split}.json"
            sets.append(DetectionSet(f"{name}_coco_{split}", "coco", folder / split, annotations))
        for split in ("trainval", "test"):
            sets.append(_voc(f"{name}_voc_{split}", root / name / "voc", split, made.classes, 2007))
    return {one.name: one for one in sets}


def _voc(
    name: str,
    folder: Path,
    split: str,
    classes: tuple[str, ...] | None,
    year: int,
    known: int | None = None,
) -> DetectionSet:
    listing = folder / "ImageSets" / "Main" / f"{split}.txt"
    images, annotations = folder / "JPEGImages", folder / "Annotations"
    return DetectionSet(name, "voc", images, annotations, listing, classes, known, year)


def custom_sets(block: Mapping[str, Any], root: Path, where: str) -> dict[str, DetectionSet]:
    """The data sets in a configuration's ``CUSTOM_DATASETS``.

    Args:
        block: by name, ``{LAYOUT: coco, JSON, IMAGES}`` or ``{LAYOUT: voc, FOLDER, SPLIT}``, with
            optionally ``CLASSES`` (a list of names) and, for VOC, ``YEAR`` of the metric.
        root: base of relative paths.
        where: the configuration, for messages.

    Raises:
        UserError: for a missing, unknown or invalid value.
    """
    found = {}
    for name, given in block.items():
        at = f"{where}: CUSTOM_DATASETS.{name}"
        layout = given.get("LAYOUT") if isinstance(given, Mapping) else None
        if layout not in ("coco", "voc"):
            raise UserError(f"{at}: LAYOUT is {layout!r}; expected coco or voc")
        required = {"coco": ("JSON", "IMAGES"), "voc": ("FOLDER", "SPLIT")}[layout]
        missing = [key for key in required if not isinstance(given.get(key), str)]
        if missing:
            raise UserError(f"{at}: {' and '.join(missing)} must be given, as text")
        for key in required:
            if "\0" in given[key]:
                raise UserError(f"{at}: {key} is {given[key]!r}; expected a path")
        further = {"coco": {"CLASSES"}, "voc": {"CLASSES", "YEAR"}}[layout]
        for key in given.keys() - {"LAYOUT", *required} - further:
            raise UserError(f"{at}: no key {key}.{did_you_mean(key, [*required, *further])}")
        classes = given.get("CLASSES")
        if classes is not None:
            named = isinstance(classes, (list, tuple)) and all(isinstance(c, str) for c in classes)
            if not named or not classes:
                raise UserError(f"{at}: CLASSES is {classes!r}; expected a list of names")
            classes = tuple(map(canonical, classes))
            if not all(classes):
                raise UserError(f"{at}: CLASSES has a blank name; expected a list of names")
            twice = [name for name in classes if classes.count(name) > 1]
            if twice:
                raise UserError(
                    f"{at}: CLASSES names '{twice[0]}' twice; expected a list of names, each of "
                    "them once"
                )
        first = root / Path(given[required[0]]).expanduser()
        if layout == "coco":
            images = root / Path(given["IMAGES"]).expanduser()
            found[name] = DetectionSet(name, "coco", images, first, classes=classes)
            continue
        year = given.get("YEAR", 2007)
        if year not in (2007, 2012):
            raise UserError(f"{at}: YEAR is {year!r}; expected 2007 or 2012, of the metric")
        found[name] = _voc(name, first, given["SPLIT"].removesuffix(".txt"), classes, year)
    return found
