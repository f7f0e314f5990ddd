"""The content of a detection data set and its problems, without Detectron2.

:func:`read_set` reads annotations; :func:`open_set` is the dry run: it also builds the evaluator's
ground truth, opens the header of every image and decodes some. Training and doctor both use it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from intl_transfer.data.annotations import AnnotatedImage, Annotation, Contents, Findings
from intl_transfer.data.coco_annotations import read_coco
from intl_transfer.data.detection_sets import DetectionSet, standard_sets
from intl_transfer.data.images import UnreadableImageError, read_header, read_image
from intl_transfer.data.made import MADE, command_for
from intl_transfer.data.source import SAMPLE
from intl_transfer.data.voc_annotations import read_voc
from intl_transfer.runs.atomic import sha256_file
from intl_transfer.runs.records import ImageSet

#: Maximum aspect ratio of an image: a more elongated one would vanish when resized for a detector.
MAX_RATIO = 100
# Generated detection data sets, and the folder of each.
_MADE = {
    one.name: folder
    for one in standard_sets(Path()).values()
    if (folder := one.images.parts[0]) in MADE
}
_OPENING, _DECODING = 16, 4  # threads: waiting for the file system, and for decoders


def read_set(one: DetectionSet) -> Contents:
    """Reads all annotations of a data set and checks that every image exists, without opening it.

    Returns:
        The content. ``problems`` lists missing and implausible items, ``notes`` corrections; each
        the first of its kind, with counts.
    """
    made = MADE.get(_MADE.get(one.name, ""))
    if made is not None and not made.is_complete(folder := one.images.parents[1]):
        problem = (
            f"data set '{one.name}' does not exist: looked for {folder}. Generate it with "
            f"`{command_for(folder)}`, or set DETECTRON2_DATASETS to the folder that contains it"
        )
        return Contents(problems=[problem])
    for path in (one.listing, one.annotations, one.images):
        if path is not None and not path.exists():
            return Contents(
                problems=[
                    f"data set '{one.name}': {path} is missing (looked for {path.resolve()}). Set "
                    "DETECTRON2_DATASETS to the folder that contains the data sets; `intl-transfer "
                    "doctor` shows which are found"
                ]
            )
    return read_coco(one) if one.layout == "coco" else read_voc(one)


def open_set(one: DetectionSet, everything: bool = False) -> Contents:
    """Like :func:`read_set`, with a dry run: finds all that would stop training or evaluation.

    Args:
        one: its location.
        everything: decode every image instead of 64 evenly spaced ones.
    """
    contents = _checked(one, read_set(one))
    contents.problems += _image_problems(contents, everything)
    return contents


def open_coco_file(file: Path) -> Contents:
    """Like :func:`open_set` for a COCO annotation file alone, without its images.

    Args:
        file: for detections that were made elsewhere. COCO's own, by its name and number of images,
            is taken as it was published.
    """
    known = {one.annotations.name: one.known_images for one in standard_sets(Path()).values()}
    one = DetectionSet(
        file.name, "coco", images=Path(), annotations=file, known_images=known.get(file.name)
    )
    return _checked(one, read_coco(one, with_images=False))


def _checked(one: DetectionSet, contents: Contents) -> Contents:
    """With the problems of an evaluation."""
    if not contents.annotated:
        contents.problems.append(
            f"{one.annotations} has no annotations: neither training nor evaluation is possible"
        )
    if not contents.problems:
        contents.problems += _truth_problems(one, contents)
    return contents


def truth_of(contents: Contents) -> COCO:
    """The annotations in pycocotools' form: the evaluator's ground truth.

    Objects are numbered from 1: 0 is pycocotools' mark for 'unmatched'.
    """
    truth = COCO()
    truth.dataset = {
        "images": [
            {"id": key, "width": image.width, "height": image.height}
            for key, image in contents.images.items()
        ],
        "categories": [
            {"id": number, "name": name}
            for number, name in zip(contents.category_ids, contents.classes, strict=True)
        ],
    }
    if contents.annotated:
        placed = ((key, a) for key in contents.images for a in contents.annotations.get(key, ()))
        truth.dataset["annotations"] = [
            _as_coco(number, key, annotation, contents.category_ids[annotation.label])
            for number, (key, annotation) in enumerate(placed, 1)
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def _as_coco(number: int, image: Any, annotation: Annotation, category: int) -> dict[str, Any]:
    left, top, right, bottom = annotation.bbox
    if annotation.corners:
        right, bottom = right - left, bottom - top
    entry = {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [left, top, right, bottom],
        "area": annotation.area,
        "iscrowd": int(annotation.ignored),
    }
    if annotation.segmentation is not None:
        entry["segmentation"] = annotation.segmentation
    return entry


def _truth_problems(one: DetectionSet, contents: Contents) -> list[str]:
    """Annotations that the evaluator rejects although the reader accepts them; none are known."""
    truth = truth_of(contents)
    if len(contents.images) == one.known_images:  # known to be accepted
        return []
    for annotation in truth.dataset["annotations"]:
        if "segmentation" in annotation:
            try:
                truth.annToRLE(annotation)
            except Exception as error:  # any error of the C library
                where = f"{one.annotations}, image {annotation['image_id']}"
                return [f"{where}: a mask that COCO's evaluation cannot take ({error})"]
    return []


def _image_problems(contents: Contents, everything: bool) -> list[str]:
    """Opens every image, and decodes some or all."""
    findings = Findings()
    keys = list(contents.images)
    with warnings.catch_warnings():  # here, since it is not thread-safe
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(_OPENING) as pool:
            found = list(pool.map(_header_problem, contents.images.values()))
        good = [key for key, problem in zip(keys, found, strict=True) if problem is None]
        chosen = good if everything else spread(good, SAMPLE)
        with ThreadPoolExecutor(_DECODING) as pool:
            found += pool.map(_pixel_problem, (contents.images[key] for key in chosen))
    for kind, text in (problem for problem in found if problem is not None):
        findings.problem(kind, text)
    return findings.problems()


def _header_problem(image: AnnotatedImage) -> tuple[str, str] | None:
    try:
        header = read_header(image.file)
    except UnreadableImageError as error:
        return "unreadable", str(error)
    found, stated = (header.width, header.height), (image.width, image.height)
    if found != stated:
        why = ""
        if found == stated[::-1]:
            why = "; they are exchanged"
            if header.turned:
                why = (
                    ": its orientation tag turns it, and the annotations are of the image before "
                    "that. Turn its pixels and drop the tag, or annotate it as it is seen"
                )
        return "size", (
            f"{image.file} is {found[0]} x {found[1]}, the annotations say {stated[0]} x "
            f"{stated[1]}{why}"
        )
    if max(found) > MAX_RATIO * min(found):
        return "ratio", f"{image.file} is {found[0]} x {found[1]}; expected at most 1 : {MAX_RATIO}"
    return None


def _pixel_problem(image: AnnotatedImage) -> tuple[str, str] | None:
    try:
        read_image(image.file)
    except UnreadableImageError as error:
        return "unreadable", str(error)
    return None


def spread(keys: list[Any], count: int) -> list[Any]:
    """A number of evenly spaced items, or all."""
    if len(keys) <= count:
        return keys
    return [keys[i * len(keys) // count] for i in range(count)]


def described(one: DetectionSet, contents: Contents) -> ImageSet:
    """A summary: counts, and a digest of all annotations and the bytes of 64 images.

    Args:
        one: where it lies.
        contents: from :func:`open_set`.
    """
    digest = hashlib.sha256()
    files = [one.annotations]
    if one.listing is not None:
        files = [one.listing, *(one.annotations / f"{number}.xml" for number in contents.images)]
    pictures = [image.file for image in contents.images.values()]
    places = {round(i * (len(pictures) - 1) / (SAMPLE - 1)) for i in range(SAMPLE)}
    for file in [*files, *(pictures[place] for place in sorted(places))]:
        with contextlib.suppress(OSError):  # an image removed meanwhile; the loader reports it
            digest.update(bytes.fromhex(sha256_file(file)))
    return ImageSet(
        images=len(pictures),
        classes=len(contents.classes),
        annotations=sum(map(len, contents.annotations.values())),
        digest=digest.hexdigest(),
    )


def count_note(one: DetectionSet, contents: Contents) -> str | None:
    """A note if a published data set has an unexpected number of images."""
    found = len(contents.images)
    if one.known_images is None or found == one.known_images:
        return None
    return f"{one.name} has {found:,} images; the published set has {one.known_images:,}"


def remarks(one: DetectionSet, contents: Contents) -> Iterator[str]:
    """Notes for the user on a usable data set."""
    yield from contents.notes
    if (note := count_note(one, contents)) is not None:
        yield note
    there = contents.objects
    empty = [name for name in contents.classes if not there[name]]
    if empty and there:
        yield f"no object of the class(es) {', '.join(empty[:8])}" + (
            f" and {len(empty) - 8} more" if len(empty) > 8 else ""
        )
    folded: dict[str, str] = {}
    for name in contents.classes:
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            yield f"classes '{other}' and '{name}' differ in their case only"
