"""Reads COCO's json: all that Detectron2's ``load_coco_json`` reads, and more."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intl_transfer.data.annotations import (
    AnnotatedImage,
    Annotation,
    Contents,
    Findings,
    Folder,
    Repeats,
    is_text,
    listed,
    place_of,
    shown,
)
from intl_transfer.data.class_names import canonical, unique_names
from intl_transfer.data.coco_ids import (
    KnownIds,
    are_kept,
    category_ids,
    usable_id,
)
from intl_transfer.data.coco_suspicions import Suspicions
from intl_transfer.data.detection_sets import DetectionSet
from intl_transfer.data.images import MAX_PIXELS, UnreadableImageError, read_header
from intl_transfer.data.segmentations import (
    Box,
    MaskError,
    extent,
    is_number,
    is_whole,
    normalized,
    pixel_area,
)
from intl_transfer.errors import did_you_mean
from intl_transfer.files.jsons import unique_keys

_PARTS = ("images", "annotations", "categories")
_TWICE = "annotations that are listed twice, used once"


def read_coco(one: DetectionSet, with_images: bool = True) -> Contents:
    """Reads a COCO-style annotation file.

    Args:
        one: its location; its ``classes``, if given, determine the classes and their order.
        with_images: False looks for no image, as where detections made elsewhere are evaluated;
            sizes must then be in the file, and names of files may be missing.

    Returns:
        The content, with problems and notes; only images whose size the file does not state are
        opened.
    """
    findings = Findings()
    content = _load(one.annotations, findings)
    if content is None:
        return Contents(problems=findings.problems())
    findings.published = len(content["images"]) == one.known_images
    reader = _Reader(one, findings, with_images)
    enabled = gc.isenabled()
    gc.disable()  # millions of small objects, none of them garbage
    try:
        contents = reader.read(content)
    finally:
        if enabled:
            gc.enable()
    contents.problems, contents.notes = findings.problems(), findings.notes()
    return contents


def _load(file: Path, findings: Findings) -> dict[str, Any] | None:
    """The file's three lists; ``annotations`` is None if missing."""
    try:
        content = json.loads(file.read_bytes(), object_pairs_hook=unique_keys)
    except OSError as error:
        findings.problem("file", f"{file} cannot be read ({error.strerror or error})")
        return None
    except (ValueError, RecursionError) as error:
        findings.problem("file", f"{file} is not a COCO annotation file: no valid JSON ({error})")
        return None
    if not isinstance(content, dict):
        kind = "a list, as results files are" if isinstance(content, list) else shown(content)
        findings.problem(
            "file",
            f"{file} is not a COCO annotation file: it holds {kind}; expected an object with "
            f"{', '.join(_PARTS)}",
        )
        return None
    for part in _PARTS:
        value = content.get(part)
        if part == "annotations" and part not in content:
            continue
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            found = shown(value) if part in content else "nothing"
            findings.problem(
                "file",
                f"{file} is not a COCO annotation file: {part} is {found}; expected a list of "
                "objects",
            )
            return None
    return content


