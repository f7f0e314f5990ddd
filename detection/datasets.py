"""Registers data sets with Detectron2, and checks them before a model is built.

Detectron2 gets its records from this project's one reader (:mod:`intl_transfer.data.annotations`),
and so do the evaluators and the drawing of images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from detection.config import classes_key, number_of_classes, set_number_of_classes
from intl_transfer.data import detection_contents
from intl_transfer.data.annotations import Annotation, Contents
from intl_transfer.data.detection_contents import open_set, read_set, remarks
from intl_transfer.data.detection_roles import (
    agree,
    count_problem,
    has_run_lengths,
    mask_problem,
    role_problems,
    seen_in_training,
    without_masks,
)
from intl_transfer.data.detection_sets import (
    DetectionSet,
    custom_sets,
    standard_sets,
)
from intl_transfer.data.roots import data_root
from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.runs.records import ImageSet

# Data sets registered in this process: standard ones, and those of the configuration.
_sets: dict[str, DetectionSet] = {}
_custom: dict[str, DetectionSet] = {}


def register(block: Mapping[str, Any] | None = None) -> None:
    """Registers the standard data sets and a configuration's; idempotent.

    Data sets that Detectron2 registered under a standard name are then read by this project's
    reader.

    Args:
        block: the configuration's ``CUSTOM_DATASETS``.

    Raises:
        UserError: if the block is invalid, or uses the name of another data set.
    """
    root = data_root()
    for one in standard_sets(root).values():
        _register(one)
    for name, one in custom_sets(block or {}, root, "the configuration").items():
        if name not in _custom and name in DatasetCatalog.list():
            raise UserError(f"CUSTOM_DATASETS.{name}: a data set of this name already exists")
        _register(one)
        _custom[name] = one


def _register(one: DetectionSet) -> None:
    if _sets.get(one.name) == one and one.name in DatasetCatalog.list():
        return
    known = MetadataCatalog.get(one.name).get("thing_classes")  # of Detectron2, without the data
    catalogs: tuple[Any, ...] = (DatasetCatalog, MetadataCatalog)
    for catalog in catalogs:
        if one.name in catalog.list():
            catalog.remove(one.name)
    _sets[one.name] = one
    DatasetCatalog.register(one.name, lambda: records(contents(one.name), one.layout))
    metadata = MetadataCatalog.get(one.name)
    if one.layout == "coco":
        metadata.set(
            json_file=str(one.annotations), image_root=str(one.images), evaluator_type="coco"
        )
    else:
        assert one.listing is not None
        metadata.set(
            dirname=str(one.images.parent),
            year=one.year,
            split=one.listing.stem,
            evaluator_type="pascal_voc",
        )
    if one.classes is not None or known:
        metadata.thing_classes = list(one.classes or known)


def contents(name: str) -> Contents:
    """Reads a registered data set; its images are not opened.

    Raises:
        UserError: naming what is missing or invalid.
    """
    found = read_set(_located(name))
    if found.problems:
        raise UserError(found.problems[0])
    metadata = MetadataCatalog.get(name)
    _set(metadata, "thing_classes", list(found.classes))
    if layout(name) == "coco":
        places = {number: label for label, number in enumerate(found.category_ids)}
        _set(metadata, "thing_dataset_id_to_contiguous_id", places)
    return found


def _set(metadata: Any, key: str, value: Any) -> None:
    """Overwrites metadata that Detectron2 allows to be set only once."""
    if metadata.get(key, value) != value:
        delattr(metadata, key)
    setattr(metadata, key, value)


def in_order(found: Contents, kind: str) -> list[Any]:
    """Ids of a data set's images in the order of Detectron2's loaders.

    Args:
        found: its content.
        kind: its layout.
    """
    return sorted(found.images) if kind == "coco" else list(found.images)


def records(found: Contents, kind: str) -> list[dict[str, Any]]:
    """A data set in the form of Detectron2's loaders: one dictionary per image.

    Args:
        found: its content.
        kind: its layout.
    """
    return [
        {
            "file_name": str(found.images[key].file),
            "height": found.images[key].height,
            "width": found.images[key].width,
            "image_id": key,
            "annotations": [_record(a, kind) for a in found.annotations.get(key, ())],
        }
        for key in in_order(found, kind)
    ]


def _record(annotation: Annotation, kind: str) -> dict[str, Any]:
    mode = BoxMode.XYXY_ABS if annotation.corners else BoxMode.XYWH_ABS
    record = {
        "category_id": annotation.label,
        "bbox": list(annotation.bbox),
        "bbox_mode": mode,
    }
    if kind == "coco":  # difficult objects of VOC are trained on
        record["iscrowd"] = int(annotation.ignored)
    if annotation.segmentation is not None:
        record["segmentation"] = annotation.segmentation
    return record


def layout(name: str) -> str:
    """``coco`` or ``voc``, according to a data set's evaluation.

    Raises:
        UserError: for an unregistered name or another kind of evaluation.
    """
    known = DatasetCatalog.list()
    if name not in known:
        raise UserError(
            f"no data set '{name}' is registered.{did_you_mean(name, known)} Custom data sets are "
            "defined in CUSTOM_DATASETS (docs/detection.md)"
        )
    kind = MetadataCatalog.get(name).get("evaluator_type")
    if kind not in ("coco", "pascal_voc"):
        raise UserError(f"data set '{name}' is evaluated as '{kind}'; only COCO and VOC are known")
    return "coco" if kind == "coco" else "voc"


def check(names: list[str]) -> dict[str, int]:
    """Checks that all files of the data sets exist, and that annotations are plausible.

    Args:
        names: registered data sets.

    Returns:
        Number of images of each.

    Raises:
        UserError: naming what is missing or invalid, where it was searched for and what to do.
    """
    return {name: len(opened.images) for name, opened in examine(names).items()}


def examine(names: list[str]) -> dict[str, Contents]:
    """Like :func:`check`; returns the content of each data set."""
    found = {}
    for name in names:
        one = _located(name)
        opened = open_set(one)
        if opened.problems:
            raise UserError(opened.problems[0])
        for remark in remarks(one, opened):
            print(f"note: {name}: {remark}")
        found[name] = opened
    return found


def described(found: Mapping[str, Contents]) -> dict[str, ImageSet]:
    """The content of the data sets, for records."""
    return {
        name: detection_contents.described(_located(name), opened) for name, opened in found.items()
    }


def settle_classes(cfg: Any, found: dict[str, Contents]) -> None:
    """Reconciles classes and their order by name, in the data and in the configuration.

    The first training set determines them. Custom data sets with another order are then read in
    this order: their ``CLASSES`` are written into the configuration, for workers and the run
    directory.

    Args:
        cfg: the configuration, not frozen.
        found: by name, training sets first; contents are relabeled to the common classes.

    Raises:
        UserError: if a data set has objects of other classes, or a published one a different number
            of classes than the configuration.
    """
    standard = [name for name in found if name not in _custom]
    agreement = agree(found, standard)
    if agreement.problems:
        raise UserError(agreement.problems[0])
    first = next(iter(found))
    for name in found:
        if name in _custom:
            _custom[name] = _sets[name] = replace(_custom[name], classes=agreement.classes)
            cfg.CUSTOM_DATASETS[name].CLASSES = list(agreement.classes)
    for note in agreement.notes:
        print(f"note: {note}")
    found.update(agreement.contents)
    count, configured = len(found[first].classes), number_of_classes(cfg)
    if count == configured:
        return
    problem = count_problem(found, standard, classes_key(cfg), configured)
    if problem is not None:
        raise UserError(problem)
    print(f"{count} classes, as '{first}' has (the configuration: {configured})")
    set_number_of_classes(cfg, count)


def fit_to_data(cfg: Any, found: Mapping[str, Contents], mask_on: bool | None) -> None:
    """Checks that the data sets are usable for training and test, and adapts mask settings to them.

    Args:
        cfg: the configuration, not frozen. ``MODEL.MASK_ON`` is disabled if any object has no mask,
            ``INPUT.MASK_FORMAT`` set to ``bitmask`` if some are run lengths.
        found: by name.
        mask_on: ``MODEL.MASK_ON`` as set by the user, if at all.

    Raises:
        UserError: if there is nothing to train or test on, or the user requires masks and some are
            missing.
    """
    train, test = (
        {name: found[name] for name in names if name in found}
        for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
    )
    problem = next(role_problems(train, test), None) or mask_problem(found, mask_on)
    if problem is not None:
        raise UserError(problem)
    for note in seen_in_training(train, test):
        print(f"warning: {note}")
    if cfg.MODEL.MASK_ON and (why := without_masks(found)) is not None:
        cfg.MODEL.MASK_ON = False
        print(f"boxes only, Faster R-CNN (MODEL.MASK_ON False): {why}")
    if cfg.MODEL.MASK_ON and has_run_lengths(train) and cfg.INPUT.MASK_FORMAT != "bitmask":
        cfg.INPUT.MASK_FORMAT = "bitmask"
        print("masks as bitmaps (INPUT.MASK_FORMAT bitmask): some are run lengths, not polygons")


def _located(name: str) -> DetectionSet:
    """The location of a registered data set."""
    if name in _sets:
        return _sets[name]
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
