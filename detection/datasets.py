"""Data sets: registered with Detectron2, and checked before a model is built.

Detectron2 gets its records from this project's one reader (:mod:`intl_transfer.data.annotations`),
and so do the evaluators and whoever draws pictures.
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
    has_run_lengths,
    mask_problem,
    role_problems,
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

# What this project has registered in this process: standard sets, and what a configuration names.
_sets: dict[str, DetectionSet] = {}
_custom: dict[str, DetectionSet] = {}


def register(block: Mapping[str, Any] | None = None) -> None:
    """Registers the standard sets and what a configuration names; harmless when called again.

    Sets that Detectron2 has registered under a standard name are read by this project's reader
    from then on.

    Args:
        block: the configuration's ``CUSTOM_DATASETS``.

    Raises:
        UserError: if the block cannot be understood, or takes the name of another set.
    """
    root = data_root()
    for one in standard_sets(root).values():
        _register(one)
    for name, one in custom_sets(block or {}, root, "the configuration").items():
        if name not in _custom and name in DatasetCatalog.list():
            raise UserError(f"CUSTOM_DATASETS.{name}: there is a data set of this name already")
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
    """Reads a registered set; its images are neither opened nor decoded.

    Raises:
        UserError: naming what is missing or wrong.
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
    """Sets what Detectron2 allows to be set once: the annotations may have changed since."""
    if metadata.get(key, value) != value:
        delattr(metadata, key)
    setattr(metadata, key, value)


def in_order(found: Contents, kind: str) -> list[Any]:
    """Ids of a set's images in the order in which Detectron2's loaders have them.

    Args:
        found: what is in it.
        kind: its layout.
    """
    return sorted(found.images) if kind == "coco" else list(found.images)


def records(found: Contents, kind: str) -> list[dict[str, Any]]:
    """A set as Detectron2's loaders give it: one dictionary an image.

    Args:
        found: what is in it.
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
    return {name: len(opened.images) for name, opened in examine(names).items()}


def examine(names: list[str]) -> dict[str, Contents]:
    """As :func:`check`; returns what is in each set."""
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
    """What the sets hold, for records."""
    return {
        name: detection_contents.described(_located(name), opened) for name, opened in found.items()
    }


def settle_classes(cfg: Any, found: dict[str, Contents]) -> None:
    """Settles classes and their order by name, in the data and in the configuration.

    The first training set decides. Sets of one's own that have them in another order are read in
    this one from here on: their ``CLASSES`` are written into the configuration, which workers and
    the run directory so know.

    Args:
        cfg: the configuration, not frozen.
        found: by name, the training sets first; contents are put under the common classes.

    Raises:
        UserError: if a set has objects of other classes, or a published set has another number of
            classes than the configuration.
    """
    agreement = agree(found, [name for name in found if name not in _custom])
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
    if first not in _custom:
        raise UserError(
            f"{classes_key(cfg)} is {configured}, but '{first}' has {count} classes "
            f"({', '.join(found[first].classes[:5])} ...); give {classes_key(cfg)} {count}"
        )
    print(f"{count} classes, as '{first}' has (the configuration: {configured})")
    set_number_of_classes(cfg, count)


def fit_to_data(cfg: Any, found: Mapping[str, Contents], asked: bool | None) -> None:
    """Makes sure that the sets can be trained and tested on, and has masks follow them.

    Args:
        cfg: the configuration, not frozen. ``MODEL.MASK_ON`` is turned off where not every object
            has a mask, ``INPUT.MASK_FORMAT`` set to ``bitmask`` where some are run lengths.
        found: by name.
        asked: ``MODEL.MASK_ON`` as the user gave it, if at all.

    Raises:
        UserError: if there is nothing to train on or to count, or the user insists on masks.
    """
    train, test = (
        {name: found[name] for name in names if name in found}
        for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
    )
    problem = next(role_problems(train, test), None) or mask_problem(found, asked)
    if problem is not None:
        raise UserError(problem)
    if cfg.MODEL.MASK_ON and (why := without_masks(found)) is not None:
        cfg.MODEL.MASK_ON = False
        print(f"boxes alone, Faster R-CNN (MODEL.MASK_ON False): {why}")
    if cfg.MODEL.MASK_ON and has_run_lengths(train) and cfg.INPUT.MASK_FORMAT != "bitmask":
        cfg.INPUT.MASK_FORMAT = "bitmask"
        print("masks as pixels (INPUT.MASK_FORMAT bitmask): some are run lengths, not polygons")


def _located(name: str) -> DetectionSet:
    """Where a registered set lies."""
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
