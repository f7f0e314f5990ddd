"""Odd COCO sets, of every kind that annotation tools and hands have made: those that can be used.

Each is a function that changes a clean set of four images before it is written.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

WIDTH, HEIGHT = 64, 48
NAMES = ("cat", "dog")


@dataclass
class Kind:
    """One kind of set.

    Attributes:
        change: changes the set.
        refused: what the error says (a pattern); None for a set that can be used.
        note: what is said of a set that can be used (a pattern), if anything.
        masks: whether masks are trained on.
        options: of the configuration: CLASSES, MODEL ...
    """

    change: Callable[[Odd], None]
    refused: str | None = None
    note: str | None = None
    masks: bool = True
    options: dict[str, Any] = field(default_factory=dict)


class Odd:
    """A set before it is written: both splits' content, and the pictures' folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.images = root, root / "images"
        self.images.mkdir(parents=True)
        self.train, self.test = clean(), clean()
        self.encode: Callable[[Any], bytes] = lambda content: json.dumps(content).encode()
        for number in range(1, 5):
            self.draw(f"{number}.jpg")

    @property
    def both(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.train, self.test

    def draw(self, name: str, size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> Path:
        path = self.images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(size).save(path, **options)
        return path

    def write(self) -> dict[str, Any]:
        """Writes the set; returns CUSTOM_DATASETS."""
        block = {}
        for role, content in (("train", self.train), ("test", self.test)):
            (self.root / f"{role}.json").write_bytes(self.encode(content))
            block[f"odd_{role}"] = {
                "LAYOUT": "coco",
                "JSON": str(self.root / f"{role}.json"),
                "IMAGES": str(self.images),
            }
        return block


def picture(size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def clean() -> dict[str, Any]:
    """Four images with a rectangle and a triangle each."""
    images = [
        {"id": n, "file_name": f"{n}.jpg", "width": WIDTH, "height": HEIGHT} for n in range(1, 5)
    ]
    annotations = []
    for n in range(1, 5):
        for k, (x, y, w, h) in enumerate(((2 + n, 3, 20, 18), (30, 10 + n, 25, 22))):
            outline = [x, y, x + w, y, x + w, y + h, x, y + h] if k == 0 else None
            outline = outline or [x, y, x + w, y, x + w, y + h]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": n,
                    "category_id": k + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h if k == 0 else w * h / 2,
                    "iscrowd": 0,
                    "segmentation": [outline],
                }
            )
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(NAMES)]
    return {"images": images, "annotations": annotations, "categories": categories}


KINDS: dict[str, Kind] = {}


def kind(name: str, **about: Any) -> Callable[[Callable[[Odd], None]], Callable[[Odd], None]]:
    def add(change: Callable[[Odd], None]) -> Callable[[Odd], None]:
        assert name not in KINDS
        KINDS[name] = Kind(change, **about)
        return change

    return add


def annotations(
    name: str, edit: Callable[[dict[str, Any]], None], every: bool = False, **about: Any
) -> None:
    """A kind made by an edit of the first annotation of the training set, or of all of both."""

    def change(odd: Odd) -> None:
        chosen = (
            [a for c in odd.both for a in c["annotations"]]
            if every
            else [odd.train["annotations"][0]]
        )
        for annotation in chosen:
            edit(annotation)

    KINDS[name] = Kind(change, **about)


def setting(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda entry: entry.__setitem__(key, value)


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda entry: entry.pop(key, None) and None


def runs(annotation: dict[str, Any], compressed: bool) -> dict[str, Any]:
    rle = mask_util.merge(mask_util.frPyObjects(annotation["segmentation"], HEIGHT, WIDTH))
    if compressed:
        return {"size": rle["size"], "counts": rle["counts"].decode()}
    flat = mask_util.decode(rle).ravel(order="F")
    borders = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *borders, len(flat)]).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": ([0] if flat[0] else []) + counts}


# --- what can be used ---


@kind("clean")
def _clean(odd: Odd) -> None:
    pass


