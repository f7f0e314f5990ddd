"""What is in a detection data set, and what is wrong with it: json and xml, without Detectron2."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intl_transfer.data.detection_sets import DetectionSet
from intl_transfer.data.source import SAMPLE
from intl_transfer.runs.atomic import sha256_file
from intl_transfer.runs.records import ImageSet


@dataclass(frozen=True)
class Thing:
    """One annotated object.

    Attributes:
        name: of its class.
        box: left, top, right, bottom in pixels.
        polygons: outlines, each ``[x, y, x, y, ...]``.
        runs: a mask in COCO's run-length form, where it has no outlines.
        ignored: a crowd, or difficult.
    """

    name: str
    box: tuple[float, float, float, float]
    polygons: tuple[tuple[float, ...], ...] = ()
    runs: Any = None
    ignored: bool = False


@dataclass(frozen=True)
class Picture:
    """One image: its file, and its size as the annotations have it."""

    file: Path
    width: int
    height: int


@dataclass
class Contents:
    """What was found in a set.

    Attributes:
        classes: names in order.
        pictures: by id.
        problems: one line each; empty for a set that can be trained on.
        objects: number of objects of each class.
    """

    classes: tuple[str, ...] = ()
    pictures: dict[Any, Picture] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    objects: Counter[str] = field(default_factory=Counter)
    _things: dict[Any, list[Any]] = field(default_factory=dict)
    _read: Any = None

    def has_things(self, picture: Any) -> bool:
        """Whether a picture has any object."""
        return bool(self._things.get(picture))

    def things(self, picture: Any) -> list[Thing]:
        """The objects in one picture, by its id."""
        return [self._read(thing) for thing in self._things.get(picture, [])]


def open_set(one: DetectionSet) -> Contents:
    """Reads all annotations of a set and looks for every image, without decoding any.

    Returns:
        What there is. ``problems`` names what is missing or cannot be right; it is limited to the
        first of each kind, with the number of the others.
    """
    parts = (one.listing, one.annotations, one.images)
    for path in (part for part in parts if part is not None):
        if not path.exists():
            return Contents(
                problems=[
                    f"data set '{one.name}': {path} is missing (looked for {path.resolve()}). Set "
                    "DETECTRON2_DATASETS to the folder that holds the data sets; `intl-transfer "
                    "doctor` shows what is found"
                ]
            )
    contents = _open_coco(one) if one.layout == "coco" else _open_voc(one)
    if not contents.problems:
        there = _names_below(one.images)
        names = [str(p.file.relative_to(one.images)) for p in contents.pictures.values()]
        absent = [name for name in names if name not in there]
        if absent:
            source = one.listing or one.annotations
            contents.problems.append(
                f"{source} names {len(absent)} image(s) that {one.images} lacks, the first: "
                f"{absent[0]}"
            )
    return contents


def described(one: DetectionSet, contents: Contents) -> ImageSet:
    """What is in a set: numbers, and a digest of all annotations and of 64 images' bytes.

    Args:
        one: where it lies.
        contents: from :func:`open_set`.
    """
    digest = hashlib.sha256()
    files = [one.annotations]
    if one.listing is not None:
        files = [one.listing, *(one.annotations / f"{number}.xml" for number in contents.pictures)]
    pictures = [picture.file for picture in contents.pictures.values()]
    places = {round(i * (len(pictures) - 1) / (SAMPLE - 1)) for i in range(SAMPLE)}
    for file in [*files, *(pictures[place] for place in sorted(places))]:
        with contextlib.suppress(OSError):  # a picture that went meanwhile; the loader names it
            digest.update(bytes.fromhex(sha256_file(file)))
    return ImageSet(
        images=len(pictures),
        classes=len(contents.classes),
        annotations=sum(contents.objects.values()),
        digest=digest.hexdigest(),
    )


def class_names(one: DetectionSet) -> tuple[str, ...]:
    """Names of a VOC-style set's classes: as given, or all that its folder's annotations name."""
    if one.classes is not None or not one.annotations.is_dir():
        return one.classes or ()
    names: set[str] = set()
    for file in sorted(one.annotations.glob("*.xml")):
        try:
            tree = ElementTree.parse(file)
        except ElementTree.ParseError:
            continue  # named when the set is opened
        names.update(element.findtext("name") or "" for element in tree.iter("object"))
    return tuple(sorted(names))


def count_note(one: DetectionSet, contents: Contents) -> str | None:
    """What there is to say of a published set with another number of images than it has."""
    found = len(contents.pictures)
    if one.known_images is None or found == one.known_images:
        return None
    return f"{one.name} has {found:,} images; the published set has {one.known_images:,}"


def _open_coco(one: DetectionSet) -> Contents:
    file = one.annotations
    try:
        content = json.loads(file.read_text())
        images = {
            i["id"]: Picture(one.images / i["file_name"], i["width"], i["height"])
            for i in content["images"]
        }
        annotations = content["annotations"]
        names = {c["id"]: c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])}
    except (ValueError, KeyError, TypeError) as error:
        return Contents(problems=[f"{file} is not a COCO annotation file ({error!r})"])
    if not images or not annotations:
        counts = f"{len(images)} images, {len(annotations)} annotations"
        return Contents(problems=[f"{file} is empty: {counts}"])
    contents = Contents(tuple(names.values()), images)
    contents._read = lambda annotation: _coco_thing(annotation, names)
    if one.classes is not None and one.classes != contents.classes:
        contents.problems.append(
            f"{file} has the classes {_listed(contents.classes)}; the configuration says "
            f"{_listed(one.classes)}"
        )
    problems = _Problems()
    for annotation in annotations:
        problem = _coco_problem(annotation, images, names)
        if problem:
            problems.add(problem[0], f"{file}: annotation {annotation.get('id')}{problem[1]}")
            continue
        contents.objects[names[annotation["category_id"]]] += 1
        contents._things.setdefault(annotation["image_id"], []).append(annotation)
    contents.problems += problems.lines()
    return contents


def _coco_problem(
    annotation: Any, images: dict[Any, Picture], names: dict[Any, str]
) -> tuple[str, str] | None:
    """Kind and text of what is wrong with one annotation."""
    image, box = annotation.get("image_id"), annotation.get("bbox")
    if image not in images:
        return "image", f" is of image {image}, which is not listed"
    if annotation.get("category_id") not in names:
        return "class", f": category_id {annotation.get('category_id')} is not among the categories"
    if not (isinstance(box, list) and len(box) == 4 and all(math.isfinite(v) for v in box)):
        return "box", f": bbox is {box}; expected [x, y, width, height]"
    x, y, w, h = box
    picture = images[image]
    # Real COCO holds a few boxes of no size, which Detectron2 leaves out by itself.
    if w < 0 or h < 0 or x >= picture.width or y >= picture.height or x + w < 0 or y + h < 0:
        return "outside", (
            f": the box {box} lies outside its image {picture.file.name} ({picture.width} x "
            f"{picture.height}); correct or remove the annotation"
        )
    return None


def _coco_thing(annotation: dict[str, Any], names: dict[Any, str]) -> Thing:
    x, y, w, h = annotation["bbox"]
    outline = annotation.get("segmentation") or []
    return Thing(
        names[annotation["category_id"]],
        (x, y, x + w, y + h),
        tuple(tuple(part) for part in outline) if isinstance(outline, list) else (),
        outline if isinstance(outline, dict) else None,
        bool(annotation.get("iscrowd")),
    )


def _open_voc(one: DetectionSet) -> Contents:
    assert one.listing is not None
    ids = one.listing.read_text().split()
    if not ids:
        return Contents(problems=[f"{one.listing} is empty: no images in data set '{one.name}'"])
    there = _names_below(one.annotations)
    absent = [f"{number}.xml" for number in ids if f"{number}.xml" not in there]
    if absent:
        return Contents(
            problems=[
                f"{one.listing} names {len(absent)} image(s) that {one.annotations} lacks, the "
                f"first: {absent[0]}"
            ]
        )
    contents = Contents(_read=lambda thing: thing)
    problems = _Problems()
    for number in ids:
        file = one.annotations / f"{number}.xml"
        try:
            picture, things = _read_voc(file, one.images / f"{number}.jpg")
        except (ElementTree.ParseError, ValueError, TypeError, AttributeError) as error:
            problems.add("xml", f"{file} is not a VOC annotation ({error})")
            continue
        contents.pictures[number] = picture
        contents._things[number] = things
        for thing in things:
            contents.objects[thing.name] += 1
            for kind, text in _voc_problems(thing, picture, one.classes):
                problems.add(kind, f"{file}: {text}")
    contents.problems += problems.lines()
    # A class may be missing in one split: where none are given, all splits of the folder count.
    contents.classes = class_names(one)
    return contents


def _read_voc(file: Path, image: Path) -> tuple[Picture, list[Thing]]:
    tree = ElementTree.parse(file).getroot()
    size = tree.find("size")
    picture = Picture(image, int(_text(size, "width")), int(_text(size, "height")))
    things = []
    for element in tree.iter("object"):
        corners = element.find("bndbox")
        left, top, right, bottom = (
            float(_text(corners, key)) for key in ("xmin", "ymin", "xmax", "ymax")
        )
        difficult = element.findtext("difficult") == "1"
        # Corners count from 1, and are inside.
        box = (left - 1, top - 1, right, bottom)
        things.append(Thing(_text(element, "name"), box, ignored=difficult))
    return picture, things


def _text(element: ElementTree.Element | None, key: str) -> str:
    text = None if element is None else element.findtext(key)
    if text is None:
        raise ValueError(f"no {key}")
    return text


def _voc_problems(
    thing: Thing, picture: Picture, classes: tuple[str, ...] | None
) -> Iterator[tuple[str, str]]:
    if classes is not None and thing.name not in classes:
        yield "class", f"no class '{thing.name}'; known are {_listed(classes)}"
    left, top, right, bottom = thing.box
    width, height = picture.width, picture.height
    if not (0 <= left < min(right, width) and 0 <= top < min(bottom, height)):
        yield (
            "outside",
            f"the box {[left + 1, top + 1, right, bottom]} lies outside its image ({width} x "
            f"{height}); correct or remove it",
        )


class _Problems:
    """The first problem of each kind, and how many more there are."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._counts: Counter[str] = Counter()

    def add(self, kind: str, text: str) -> None:
        self._first.setdefault(kind, text)
        self._counts[kind] += 1

    def lines(self) -> list[str]:
        return [
            text
            + (f" ({self._counts[kind] - 1} more of this kind)" if self._counts[kind] > 1 else "")
            for kind, text in self._first.items()
        ]


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


def _listed(names: Iterable[str], limit: int = 8) -> str:
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
