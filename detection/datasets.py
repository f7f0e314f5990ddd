"""Data sets: registered with Detectron2, and checked before a model is built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_voc_instances, register_coco_instances

from detection.config import classes_key, number_of_classes, set_number_of_classes
from intl_transfer.data import detection_contents
from intl_transfer.data.detection_contents import Contents, class_names, count_note, open_set
from intl_transfer.data.detection_sets import (
    DetectionSet,
    custom_sets,
    data_root,
    standard_sets,
)
from intl_transfer.data.shapes import is_complete
from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.runs.records import ImageSet

# What a configuration has named in this process.
_custom: dict[str, DetectionSet] = {}


def register(block: Mapping[str, Any] | None = None) -> None:
    """Registers the embedded scenes and what a configuration names; harmless when called again.

    Args:
        block: the configuration's ``CUSTOM_DATASETS``.

    Raises:
        UserError: if the block cannot be understood, or takes the name of another set.
    """
    root = data_root()
    for name, one in standard_sets(root).items():
        if name.startswith("shapes_") and name not in DatasetCatalog.list():
            _register(one)
    for name, one in custom_sets(block or {}, root, "the configuration").items():
        if _custom.get(name) == one:
            continue
        if name in DatasetCatalog.list():
            raise UserError(f"CUSTOM_DATASETS.{name}: there is a data set of this name already")
        _register(one)
        _custom[name] = one


def _register(one: DetectionSet) -> None:
    if one.layout == "coco":
        register_coco_instances(one.name, {}, str(one.annotations), str(one.images))
        return
    assert one.listing is not None
    folder, split = str(one.images.parent), one.listing.stem
    classes = list(class_names(one))
    DatasetCatalog.register(one.name, lambda: load_voc_instances(folder, split, classes))
    MetadataCatalog.get(one.name).set(
        thing_classes=classes,
        dirname=folder,
        year=one.year,
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
        raise UserError(
            f"no data set '{name}' is registered.{did_you_mean(name, known)} Sets of your own are "
            "named in CUSTOM_DATASETS (docs/detection.md)"
        )
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
    return {name: len(contents.pictures) for name, contents in examine(names).items()}


def examine(names: list[str]) -> dict[str, Contents]:
    """As :func:`check`; returns what is in each set."""
    found = {}
    for name in names:
        one = _located(name)
        if name.startswith("shapes_") and not is_complete(data_root() / "shapes"):
            raise UserError(
                f"data set '{name}' is not there: looked for {data_root() / 'shapes'}. "
                f"Make it with `intl-transfer data shapes --out {data_root() / 'shapes'}`, or set "
                "DETECTRON2_DATASETS to the folder that holds it"
            )
        contents = open_set(one)
        if contents.problems:
            raise UserError(contents.problems[0])
        note = count_note(one, contents)
        if note:
            print(f"note: {note}")
        found[name] = contents
    return found


def described(found: Mapping[str, Contents]) -> dict[str, ImageSet]:
    """What the sets hold, for records."""
    return {
        name: detection_contents.described(_located(name), contents)
        for name, contents in found.items()
    }


def settle_classes(cfg: Any, found: dict[str, Contents]) -> None:
    """Holds the number of classes against the data; sets it for sets of one's own.

    Raises:
        UserError: if the sets differ in their classes, or a published set has another number of
            classes than the configuration.
    """
    first = next(iter(found))
    for name, contents in found.items():
        if contents.classes != found[first].classes:
            raise UserError(
                f"'{name}' has other classes than '{first}': {', '.join(contents.classes)} against "
                f"{', '.join(found[first].classes)}. Give both the same, in CLASSES of "
                "CUSTOM_DATASETS or in the json files"
            )
    count, configured = len(found[first].classes), number_of_classes(cfg)
    if count == configured:
        return
    if first not in _custom:
        raise UserError(
            f"{classes_key(cfg)} is {configured}, but '{first}' has {count} classes "
            f"({', '.join(found[first].classes[:5])} ...); give {classes_key(cfg)} {count}"
        )
    print(f"{count} classes, as '{first}' has (the configuration: {configured})")
    set_number_of_classes(cfg, count)


def _located(name: str) -> DetectionSet:
    """Where a registered set lies."""
    if name in _custom:
        return _custom[name]
    kind, meta = layout(name), MetadataCatalog.get(name)
    published = standard_sets(Path()).get(name)
    known = None if published is None else published.known_images
    if kind == "coco":
        images, annotations = Path(meta.image_root), Path(meta.json_file)
        return DetectionSet(name, "coco", images, annotations, known_images=known)
    folder = Path(meta.dirname)
    return DetectionSet(
        name,
        "voc",
        folder / "JPEGImages",
        folder / "Annotations",
        folder / "ImageSets" / "Main" / f"{meta.split}.txt",
        tuple(meta.thing_classes),
        known,
        meta.year,
    )