@kind("as labelme writes it", note="ids counted from 0, renumbered .*: 1, the first annotation 0")
def _labelme(odd: Odd) -> None:
    """labelme's labelme2coco: all ids from 0, float boxes and areas, a folder in the names."""
    for content in odd.both:
        content["info"] = {"description": None, "url": None, "version": None, "year": 2026}
        content["licenses"] = [{"url": None, "id": 0, "name": None}]
        content["type"] = "instances"
        for number, image in enumerate(content["images"]):
            odd.draw(f"JPEGImages/{image['id']}.jpg")
            image.update(id=number, license=0, url=None, date_captured=None)
            image["file_name"] = f"JPEGImages/{number + 1}.jpg"
        for number, annotation in enumerate(content["annotations"]):
            annotation["id"] = number
            annotation["image_id"] -= 1
            annotation["category_id"] -= 1
            annotation["bbox"] = [float(v) for v in annotation["bbox"]]
            annotation["area"] = float(annotation["area"])
        content["categories"] = [
            {"supercategory": None, "id": k, "name": name} for k, name in enumerate(NAMES)
        ]


def _category_ids(
    make: Callable[[int], Any], only_annotations: bool = False
) -> Callable[[Odd], None]:
    def change(odd: Odd) -> None:
        for content in odd.both:
            for annotation in content["annotations"]:
                annotation["category_id"] = make(annotation["category_id"])
            if not only_annotations:
                for category in content["categories"]:
                    category["id"] = make(category["id"])

    return change


NUMBERED = "ids of categories that are no numbers from 0 on: numbered from 1"
RESPELLED = "ids written otherwise than where they are listed .*: 8,"
KINDS["category ids are text"] = Kind(_category_ids(lambda i: f"class-{i}"), note=NUMBERED)
KINDS["category ids are digits in places"] = Kind(
    _category_ids(lambda i: f"0{i}", only_annotations=True), note=RESPELLED
)
KINDS["category ids are negative"] = Kind(_category_ids(lambda i: -i), note=NUMBERED)
KINDS["category ids have gaps"] = Kind(_category_ids(lambda i: 1000 * i))
KINDS["category ids are floats"] = Kind(_category_ids(float))


def _image_ids(make: Callable[[int], Any], only_annotations: bool = False) -> Callable[[Odd], None]:
    def change(odd: Odd) -> None:
        for content in odd.both:
            for annotation in content["annotations"]:
                annotation["image_id"] = make(annotation["image_id"])
            if not only_annotations:
                for image in content["images"]:
                    image["id"] = make(image["id"])

    return change


KINDS["image ids are text"] = Kind(_image_ids(lambda i: f"img-{i}"))
KINDS["image ids are digits in places"] = Kind(
    _image_ids(lambda i: f"{i:06d}", only_annotations=True), note=RESPELLED
)
KINDS["image ids are floats"] = Kind(_image_ids(float))
KINDS["image ids are negative"] = Kind(_image_ids(lambda i: -i))
KINDS["image ids are huge"] = Kind(_image_ids(lambda i: 10**25 + i), note="not whole numbers belo")
KINDS["image ids are of both types"] = Kind(
    _image_ids(lambda i: i if i < 3 else f"img-{i}"), note="image ids that are not whole numbers"
)

annotations("run lengths", lambda a: a.update(segmentation=runs(a, False)), True, note=None)
annotations("compressed run lengths", lambda a: a.update(segmentation=runs(a, True)), True)
annotations("one mask of run lengths", lambda a: a.update(segmentation=runs(a, False)))


@kind("a crowd of run lengths")
def _crowd(odd: Odd) -> None:
    for content in odd.both:
        first = content["annotations"][0]
        first.update(iscrowd=1, segmentation=runs(first, False))


