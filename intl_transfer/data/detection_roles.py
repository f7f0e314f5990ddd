"""Compares the training and test sets of a run.

Training and doctor use the same functions, so that their findings agree.
"""

from __future__ import annotations

import ast
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intl_transfer.data.annotations import Annotation, Contents, listed
from intl_transfer.data.label_lists import lists
from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.files.yaml_bases import files_of, merged
from intl_transfer.places import config_folder

#: Detectron2's default of ``NUM_CLASSES``.
_CLASSES = 80
_ROLES = ("TRAIN", "TEST")
_CONFIGS = config_folder("detection")


@dataclass
class Agreement:
    """Data sets with a common list of classes.

    Attributes:
        classes: names in order: those of the first set.
        contents: by name of the set, all with these classes.
        problems: one line each.
        notes: one line each.
    """

    classes: tuple[str, ...] = ()
    contents: dict[str, Contents] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def agree(found: Mapping[str, Contents], standard: Container[str] = ()) -> Agreement:
    """Settles classes and their order by name.

    The first data set determines them. Others may have them in another order or with other ids, may
    lack some, and may list further ones without objects.

    Args:
        found: by name of the set, the training sets first.
        standard: names of sets that stay as they are published.
    """
    agreement = Agreement()
    first = next(iter(found), None)
    if first is None:
        return agreement
    agreement.classes = found[first].classes
    for name, contents in found.items():
        strange = [c for c in contents.classes if c not in agreement.classes]
        counts = contents.objects
        used = [c for c in strange if counts[c]]
        if used:
            near = did_you_mean(used[0], agreement.classes)
            agreement.problems.append(
                f"'{name}' has other classes than '{first}': {counts[used[0]]} object(s) of "
                f"{listed(used)}; '{first}' has {listed(agreement.classes)}.{near} Name all "
                "classes in CLASSES of CUSTOM_DATASETS, for each set"
            )
            continue
        if contents.classes != agreement.classes and name in standard:
            agreement.problems.append(
                f"'{name}' has its classes in another order than '{first}', and its name is taken: "
                "give it another in CUSTOM_DATASETS, with the CLASSES of both"
            )
        elif contents.classes != agreement.classes:
            lacking = [c for c in agreement.classes if c not in contents.classes]
            parts = [
                "in the order of" if not lacking and not strange else "by the names of",
                f"'{first}'",
            ]
            if lacking:
                parts.append(f"(it lacks {listed(lacking)})")
            if strange:
                parts.append(f"({listed(strange)}, without objects, ignored)")
            agreement.notes.append(f"classes of '{name}' taken {' '.join(parts)}")
            kept = contents.relabeled([*agreement.classes, *strange])
            size = len(agreement.classes)
            kept.classes, kept.category_ids = kept.classes[:size], kept.category_ids[:size]
            contents = kept
        agreement.contents[name] = contents
    return agreement


def classes_key(architecture: str) -> str:
    """The key of the number of classes, which differs for a RetinaNet.

    Args:
        architecture: ``MODEL.META_ARCHITECTURE``.
    """
    return f"MODEL.{'RETINANET' if architecture == 'RetinaNet' else 'ROI_HEADS'}.NUM_CLASSES"


def count_problem(
    found: Mapping[str, Contents], standard: Container[str], key: str, configured: int
) -> str | None:
    """The problem if a published first data set has another number of classes than configured.

    A custom one determines the number.

    Args:
        found: by name of the set, the training sets first.
        standard: names of sets that stay as they are published.
        key: of the number in the configuration.
        configured: the number there.
    """
    first = next(iter(found), None)
    if first is None or first not in standard or len(found[first].classes) == configured:
        return None
    classes = found[first].classes
    return (
        f"{key} is {configured}, but '{first}' has {len(classes)} classes "
        f"({', '.join(classes[:5])} ...); give {key} {len(classes)}"
    )


def role_problems(train: Mapping[str, Contents], test: Mapping[str, Contents]) -> Iterator[str]:
    """Problems that prevent training or testing.

    Args:
        train: by name; may be empty, for an evaluation alone.
        test: by name.
    """
    if train and not any(_is_trained_on(a) for c in train.values() for a in c.all_annotations()):
        yield (
            f"no object to train on in {listed(train)}: expected at least one that is not a crowd "
            "and has a box of some size"
        )
    for name, contents in test.items():
        counted = sum(_counts(a) for a in contents.all_annotations())
        if contents.annotated and not counted:
            yield (
                f"no object that counts in '{name}' (crowds, difficult ones and boxes of no size "
                "do not): all metrics of its evaluation would be empty or 0"
            )
        elif contents.blank_masks >= counted > 0:
            yield (
                f"no mask in '{name}' has a single pixel: all metrics of masks would be 0. Leave "
                "the masks out, and boxes alone are evaluated, or correct them"
            )
        if (divided := _divided(contents)) is not None:
            yield (
                f"{divided} is several images of '{name}', and their objects differ: what is found "
                "in one would be wrong in the other. List it once, with all of its objects"
            )


def _divided(contents: Contents) -> Path | None:
    """The first file that several images have with different objects; None if there is none."""

    def objects(key: Any) -> list[Annotation]:
        found = contents.annotations.get(key, [])
        return sorted(found, key=lambda one: (one.label, one.bbox, one.ignored))

    first: dict[Path, Any] = {}
    for key, image in contents.images.items():
        other = first.setdefault(image.file, key)
        if other != key and objects(other) != objects(key):
            return image.file
    return None


