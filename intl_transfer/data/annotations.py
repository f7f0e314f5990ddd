"""Annotations of a detection data set, in one form for both layouts, with common checks.

COCO's json and VOC's xml are read once, into the records here (:mod:`coco_annotations`,
:mod:`voc_annotations`), which are used by Detectron2's loader, the evaluators, the doctor, contact
sheets, rendered images and class lists. An irregularity with an unambiguous meaning is corrected
and counted (a note); any other is reported (a problem).
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

#: A box may reach over an edge by less than this many pixels: coordinates are rounded. Larger ones
#: are clipped.
SLACK = 1.0


@dataclass(frozen=True)
class Annotation:
    """One annotated object.

    Attributes:
        label: of its class, an index into the set's classes.
        bbox: as the layout has it, in pixels from the image's corner: COCO's x, y, width, height,
            or VOC's left, top, right, bottom.
        corners: whether ``bbox`` is the latter.
        segmentation: polygons ``[x, y, x, y, ...]``, or COCO's compressed run lengths (``size``,
            ``counts``); None without a mask.
        area: in pixels; determines whether an object is small, medium or large.
        ignored: a crowd, or difficult: neither counted nor, if a crowd, trained on.
    """

    label: int
    bbox: tuple[float, float, float, float]
    corners: bool = False
    segmentation: Any = None
    area: float = 0.0
    ignored: bool = False

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in pixels."""
        if self.corners:
            return self.bbox
        x, y, width, height = self.bbox
        return x, y, x + width, y + height


@dataclass(frozen=True)
class AnnotatedImage:
    """One image: its file, and its size in pixels, upright."""

    file: Path
    width: int
    height: int