class _Reader:
    def __init__(self, one: DetectionSet, findings: Findings, with_images: bool) -> None:
        self._one, self._findings = one, findings
        self._file = one.annotations
        self._folder = Folder(one.images) if with_images else None
        self._suspicions = Suspicions()
        self._blank_masks, self._repeats = 0, Repeats()

    def read(self, content: Mapping[str, Any]) -> Contents:
        contents = Contents(annotated="annotations" in content)
        images = self._images(content["images"])
        ids = list(images)
        known_images = KnownIds(images)
        # Beyond 2**53 the fast evaluator, which uses floats, would confuse ids.
        if not all(type(i) is int and 0 <= i < 2**53 for i in ids):
            if any(type(i) is int for i in ids) or len({str(i) for i in ids}) < len(ids):
                text = "image ids that are not whole numbers below 2**53, all kept as text"
                self._note("image ids", text)
            ids = [str(i) for i in ids]
            if len(set(ids)) < len(ids):
                self._problem("image ids", "image ids differ in their type only; number them")
        key = dict(zip(images, ids, strict=True))
        contents.images = {key[i]: image for i, image in images.items()}
        names, numbers = self._categories(content["categories"])
        objects = content.get("annotations", [None])
        if not content["images"] or not objects:
            counts = f"{len(content['images'])} images, {len(objects)} annotations"
            self._findings.problem("empty", f"{self._file} is empty: {counts}")
        labels, categories = self._labels(names), KnownIds(names)
        found: dict[Any, dict[str, Any]] = {}
        for place, given in enumerate(content.get("annotations", [])):
            image = known_images.find(given.get("image_id"))
            at = f"annotation {shown(given['id'])}" if "id" in given else f"annotation no. {place}"
            if image is None:
                self._problem(
                    "image", f"{at} is of image {shown(given.get('image_id'))}, which is not listed"
                )
                continue
            if self._is_repeated(given, at, found, place):
                continue
            category = categories.find(given.get("category_id"))
            if image != given["image_id"] or category not in (None, given.get("category_id")):
                text = "ids written otherwise than where they are listed (1 for '1' or '01')"
                self._note("spelling of an id", text, at)
            name = names.get(category)
            label = None if name is None else labels.get(name)
            if label is None:
                self._unknown_class(at, name, given)
                continue
            record = self._new_annotation(given, at, label, image, images[image])
            if record is not None:
                contents.annotations.setdefault(key[image], []).append(record)
        for kind, text in self._suspicions.found():
            self._findings.doubt(kind, f"{self._file}: {text}")
        order = sorted(labels.values())
        by_label = {label: name for name, label in labels.items()}
        contents.classes = self._one.classes or tuple(by_label[label] for label in order)
        contents.category_ids = category_ids(contents.classes, numbers)
        contents.labels = {i: labels[name] for i, name in names.items() if name in labels}
        if not are_kept(numbers.values()):
            text = "ids of categories that are no numbers from 0 on: numbered from 1"
            self._note("category ids", text, repr(next(iter(numbers.values()))))
        contents.blank_masks = self._blank_masks
        return contents

    def _problem(self, kind: str, text: str) -> None:
        self._findings.problem(kind, f"{self._file}: {text}")

    def _note(self, kind: str, text: str, where: str = "") -> None:
        self._findings.note(kind, text, where or f"in {self._file}")

    # --- images ---

    def _images(self, given: list[dict[str, Any]]) -> dict[Any, AnnotatedImage]:
        images: dict[Any, AnnotatedImage] = {}
        entries: dict[Any, tuple[Any, ...]] = {}
        absent: list[str] = []
        for place, entry in enumerate(given):
            at = f"image {shown(entry['id'])}" if "id" in entry else f"image no. {place}"
            number = usable_id(entry.get("id"))
            name = entry.get("file_name", None if self._folder else str(number))
            if number is None:
                self._problem("image id", f"{at} has no usable id; expected a number or text")
            elif not is_text(name) or "\0" in name:
                self._problem("file name", f"{at}: file_name is {shown(name)}; expected text")
            elif number in entries:
                if entries[number] == (name, entry.get("width"), entry.get("height")):
                    self._note("image twice", "images listed twice, used once", at)
                else:
                    self._problem(
                        "image twice", f"{at} is listed twice, as {entries[number][0]} and {name}"
                    )
            elif (found := self._find(name)) is None:
                absent.append(name)
            else:
                entries[number] = (name, entry.get("width"), entry.get("height"))
                if found[1] is not None:
                    self._note("spelling", f"file names found by other {found[1]}", at)
                size = self._size(entry, at, found[0])
                if size is not None:
                    images[number] = AnnotatedImage(found[0], *size)
        if absent and self._folder is not None:
            near = self._folder.hint(absent[0])
            self._findings.problem(
                "absent",
                f"{self._file} names {len(absent)} image(s) that {self._one.images} lacks, the "
                f"first: {absent[0]}.{near}",
            )
        counts: dict[Path, int] = {}
        for image in images.values():
            counts[image.file] = counts.get(image.file, 0) + 1
        for file, count in counts.items():
            if count > 1:
                self._note("same file", "files that several images have", str(file))
        return images

    def _find(self, name: str) -> tuple[Path, str | None] | None:
        return (Path(name), None) if self._folder is None else self._folder.find(name)

    def _size(self, entry: dict[str, Any], at: str, file: Path) -> tuple[int, int] | None:
        sides: tuple[Any, Any] = entry.get("width"), entry.get("height")
        if all(is_whole(side) and side > 0 for side in sides) and sides[0] * sides[1] <= MAX_PIXELS:
            if not all(type(side) is int for side in sides):
                self._note("float size", "widths and heights like 64.0, taken as whole", at)
            return int(sides[0]), int(sides[1])
        if self._folder is None or any(side not in (None, 0) for side in sides):
            self._problem(
                "size",
                f"{at}: width and height are {shown(sides[0])} and {shown(sides[1])}; expected "
                f"whole numbers above 0, of at most {MAX_PIXELS:,} pixels together",
            )
            return None
        try:
            header = read_header(file)
        except UnreadableImageError as error:
            self._findings.problem("unreadable", str(error))
            return None
        self._note("no size", "sizes taken from the images, since the file does not say them", at)
        return header.width, header.height

    # --- classes ---

    def _categories(self, given: list[dict[str, Any]]) -> tuple[dict[Any, str], dict[str, Any]]:
        """Names by id, and ids by name, in the order of the classes."""
        names: dict[Any, str] = {}
        for entry in given:
            number, name = usable_id(entry.get("id")), entry.get("name")
            if number is None or not is_text(name):
                self._problem(
                    "category",
                    f"a category has the id {shown(entry.get('id'))} and the name {shown(name)}; "
                    "expected a number or text, and text",
                )
                continue
            word = canonical(name)
            if word != name:
                text = "names of classes with other spaces or forms of accents, put right"
                self._note("spelling of a class", text, repr(name))
            if names.get(number, word) != word:
                self._problem(
                    "category twice",
                    f"category {shown(number)} is named {names[number]} and {word}",
                )
            else:
                names[number] = word
        if not names and not self._findings.any_problem:
            self._problem("category", "has no categories")
        if all(type(number) is int for number in names):
            names = dict(sorted(names.items()))
        for number, name in zip(names, unique_names(list(names.values())), strict=True):
            if name != names[number]:
                text = "categories of one name, distinguished by a number in the order of their ids"
                self._note("one name", text, repr(name))
                names[number] = name
        return names, {name: number for number, name in names.items()}

    def _labels(self, names: dict[Any, str]) -> dict[str, int]:
        """Labels of the classes that are read, by name."""
        named = self._one.classes
        if named is None:
            return {name: label for label, name in enumerate(names.values())}
        twice = [name for name in named if named.count(name) > 1]
        if twice:
            text = f"CLASSES names '{twice[0]}' twice; expected each name once"
            self._findings.problem("classes", f"data set '{self._one.name}': {text}")
        return {name: label for label, name in enumerate(named)}

    def _unknown_class(self, at: str, name: str | None, given: dict[str, Any]) -> None:
        if name is None:
            number = shown(given.get("category_id"))
            self._problem("class", f"{at}: category_id {number} is not among the categories")
        else:
            named = self._one.classes or ()
            self._problem(
                "class",
                f"{at} is of class '{name}'; the configuration says {listed(named)} (CLASSES)."
                f"{did_you_mean(name, named)}",
            )

    # --- objects ---

    def _is_repeated(
        self, given: dict[str, Any], at: str, found: dict[Any, dict[str, Any]], place: int
    ) -> bool:
        """Whether an object has been read already; notes ids that will be others."""
        number = usable_id(given.get("id"))
        if number is None:
            self._note("no id", "annotations without a usable id, renumbered", f"no. {place}")
            return False
        if number == 0 and type(number) is int:
            self._note("id 0", "ids counted from 0, renumbered (object 0 can never count)", at)
        if isinstance(number, str):
            self._note("id of text", "ids of annotations that are text, renumbered", at)
        earlier = found.setdefault(number, given)
        if earlier is given:
            return False
        if earlier == given:
            self._note("twice", _TWICE, at)
        else:
            text = f"{self._file}: {at} is there twice, and the two differ; give each its own id"
            self._findings.doubt("id twice", text)
            return not self._findings.published
        return True

    def _new_annotation(
        self, given: dict[str, Any], at: str, label: int, number: Any, image: AnnotatedImage
    ) -> Annotation | None:
        """An object of an image, by its id; None if it cannot be read or was there already."""
        blank_masks = self._blank_masks
        record = self._annotation(given, at, label, image)
        if record is None or self._findings.published or not self._repeats.has(number, record):
            return record
        self._note("twice", _TWICE, at)
        self._blank_masks = blank_masks
        return None

    def _annotation(
        self, given: dict[str, Any], at: str, label: int, image: AnnotatedImage
    ) -> Annotation | None:
        crowd, ignore = given.get("iscrowd"), given.get("ignore")
        if crowd not in (None, 0, 1):
            self._problem("crowd", f"{at}: iscrowd is {shown(crowd)}; expected 0 or 1")
            return None
        if ignore not in (None, 0):
            self._problem(
                "ignore",
                f"{at}: ignore is {shown(ignore)}, which means nothing to COCO's evaluation; mark "
                "regions that do not count by iscrowd 1",
            )
            return None
        try:
            mask, changed = normalized(given.get("segmentation"), image.height, image.width)
        except MaskError as error:
            self._problem("mask", f"{at}: segmentation {error}")
            return None
        if changed:
            self._note("mask form", changed, at)
        box = self._box(given, at, mask)
        if box is None:
            return None
        x, y, width, height = box
        place, cut = place_of((x, y, x + width, y + height), image.width, image.height)
        if place == "outside":
            self._problem(
                "outside",
                f"{at}: the box {list(box)} lies outside its image {image.file.name} "
                f"({image.width} x {image.height}); correct or remove the annotation",
            )
            return None
        area = self._area(given, at, box, mask, image)
        if area is None:
            return None
        if width == 0 or height == 0:
            self._note("flat", "boxes of no size, which are not trained on and never found", at)
        if place == "cut" and not self._findings.published:
            self._note("cut", "boxes cut at the edge of their image", at)
            box = cut[0], cut[1], cut[2] - cut[0], cut[3] - cut[1]
            if mask is None and abs(area - width * height) <= 0.01 * area:
                area = box[2] * box[3]
        return Annotation(label, box, False, mask, area, bool(crowd))

    def _box(self, given: dict[str, Any], at: str, mask: Any) -> Box | None:
        box = given.get("bbox")
        if box is None and mask is not None and (around := extent(mask)) is not None:
            left, top, right, bottom = around
            box = [left, top, right - left, bottom - top]
            self._note("no box", "boxes taken from masks, since none is given", at)
        if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
            self._problem(
                "box",
                f"{at}: bbox is {shown(box)}; expected four finite numbers, x, y, width, height",
            )
            return None
        if box[2] < 0 or box[3] < 0:
            self._problem(
                "box", f"{at}: bbox {box}: expected x, y, and a width and height from 0 on"
            )
            return None
        return box[0], box[1], box[2], box[3]

    def _area(
        self, given: dict[str, Any], at: str, box: Box, mask: Any, image: AnnotatedImage
    ) -> float | None:
        area, own = given.get("area"), box[2] * box[3]
        if area is not None and (not is_number(area) or area < 0):
            self._problem("area", f"{at}: area is {shown(area)}; expected a number of pixels")
            return None
        if not self._findings.published:
            size = image.width, image.height
            around = None if mask is None else extent(mask)
            if mask is not None and not pixel_area(mask, image.height, image.width):
                self._note("empty mask", "masks without a single pixel, never found", at)
                self._blank_masks += not given.get("iscrowd")
            self._suspicions.see(at, box, around, size)
            if area:
                self._suspicions.see_area(at, area, box, mask, size)
        if area is None or (area == 0 and own > 0 and not self._findings.published):
            self._note("no area", "areas computed from mask or box, since none is given", at)
            area = own if mask is None else pixel_area(mask, image.height, image.width)
        return area