def seen_in_training(train: Mapping[str, Contents], test: Mapping[str, Contents]) -> Iterator[str]:
    """Says of each test set how many of its images are trained on, by their files.

    Args:
        train: by name.
        test: by name.
    """
    folders: dict[Path, Path] = {}

    def files(contents: Contents) -> set[Path]:
        there = {image.file for image in contents.images.values()}
        for folder in {file.parent for file in there} - folders.keys():
            folders[folder] = folder.resolve()
        return {folders[file.parent] / file.name for file in there}

    seen = {name: files(contents) for name, contents in train.items()}
    for name, contents in test.items():
        own = files(contents)
        for other, theirs in seen.items():
            if common := len(own & theirs):
                yield (
                    f"{common:,} of the {len(own):,} images of '{name}', which is tested on, are "
                    f"trained on ('{other}'): the metrics are not those of unseen images"
                )


def label_problem(train: Mapping[str, Contents], chosen: Mapping[str, Sequence[str]]) -> str | None:
    """What is wrong where few labels are used, and no object is among them.

    Args:
        train: by name.
        chosen: ids of the images whose labels are used, by name; empty for all of them.
    """
    if not chosen:
        return None
    for name, ids in chosen.items():
        wanted = set(ids)
        for key, found in train[name].annotations.items():
            if str(key) in wanted and any(map(_is_trained_on, found)):
                return None
    return (
        f"none of the {sum(map(len, chosen.values()))} images whose labels are used has an object; "
        "take more of them, or another DATASETS.LABELS.SEED"
    )


def _is_trained_on(annotation: Annotation) -> bool:
    # Difficult objects of VOC are trained on, crowds of COCO are not.
    return (annotation.corners or not annotation.ignored) and _has_size(annotation)


def _counts(annotation: Annotation) -> bool:
    return not annotation.ignored and _has_size(annotation)


def _has_size(annotation: Annotation) -> bool:
    left, top, right, bottom = annotation.box
    return right > left and bottom > top


def without_masks(found: Mapping[str, Contents]) -> str | None:
    """Why masks cannot be used with these data sets; None if all objects have one.

    Args:
        found: by name.
    """
    for name, contents in found.items():
        masked, bare = contents.masks
        if bare:
            return f"'{name}' has " + (
                f"{bare:,} of {masked + bare:,} objects without a mask" if masked else "no masks"
            )
    return None


def mask_problem(found: Mapping[str, Contents], mask_on: bool | None) -> str | None:
    """The problem if the user requires masks (``MODEL.MASK_ON True``) and some are missing."""
    why = without_masks(found) if mask_on else None
    if why is None:
        return None
    return (
        f"MODEL.MASK_ON is True, but {why}. Remove it to train boxes only (Faster R-CNN), or add a "
        "mask to every object"
    )


def has_run_lengths(found: Mapping[str, Contents]) -> bool:
    """Whether any mask is not polygons; all are then used as bitmaps."""
    return any(
        isinstance(a.segmentation, dict) and not a.ignored
        for contents in found.values()
        for a in contents.all_annotations()
    )


def mask_setting(config: Path, overrides: Sequence[str] = ()) -> bool | None:
    """``MODEL.MASK_ON`` as set by the user, on the command line or in their own file.

    Configurations of this project do not count: they follow the data.

    Args:
        config: the configuration.
        overrides: ``KEY VALUE KEY VALUE ...``.
    """
    for key, value in zip(overrides[::2], overrides[1::2], strict=False):
        if key == "MODEL.MASK_ON":
            return str(value).strip().lower() in ("true", "1")
    for file, values in reversed(files_of(config)):
        model = values.get("MODEL")
        if isinstance(model, dict) and "MASK_ON" in model:
            shipped = _CONFIGS / file.name
            if shipped.is_file() and shipped.read_bytes() == file.read_bytes():
                return None
            return bool(model["MASK_ON"])
    return None


def roles_in(config: Path) -> tuple[list[str], list[str]]:
    """Names of the sets that a configuration trains on and is tested on, in it or its bases.

    Raises:
        UserError: if either is no list of names.
    """
    block = _datasets(config)
    train, test = (_names(block.get(role), f"{config}: DATASETS.{role}") for role in _ROLES)
    return train, test


def classes_in(config: Path) -> tuple[str, Any]:
    """The key and the number of classes of a configuration, in it or its bases.

    Args:
        config: the configuration.
    """
    block = merged(config).get("MODEL")
    model = block if isinstance(block, dict) else {}
    key = classes_key(str(model.get("META_ARCHITECTURE")))
    head = model.get(key.split(".")[1])
    number = head.get("NUM_CLASSES") if isinstance(head, dict) else None
    return key, _CLASSES if number is None else number


def as_literal(text: str) -> Any:
    """A value given as text, as configurations read it: a literal of Python, or the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def labels_in(config: Path, train: Mapping[str, Contents]) -> dict[str, list[str]]:
    """The images whose labels a configuration uses, by the training set; see :func:`lists`.

    Args:
        config: the configuration.
        train: by name.
    """
    given = _datasets(config).get("LABELS")
    labels = given if isinstance(given, dict) else {}
    ids = {name: list(contents.images) for name, contents in train.items()}
    fraction, seed, place = (labels.get(key) for key in ("FRACTION", "SEED", "LIST"))
    fraction, seed = (1.0 if fraction is None else fraction), (0 if seed is None else seed)
    return lists(fraction, seed, place, ids)


def _datasets(config: Path) -> dict[str, Any]:
    block = merged(config).get("DATASETS")
    return block if isinstance(block, dict) else {}


def _names(given: Any, where: str) -> list[str]:
    """A list of names, also as YAML has a tuple of Python: text."""
    value = as_literal(given) if isinstance(given, str) else given
    if value is None:
        return []
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise UserError(f"{where} is {given!r}; expected a list of names: [{given}]")
    return list(value)
