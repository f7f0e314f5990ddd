"""Compares the training and test sets of a run.

Training and doctor use the same functions, so that their findings agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intl_transfer.data.annotations import Contents, listed
from intl_transfer.errors import did_you_mean
from intl_transfer.files.yamls import read_yaml
from intl_transfer.places import config_folder

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


def agree(found: Mapping[str, Contents]) -> Agreement:
    """Reconciles classes and their order by name.

    The first data set determines them. Others may have them in another order or with other ids, may
    lack some, and may list further ones without objects.

    Args:
        found: by name of the set, the training sets first.
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
        if contents.classes != agreement.classes:
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
        if contents.annotated and all(a.ignored for a in contents.all_annotations()):
            yield (
                f"no object that counts in '{name}' (crowds and difficult ones do not): all its "
                "metrics would be undefined"
            )


def _is_trained_on(annotation: Any) -> bool:
    left, top, right, bottom = annotation.box
    # Difficult objects of VOC are trained on, crowds of COCO are not.
    return (annotation.corners or not annotation.ignored) and right > left and bottom > top


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
    for file, values in _with_bases(config):
        shipped = _CONFIGS / file.name
        if shipped.is_file() and shipped.read_bytes() == file.read_bytes():
            return None  # and so are all its bases
        model = values.get("MODEL")
        if isinstance(model, dict) and "MASK_ON" in model:
            return bool(model["MASK_ON"])
    return None


def roles_in(config: Path) -> tuple[list[str], list[str]]:
    """Names of the training and test sets in a configuration or its bases."""
    roles: dict[str, list[str]] = {}
    for _, values in _with_bases(config):
        block = values.get("DATASETS")
        for role in ("TRAIN", "TEST"):
            given = block.get(role) if isinstance(block, dict) else None
            if given is not None and role not in roles:
                roles[role] = _names(given)
    return roles.get("TRAIN", []), roles.get("TEST", [])


def _names(given: Any) -> list[str]:
    """A list of names, also from a Python tuple, which YAML reads as text."""
    if isinstance(given, str):
        return [part.strip(" '\"") for part in given.strip("() ").split(",") if part.strip(" '\"")]
    return [str(name) for name in given] if isinstance(given, (list, tuple)) else []


def _with_bases(config: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A configuration, followed by its bases."""
    seen: set[Path] = set()
    file: Path | None = config
    while file is not None and file.is_file() and file.resolve() not in seen:
        seen.add(file.resolve())
        values = read_yaml(file)
        yield file, values
        base = values.get("_BASE_")
        base = base[0] if isinstance(base, list) and base else base
        file = file.parent / Path(base).expanduser() if isinstance(base, str) else None