@dataclass
class Contents:
    """The content of a data set.

    Attributes:
        classes: names in order; a label is an index into them.
        category_ids: by label, the category ids for writing detections.
        labels: by category id as COCO's file has it, which may be another; empty for VOC.
        images: by id, in the order of the file.
        annotations: by image id; images without objects may be missing.
        problems: one line each; empty for a usable data set.
        notes: corrections made while reading, with counts; one line each.
        blank_masks: number of masks without a single pixel, of objects that count.
        annotated: False if the file has no list of annotations, as for COCO's test images.
    """

    classes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    labels: dict[Any, int] = field(default_factory=dict)
    images: dict[Any, AnnotatedImage] = field(default_factory=dict)
    annotations: dict[Any, list[Annotation]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    blank_masks: int = 0
    annotated: bool = True

    def all_annotations(self) -> Iterator[Annotation]:
        """Every object of the set."""
        for found in self.annotations.values():
            yield from found

    @property
    def objects(self) -> Counter[str]:
        """Number of objects of each class."""
        labels = Counter(one.label for one in self.all_annotations())
        return Counter({self.classes[label]: count for label, count in labels.items()})

    @property
    def masks(self) -> tuple[int, int]:
        """Number of objects with a mask, and without."""
        found = sum(one.segmentation is not None for one in self.all_annotations())
        return found, sum(map(len, self.annotations.values())) - found

    def relabeled(self, classes: Sequence[str]) -> Contents:
        """The same data with another list of classes.

        Args:
            classes: names in order. Those that this set's objects have must be among them; their
                ids are kept, and new classes get new ids.
        """
        if tuple(classes) == self.classes:
            return self
        label = {name: number for number, name in enumerate(classes)}
        ids = dict(zip(self.classes, self.category_ids, strict=True))
        free = max(ids.values(), default=0)
        numbers = []
        for name in classes:
            free += name not in ids
            numbers.append(ids.get(name, free))
        annotations = {
            image: [replace(one, label=label[self.classes[one.label]]) for one in found]
            for image, found in self.annotations.items()
        }
        return replace(
            self,
            classes=tuple(classes),
            category_ids=tuple(numbers),
            labels={
                number: label[self.classes[old]]
                for number, old in self.labels.items()
                if self.classes[old] in label
            },
            annotations=annotations,
        )


class Findings:
    """Collects problems and notes: the first of each kind, with counts.

    Attributes:
        published: whether it is a published data set. Irregularities that Detectron2 and
            pycocotools have always accepted in it are then kept, and noted.
    """

    def __init__(self) -> None:
        self.published = False
        self._problems: dict[str, list[str]] = {}
        self._notes: dict[str, tuple[str, str, int]] = {}

    def problem(self, kind: str, text: str) -> None:
        """Adds a problem."""
        self._problems.setdefault(kind, []).append(_printable(text))

    def doubt(self, kind: str, text: str) -> None:
        """Adds a problem, or a note for a published data set."""
        if self.published:
            self.note(kind, "left as published", text)
        else:
            self.problem(kind, text)

    def note(self, kind: str, text: str, where: str) -> None:
        """Adds a note on a correction.

        Args:
            kind: of problem; may occur many times.
            text: the correction.
            where: location of this occurrence.
        """
        first, count = self._notes[kind][1:] if kind in self._notes else (_printable(where), 0)
        self._notes[kind] = (text, first, count + 1)

    @property
    def any_problem(self) -> bool:
        """Whether there is any so far."""
        return bool(self._problems)

    def problems(self) -> list[str]:
        """One line a kind."""
        return [
            found[0] + (f" ({len(found) - 1} more of this kind)" if len(found) > 1 else "")
            for found in self._problems.values()
        ]

    def notes(self) -> list[str]:
        """One line a kind, with its number."""
        return [
            f"{text}: {count:,}, the first {where}" for text, where, count in self._notes.values()
        ]


class Repeats:
    """Finds objects that are listed several times, under whatever ids."""

    def __init__(self) -> None:
        self._masks: dict[tuple[Any, ...], list[Any]] = {}

    def has(self, image: Any, one: Annotation) -> bool:
        """Whether an image has had an object of this class, box, mask and mark; notes it if not.

        Args:
            image: its id.
            one: the object. Its area does not distinguish it.
        """
        masks = self._masks.setdefault((image, one.label, one.bbox, one.ignored), [])
        if one.segmentation in masks:
            return True
        masks.append(one.segmentation)
        return False


Place = Literal["inside", "cut", "outside"]


def place_of(
    box: tuple[float, float, float, float], width: int, height: int
) -> tuple[Place, tuple[float, float, float, float]]:
    """Whether a box is inside its image, by one rule for both layouts.

    Args:
        box: left, top, right, bottom in pixels.
        width: of the image.
        height: of the image.

    Returns:
        ``inside`` and the unchanged box, if it exceeds no edge by :data:`SLACK` or more; ``cut``
        and the clipped box; or ``outside``, if nothing remains.
    """
    left, top, right, bottom = box
    cut = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
    flat = right <= left or bottom <= top  # empty: a point or line within the image is inside
    if cut[2] < cut[0] or cut[3] < cut[1] or (not flat and (cut[2] == cut[0] or cut[3] == cut[1])):
        return "outside", box
    over = max(-left, -top, right - width, bottom - height)
    return ("inside", box) if over < SLACK else ("cut", cut)


def are_relative(numbers: Sequence[float], width: int, height: int) -> bool:
    """Whether a box's numbers can only be parts of its image's size, in either layout.

    Args:
        numbers: as they are written: corners, or a corner, width and height.
        width: of the image.
        height: of the image.

    Returns:
        True where none is above 1 and not all are whole: as pixels, less than one of them.
    """
    small = min(numbers) >= 0 and max(numbers) <= 1.01
    return small and min(width, height) > 2 and any(number != int(number) for number in numbers)


class Folder:
    """Finds files in a folder with one listing per folder instead of one call per file.

    Args:
        root: the folder; names may also be absolute, or outside of it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[Path, set[str]] = {}

    def has(self, path: Path) -> bool:
        """Whether a file exists."""
        return path.name in self.names(path.parent)

    def names(self, folder: Path) -> set[str]:
        """All names in a folder; empty if it does not exist."""
        if folder not in self._listed:
            try:
                self._listed[folder] = set(os.listdir(folder))
            except (OSError, ValueError):
                self._listed[folder] = set()
        return self._listed[folder]

    def find(self, name: str) -> tuple[Path, str | None] | None:
        """The file of this name, allowing for other separators and Unicode forms.

        Returns:
            The path and the kind of spelling, if not literal; None if there is no such file.
        """
        if self.has(self.root / name):
            return self.root / name, None
        spellings = {"separators of Windows": name.replace("\\", "/")}
        spellings["accents in Unicode's form NFC"] = unicodedata.normalize("NFC", name)
        spellings["accents in Unicode's form NFD"] = unicodedata.normalize("NFD", name)
        for what, other in spellings.items():
            if other != name and self.has(self.root / other):
                return self.root / other, what
        return None

    def hint(self, name: str) -> str:
        """Names in the same folder that differ only in case or extension, for a message."""
        path = self.root / name.replace("\\", "/")
        stem = path.stem.lower()
        near = sorted(n for n in self.names(path.parent) if Path(n).stem.lower() == stem)
        if near:
            return f" There is {' and '.join(repr(n) for n in near[:3])}."
        # Of another machine, or with the folder's own name before it.
        return f" The folder itself has '{path.name}'." if self.has(self.root / path.name) else ""


def listed(names: Iterable[str], limit: int = 8) -> str:
    """The first few names, for a message."""
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def is_text(value: Any) -> TypeGuard[str]:
    """Whether a value is non-blank text that can be encoded."""
    return isinstance(value, str) and bool(value.strip()) and _printable(value) == value


def _printable(text: str) -> str:
    """Without lone surrogates, which cannot be encoded."""
    return text.encode("utf-8", "backslashreplace").decode()


def shown(value: Any) -> str:
    """A value from a file, shortened for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