annotations(
    "a box from -5",
    lambda a: a.update(bbox=[-5, 3, 30, 18], area=540, segmentation=[[0, 3, 25, 3, 25, 21]]),
    note="boxes cut at the edge of their image: 1,",
)
annotations(
    "a box over the right edge",
    lambda a: a.update(bbox=[50, 3, 30, 18], area=540, segmentation=[[50, 3, 64, 3, 64, 21]]),
    note="boxes cut at the edge",
)
annotations(
    "a box half a pixel over",
    lambda a: a.update(bbox=[44.5, 3, 20, 18], segmentation=[[44.5, 3, 64, 3, 64, 21]]),
)
annotations(
    "a box of no size",
    lambda a: a.update(bbox=[10, 10, 0, 12], area=0, segmentation=[[10, 10, 10, 22, 11, 22]]),
    note="boxes of no size",
)
annotations("boxes alone", without("segmentation"), True, masks=False)
annotations("boxes alone, empty masks", setting("segmentation", []), True, masks=False)
annotations("boxes alone, null masks", setting("segmentation", None), True, masks=False)
annotations("one object without a mask", without("segmentation"), masks=False)
annotations("no areas", without("area"), True, note="areas computed from mask or box")
annotations("areas 0", setting("area", 0), True, note="areas computed")
annotations("areas are the boxes'", lambda a: a.update(area=a["bbox"][2] * a["bbox"][3]), True)
annotations("no boxes", without("bbox"), True, note="boxes taken from masks")
annotations("no ids", without("id"), True, note="without a usable id")
annotations(
    "ids are text",
    lambda a: a.update(id=f"x{a['id']}"),
    True,
    note="annotations that are text",
)
annotations(
    "a polygon that is in no list",
    lambda a: a.update(segmentation=a["segmentation"][0]),
    True,
    note="a polygon that is not in a list",
)
annotations("crowd is false", setting("iscrowd", False), True)
annotations("crowd is 0.0", setting("iscrowd", 0.0), True)
annotations("crowd is null", setting("iscrowd", None), True)
annotations("crowd is not said", without("iscrowd"), True)
annotations(
    "keypoints and NaN beside", lambda a: a.update(keypoints=[1, 2, 2], score=float("nan")), True
)


@kind("an object that is there twice", note="listed twice, used once: 1")
def _twice(odd: Odd) -> None:
    odd.train["annotations"].append(dict(odd.train["annotations"][0]))


@kind("objects that are there under two ids", note="listed twice, used once: 8, the first")
def _two_ids(odd: Odd) -> None:
    for content in odd.both:
        again = [{**one, "id": one["id"] + 100, "area": None} for one in content["annotations"]]
        content["annotations"] += again


@kind("an image that is listed twice", note="images listed twice, used once")
def _image_twice(odd: Odd) -> None:
    odd.train["images"].append(dict(odd.train["images"][0]))


@kind("two images of one file", note="files that several images have")
def _same_file(odd: Odd) -> None:
    odd.train["images"][1]["file_name"] = "1.jpg"


@kind("classes in another order", note="taken in the order of 'odd_train'")
def _order(odd: Odd) -> None:
    odd.test["categories"] = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    for annotation in odd.test["annotations"]:
        annotation["category_id"] = 3 - annotation["category_id"]


@kind("CLASSES settle the order", options={"CLASSES": ["dog", "cat"]})
def _classes(odd: Odd) -> None:
    pass


@kind("CLASSES leave out what has no object", options={"CLASSES": ["dog", "cat"]})
def _unused(odd: Odd) -> None:
    odd.train["categories"].append({"id": 77, "name": "zebra"})


@kind("a test set that lacks a class", note=r"it lacks dog")
def _lacks(odd: Odd) -> None:
    del odd.test["categories"][1]
    odd.test["annotations"] = [a for a in odd.test["annotations"] if a["category_id"] == 1]


@kind("a test set with a further class without objects", note="zebra, without objects, ignored")
def _further(odd: Odd) -> None:
    odd.test["categories"].insert(0, {"id": 0, "name": "zebra"})


@kind(
    "two categories of one name",
    note=r"order of their ids: 1, the first 'cat .2.'",
)
def _one_name(odd: Odd) -> None:
    for content in odd.both:
        content["categories"][1]["name"] = "cat"


@kind("class names of another script, with other spaces", note="names of classes with other spa")
def _script(odd: Odd) -> None:
    for content, name in zip(odd.both, (" 犬\n小 ", "犬 小"), strict=True):
        content["categories"][0]["name"] = name


@kind("accents of classes in another form", options={"CLASSES": ["dog", "cafe\u0301"]})
def _accented_class(odd: Odd) -> None:
    for content, form in zip(odd.both, ("NFC", "NFD"), strict=True):
        content["categories"][0]["name"] = unicodedata.normalize(form, "café")


