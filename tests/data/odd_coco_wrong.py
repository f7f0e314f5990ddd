"""Odd COCO sets that must be refused, each with the words that say why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.data.odd_coco import HEIGHT, KINDS, WIDTH, Kind, Odd, annotations, kind, setting, without

for _name, _value in {
    "text": ["1", "2", "3", "4"],
    "three numbers": [1, 2, 3],
    "empty": [],
    "NaN": [1, 2, float("nan"), 4],
    "infinite": [1, 2, float("inf"), 4],
    "a number": 7,
    "truths": [True, True, True, True],
    "nested": [[1, 2, 3, 4]],
    "too large to be a number": [1, 2, 10**400, 4],
}.items():
    annotations(
        f"a box that is {_name}",
        setting("bbox", _value),
        refused=r"annotation 1: bbox is .*expected four finite numbers",
    )
annotations(
    "a box of negative width",
    setting("bbox", [20, 3, -5, 18]),
    refused="a width and height from 0 on",
)
annotations(
    "a box outside",
    lambda a: a.update(bbox=[70, 3, 20, 18], segmentation=[]),
    refused=r"annotation 1: the box \[70, 3, 20, 18\] lies outside its image 1\.jpg \(64 x 48\)",
)
annotations(
    "no box and no mask",
    lambda a: a.update(bbox=None, segmentation=[]),
    refused="annotation 1: bbox is None",
)
annotations(
    "an image that is not listed",
    setting("image_id", 99),
    refused="annotation 1 is of image 99, which is not listed",
)
annotations("no image id", without("image_id"), refused="annotation 1 is of image None")
annotations(
    "an image id that is a list", setting("image_id", [1]), refused=r"of image \[1\], which"
)
annotations(
    "an unknown category",
    setting("category_id", 77),
    refused="category_id 77 is not among the categories",
)
annotations("no category", without("category_id"), refused="category_id None is not among")
annotations(
    "a category that is a truth", setting("category_id", True), refused="category_id True is not"
)
annotations("crowd is 2", setting("iscrowd", 2), refused="iscrowd is 2; expected 0 or 1")
annotations("crowd is empty", setting("iscrowd", []), refused=r"iscrowd is \[\]; expected 0 or 1")
annotations("crowd is text", setting("iscrowd", "0"), refused="iscrowd is '0'; expected 0 or 1")
annotations("ignore is 1", setting("ignore", 1), refused="ignore is 1, which means nothing")
annotations(
    "an area that is text", setting("area", "360"), refused="area is '360'; expected a number"
)
annotations("a negative area", setting("area", -3), refused="area is -3; expected a number")
annotations(
    "areas are the images', as in sahi's set",
    setting("area", WIDTH * HEIGHT),
    True,
    refused=r"annotation 1: area 3072 \(all of its image\) contradicts box and mask",
)
annotations(
    "areas in parts of the image",
    lambda a: a.update(area=a["area"] / 3072),
    True,
    refused="area 0.117188 contradicts",
)


def _corners(annotation: dict[str, Any]) -> None:
    x, y, w, h = annotation["bbox"]
    annotation["bbox"] = [x, y, x + w, y + h]


def _corners_alone(annotation: dict[str, Any]) -> None:
    _corners(annotation)
    annotation.update(segmentation=[], area=None)


annotations(
    "corners as width and height",
    _corners,
    True,
    refused=r"annotation 1: bbox \[3, 3, 23, 21\] holds the corners of its mask",
)
annotations(
    "corners as width and height, without masks",
    _corners_alone,
    True,
    refused="reaches over the edge of its image, and every box of the file fits as left, top",
)
KINDS["corners as width and height, by their areas"] = Kind(
    lambda odd: _small_corners(odd), refused="every area is that of its bbox read as left, top"
)


@kind(
    "corners as width and height, one of them broken",
    refused="reaches over the edge of its image, and nearly every box of the file fits as left",
)
def _broken_corners(odd: Odd) -> None:
    for content in odd.both:
        for annotation in content["annotations"]:
            _corners_alone(annotation)
    odd.train["annotations"][0]["bbox"] = [10, 10, 10, 10]


def _small_corners(odd: Odd) -> None:
    for content in odd.both:
        for annotation in content["annotations"]:
            annotation.update(bbox=[2, 3, 22, 21], area=20 * 18, segmentation=[])


def _relative(annotation: dict[str, Any]) -> None:
    x, y, w, h = annotation["bbox"]
    annotation.update(
        bbox=[x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT], segmentation=[], area=None
    )


annotations(
    "boxes in parts of the image",
    _relative,
    True,
    refused="with no number above 1: relative to the image's size",
)
annotations(
    "one box in parts of the image",
    _relative,
    refused="annotation 1: bbox .*with no number above 1: relative to the image's size",
)
for _name, _area in {"1": 1, "one for all": 20, "parts of the image": 0.1}.items():
    annotations(
        f"areas of boxes alone are {_name}",
        lambda a, area=_area: a.update(segmentation=[], area=area),
        True,
        refused="APs, APm and APl would be false",
    )
annotations(
    "a box and a mask apart",
    setting("segmentation", [[50, 40, 60, 40, 60, 47]]),
    refused="annotation 1: its box .* and its mask, which reaches from .* lie apart",
)

for _name, (_mask, _message) in {
    "a polygon of two points": ([[1, 1, 9, 9]], "has a polygon of 4 numbers; expected"),
    "a polygon of odd length": ([[1, 1, 9, 1, 9, 9, 3]], "has a polygon of 7 numbers"),
    "an empty polygon": ([[]], "has a polygon of 0 numbers"),
    "a polygon of text": ([["1", 1, 9, 1, 9, 9]], "has a polygon that is not a list of finite"),
    "a polygon with NaN": ([[1, 1, float("nan"), 1, 9, 9]], "not a list of finite numbers"),
    "a polygon of pairs": ([[[1, 1], [9, 1], [9, 9]]], "not a list of finite numbers"),
    "a polygon far away": ([[1, 1, 1e9, 1, 9, 9]], "has a polygon far outside its image"),
    "a mask of text": ("1,1,9,1,9,9", "is neither a list of polygons nor run lengths"),
    "run lengths of another size": (
        {"size": [10, 10], "counts": [0, 100]},
        r"run lengths of size \[10, 10\]; expected its image's \[height, width\], \[48, 64\]",
    ),
    "run lengths of width, height": (
        {"size": [WIDTH, HEIGHT], "counts": [0, WIDTH * HEIGHT]},
        r"of size \[64, 48\], which is \[width, height\]",
    ),
    "run lengths that are short": (
        {"size": [48, 64], "counts": [5, 9]},
        "fill 14 pixels; expected",
    ),
    "run lengths below 0": ({"size": [48, 64], "counts": [-5, 3077]}, "fill 3,072 pixels; expec"),
    "run lengths of floats": ({"size": [48, 64], "counts": [0.5, 3071.5]}, "without counts"),
    "run lengths without counts": ({"size": [48, 64]}, "without counts"),
    "run lengths without size": ({"counts": [0, 3072]}, "run lengths of size None"),
    "damaged run lengths": ({"size": [48, 64], "counts": "~~~ zzz"}, "that are damaged"),
    "run lengths cut off": ({"size": [48, 64], "counts": "0o"}, "that are cut off"),
    "run lengths of another mask": ({"size": [48, 64], "counts": "03"}, "fill 3 pixels"),
}.items():
    annotations(
        _name, setting("segmentation", _mask), refused=f"annotation 1: segmentation.*{_message}"
    )


@kind(
    "ids that are there twice and differ", refused="annotation 1 is there twice, and the two diff"
)
def _ids_differ(odd: Odd) -> None:
    odd.train["annotations"][1]["id"] = 1


def _content(
    name: str, refused: str, edit: Callable[[dict[str, Any]], Any], role: str = "train"
) -> None:
    KINDS[name] = Kind(lambda odd: edit(getattr(odd, role)) and None, refused)


_content(
    "images of one id",
    "image 1 is listed twice, as 1.jpg and 2.jpg",
    lambda c: c["images"][1].update(id=1),
)
_content(
    "a file of two test images with other objects",
    r"1\.jpg is several images of 'odd_test', and their objects differ",
    lambda c: c["images"][1].update(file_name="1.jpg"),
    "test",
)
_content("images without id", "image no. 0 has no usable id", lambda c: c["images"][0].pop("id"))
_content(
    "images without name",
    "file_name is None; expected text",
    lambda c: c["images"][0].pop("file_name"),
)
_content(
    "an image name that is a number", "file_name is 7", lambda c: c["images"][0].update(file_name=7)
)
_content(
    "an image that is absent",
    r"names 1 image\(s\) that .* lacks, the first: 1\.JPG\. There is '1\.jpg'",
    lambda c: c["images"][0].update(file_name="1.JPG"),
)
_content(
    "an image of another machine",
    r"lacks, the first: /data/set/1\.jpg\. The folder itself has '1\.jpg'",
    lambda c: c["images"][0].update(file_name="/data/set/1.jpg"),
)
_content(
    "an image name of half a character",
    r"file_name is '.ud800.jpg'; expected text",
    lambda c: c["images"][0].update(file_name="\ud800.jpg"),
)
_content(
    "a class of half a character",
    "a category has the id 1 and the name '.ud800'",
    lambda c: c["categories"][0].update(name="\ud800"),
)
_content(
    "a width that is text",
    "width and height are '64' and 48; expected whole",
    lambda c: c["images"][0].update(width="64"),
)
_content(
    "a width of 64.5",
    "width and height are 64.5 and 48",
    lambda c: c["images"][0].update(width=64.5),
)
_content(
    "a width below 0", "width and height are -64 and 48", lambda c: c["images"][0].update(width=-64)
)
_content(
    "a width of 1e300",
    r"width and height are 1e\+300 and 48",
    lambda c: c["images"][0].update(width=1e300),
)
_content(
    "sizes of other images",
    r"1\.jpg is 64 x 48, the annotations say 64 x 50",
    lambda c: c["images"][0].update(height=50),
)
_content(
    "sizes exchanged",
    "say 48 x 64; they are exchanged|lies outside",
    lambda c: c["images"][0].update(width=48, height=64),
)
_content(
    "a category of two names",
    "category 1 is named cat and dog",
    lambda c: c["categories"][1].update(id=1),
)
_content(
    "a category without name", "the name None; expected", lambda c: c["categories"][0].pop("name")
)
_content(
    "a category named by a number",
    "the name 7; expected",
    lambda c: c["categories"][0].update(name=7),
)
_content("no categories", "categories is nothing; expected a list", lambda c: c.pop("categories"))
_content("no images", "is empty: 0 images, 8 annotations", lambda c: c["images"].clear())
_content("no objects", "is empty: 4 images, 0 annotations", lambda c: c["annotations"].clear())
_content(
    "images that are null",
    "images is None; expected a list of objects",
    lambda c: c.update(images=None),
)
_content(
    "objects that are numbers",
    "annotations is .*; expected a list of objects",
    lambda c: c["annotations"].append(3),
)
_content(
    "a test set without annotations",
    "has no annotations: neither",
    lambda c: c.pop("annotations"),
    "test",
)
_content(
    "a training set of crowds",
    "no object to train on in odd_train",
    lambda c: [a.update(iscrowd=1) for a in c["annotations"]],
)
_content(
    "a test set of crowds",
    "no object that counts in 'odd_test'",
    lambda c: [a.update(iscrowd=1) for a in c["annotations"]],
    "test",
)


annotations_of_test = {
    "of no size": (
        lambda a: a.update(bbox=[10, 10, 0, 9], segmentation=[], area=0),
        "no object that",
    ),
    "with blank masks": (
        lambda a: a.update(segmentation={"size": [HEIGHT, WIDTH], "counts": [3072]}, area=None),
        "no mask in 'odd_test' has a single pixel: all metrics of masks would be 0",
    ),
}
for _name, (_edit, _message) in annotations_of_test.items():
    _content(
        f"a test set of boxes {_name}",
        _message,
        lambda c, edit=_edit: [edit(a) for a in c["annotations"]],
        "test",
    )


@kind(
    "a class that only the test set has",
    refused=r"'odd_test' has other classes than 'odd_train': 4 object.* Did you mean 'cat'",
)
def _only_test(odd: Odd) -> None:
    odd.test["categories"][0]["name"] = "catt"


@kind(
    "CLASSES with a typing error",
    refused="is of class 'cat'; the configuration says catt, dog .CLASSES.. Did you mean 'catt'",
    options={"CLASSES": ["catt", "dog"]},
)
def _typing(odd: Odd) -> None:
    pass


annotations(
    "masks asked for that are not there",
    without("segmentation"),
    refused="MODEL.MASK_ON is True, but 'odd_train' has 1 of 8 objects without a mask",
    options={"MODEL": {"MASK_ON": True}},
)


def _bytes(name: str, refused: str, encode: Callable[[Any], bytes]) -> None:
    KINDS[name] = Kind(lambda odd: setattr(odd, "encode", encode), refused)


_bytes(
    "a list, as results files are",
    "it holds a list, as results files are; expected",
    lambda c: json.dumps(c["annotations"]).encode(),
)
_bytes("a file that is cut off", "no valid JSON", lambda c: json.dumps(c).encode()[:300])
_bytes(
    "a list that comes twice",
    "no valid JSON .*the key 'annotations' twice",
    lambda c: json.dumps(c)[:-1].encode() + b', "annotations": []}',
)
_bytes(
    "a box that comes twice",
    "the key 'bbox' twice",
    lambda c: json.dumps(c).replace('"bbox"', '"bbox": [1, 1, 2, 2], "bbox"', 1).encode(),
)
_bytes("an empty file", "no valid JSON", lambda c: b"")
_bytes("a file that is no text", "no valid JSON", lambda c: bytes(range(256)))
_bytes("a file nested without end", "no valid JSON", lambda c: b"[" * 100_000)


def _file(name: str, refused: str, make: Callable[[Path], Any]) -> None:
    KINDS[name] = Kind(lambda odd: make(odd.images / "1.jpg") and None, refused)


_file(
    "an image that is empty",
    r"1\.jpg cannot be read as an image \(the file is empty",
    lambda p: p.write_bytes(b""),
)
_file("an image that is text", "none of the formats JPEG", lambda p: p.write_text("no image"))
_file(
    "an image that is cut off",
    r"1\.jpg cannot be read as an image",
    lambda p: p.write_bytes(p.read_bytes()[:-300]),
)
_file(
    "an image that is PostScript",
    "none of the formats JPEG",
    lambda p: p.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\nshowpage\n"
    ),
)
_file(
    "an image of floating point",
    "floating-point pixels",
    lambda p: Image.fromarray(np.ones((48, 64), np.float32)).save(p, "TIFF"),
)
_file(
    "an image that is a folder",
    r"1\.jpg cannot be read \(Is a directory",
    lambda p: (p.unlink(), p.mkdir()),
)


@kind(
    "annotations of images before they are turned",
    refused="the annotations are of the image before that",
)
def _not_turned(odd: Odd) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    odd.draw("1.jpg", exif=exif)  # upright it is 48 x 64


@kind("an image that is a line", refused=r"1\.jpg is 6400 x 1; expected at most 1 : 100")
def _line(odd: Odd) -> None:
    odd.draw("1.jpg", (6400, 1))
    odd.train["images"][0].update(width=6400, height=1)
    odd.train["annotations"] = odd.train["annotations"][2:]
    odd.test["images"] = odd.test["images"][1:]
    odd.test["annotations"] = odd.test["annotations"][2:]
