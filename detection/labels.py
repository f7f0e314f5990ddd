"""Few labels: a fixed subset of training images whose annotations are used.

``DATASETS.LABELS.FRACTION`` and ``SEED`` draw a list, ``LIST`` names a file of image ids; see
:mod:`intl_transfer.data.label_lists`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import get_detection_dataset_dicts
from detectron2.data.build import filter_images_with_only_crowd_annotations

from intl_transfer.data.label_lists import lines_for, lists
from intl_transfer.errors import UserError
from intl_transfer.runs import write_atomically
from intl_transfer.runs.controls import shuffled
from intl_transfer.runs.records import Labels

#: File of the ids in a run directory, one per line, in the form of ``DATASETS.LABELS.LIST``.
FILE = "train_images.txt"


def chosen(cfg: Any, sets: Mapping[str, Sequence[Any]]) -> dict[str, list[str]]:
    """The images of each training set whose labels are used.

    If these are all, the configuration is reset to that of a full run.

    Args:
        cfg: the configuration; may be frozen if nothing needs to be reset.
        sets: ids of all images, by the name of the training set.

    Returns:
        By name the ids as text, sorted; empty for a full run.

    Raises:
        UserError: for an invalid fraction, and for a list that cannot be read, contains other
            images, or is empty.
    """
    labels = cfg.DATASETS.LABELS
    found = lists(labels.FRACTION, labels.SEED, labels.LIST, sets)
    if any(len(found[name]) < len(ids) for name, ids in sets.items()):
        return found
    if labels.LIST or labels.FRACTION != 1.0:
        labels.LIST, labels.FRACTION, labels.SEED = "", 1.0, 0
        print("the labels are those of all images: a full run")
    return {}


def described(cfg: Any, ids: Sequence[str], available: int) -> Labels:
    """Describes a list, for records.

    Args:
        cfg: the configuration.
        ids: the list.
        available: number of images.
    """
    labels = cfg.DATASETS.LABELS
    digest = hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()
    drawn_by = {} if labels.LIST else {"fraction": labels.FRACTION, "seed": labels.SEED}
    return Labels(**drawn_by, images=len(ids), available=available, digest=digest)


def overall(cfg: Any, lists: Mapping[str, Sequence[str]], available: int) -> Labels | None:
    """Describes the lists of all training sets together, for results; None for a full run."""
    ids = [one for name in sorted(lists) for one in lists[name]]
    return described(cfg, ids, available) if lists else None


def suffix(labels: Labels | None) -> str:
    """The suffix of a schedule's name: ``-10pct``, ``-list``, or "" for a full run."""
    if labels is None:
        return ""
    return "-list" if labels.fraction is None else f"-{100 * labels.fraction:g}pct"


def in_words(labels: Labels) -> str:
    """``10 % of the labels: 11,829 of 118,287 images (list 1a2b3c4d)``."""
    share = "a list" if labels.fraction is None else f"{100 * labels.fraction:g} %"
    return (
        f"{share} of the labels: {labels.images:,} of {labels.available:,} images (list "
        f"{str(labels.digest)[:8]}, in {FILE})"
    )


def write_list(folder: str | Path, lists: Mapping[str, Sequence[str]]) -> None:
    """Writes the ids of the used images to a run directory; nothing for a full run."""
    if lists:
        text = "".join(f"{line}\n" for line in lines_for(lists))
        write_atomically(Path(folder) / FILE, lambda out: out.write(text.encode()))


def training_records(cfg: Any) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Detectron2's records of the training images, and the lists used.

    In the order of a full run. A set that is named twice gives its images twice, as there.
    """
    names, drop_empty = cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    if not cfg.DATASETS.LABELS.LIST and cfg.DATASETS.LABELS.FRACTION == 1.0:
        return _controlled(cfg, get_detection_dataset_dicts(names, filter_empty=drop_empty)), {}
    sets = [(name, get_detection_dataset_dicts([name], filter_empty=False)) for name in names]
    lists = chosen(cfg, {name: [r["image_id"] for r in own] for name, own in sets})
    records = []
    for name, own in sets:
        kept = set(lists.get(name, ()))
        records += [r for r in own if not lists or str(r["image_id"]) in kept]
    if drop_empty:
        records = filter_images_with_only_crowd_annotations(records)
    if not records:
        raise UserError(
            f"none of the {sum(map(len, lists.values()))} images whose labels are used has an "
            "object; use more of them, or another DATASETS.LABELS.SEED"
        )
    return _controlled(cfg, records), lists


def _controlled(cfg: Any, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records, with shuffled classes for a control of labels.

    Boxes and masks are unchanged, so only localization can be learned.
    """
    if not cfg.CONTROL.SHUFFLE_LABELS:
        return records
    objects = [annotation for record in records for annotation in record["annotations"]]
    names = shuffled([one["category_id"] for one in objects], cfg.SEED)
    for annotation, name in zip(objects, names, strict=True):
        annotation["category_id"] = name
    return records