@kind("large boxes alone, one a little over the edge", masks=False, note="boxes cut at the edge")
def _large_boxes(odd: Odd) -> None:
    """All of them fit as corners, too; their areas say that they are none."""
    for content in odd.both:
        for annotation in content["annotations"]:
            width = 63 if annotation["id"] == 1 else 40
            annotation.update(bbox=[4, 5, width, 42], area=42 * width, segmentation=[])


def _renamed(make: Callable[[Odd, str], str]) -> Callable[[Odd], None]:
    def change(odd: Odd) -> None:
        for content in odd.both:
            for image in content["images"]:
                image["file_name"] = make(odd, image["file_name"])

    return change


def _deep(odd: Odd, name: str) -> str:
    odd.draw(f"leftImg8bit/aachen/{name}")
    return f"leftImg8bit/aachen/{name}"


def _accented(odd: Odd, name: str) -> str:
    odd.draw(unicodedata.normalize("NFD", f"é{name}"))
    return unicodedata.normalize("NFC", f"é{name}")


def _saved(suffix: str, mode: str) -> Callable[[Odd, str], str]:
    def make(odd: Odd, name: str) -> str:
        new = Path(name).stem + suffix
        image = picture().convert("L") if mode == "I;16" else picture().convert(mode)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
        image.save(odd.images / new)
        return new

    return make


def _turned(odd: Odd, name: str) -> str:
    exif = Image.Exif()
    exif[0x0112] = 6
    odd.draw(f"turned-{name}", (HEIGHT, WIDTH), exif=exif)  # upright it is WIDTH x HEIGHT
    return f"turned-{name}"


KINDS["files two folders down"] = Kind(_renamed(_deep))
KINDS["absolute file names"] = Kind(_renamed(lambda odd, name: str(odd.images / name)))
KINDS["file names that lead out"] = Kind(_renamed(lambda odd, name: f"../images/{name}"))
KINDS["file names of Windows"] = Kind(
    _renamed(lambda odd, name: _deep(odd, name).replace("/", "\\")), note="separators of Windows"
)
KINDS["accents in another form"] = Kind(_renamed(_accented), note="Unicode's form NFD")
KINDS["16-bit images"] = Kind(_renamed(_saved(".png", "I;16")))
KINDS["CMYK images"] = Kind(_renamed(_saved(".jpg", "CMYK")))
KINDS["palette images"] = Kind(_renamed(_saved(".png", "P")))
KINDS["images with alpha"] = Kind(_renamed(_saved(".png", "RGBA")))
KINDS["GIF images"] = Kind(_renamed(_saved(".gif", "P")))
KINDS["images turned by their tag"] = Kind(_renamed(_turned))


def _sizes(value: Any) -> Callable[[Odd], None]:
    def change(odd: Odd) -> None:
        for content in odd.both:
            for image in content["images"]:
                if value is None:
                    del image["width"], image["height"]
                else:
                    image.update(width=value(WIDTH), height=value(HEIGHT))

    return change


KINDS["sizes like 64.0"] = Kind(_sizes(float), note="widths and heights like 64.0")
KINDS["no sizes"] = Kind(_sizes(None), note="sizes taken from the images")
KINDS["sizes 0"] = Kind(_sizes(lambda v: 0), note="sizes taken from the images")


@kind("an image without objects")
def _empty_image(odd: Odd) -> None:
    for content in odd.both:
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] > 1]


@kind("a file in UTF-16")
def _utf16(odd: Odd) -> None:
    odd.encode = lambda content: json.dumps(content).encode("utf-16")


@kind("a file with a byte order mark")
def _bom(odd: Odd) -> None:
    odd.encode = lambda content: b"\xef\xbb\xbf" + json.dumps(content).encode()


@kind("large objects, one over the edge, with masks", note="boxes cut at the edge")
def _large(odd: Odd) -> None:
    for content in odd.both:
        for annotation in content["annotations"]:
            w = 65 if annotation["id"] == 1 else 58
            outline = [2, 3, 2 + w, 3, 2 + w, 43, 2, 43]
            annotation.update(bbox=[2, 3, w, 40], area=w * 40, segmentation=[outline])


@kind("masks without a pixel", note="masks without a single pixel, never found: 2")
def _empty_mask(odd: Odd) -> None:
    nothing = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
    odd.train["annotations"][0].update(segmentation=nothing)
    odd.train["annotations"][1].update(segmentation=[[31, 12, 31, 12, 31, 12]], area=0)
