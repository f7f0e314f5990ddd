"""Odd VOC sets, of every kind that annotation tools and hands have made."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.data.odd_coco import HEIGHT, WIDTH, Kind, picture

BOXES = {"cat": (3, 4, 23, 22), "dog": (31, 12, 55, 34)}
KINDS: dict[str, Kind] = {}


class Odd:
    """A set before it is written: xml texts, lists, and the pictures' folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.images = root, root / "JPEGImages"
        self.images.mkdir(parents=True)
        self.ids = ["000001", "000002", "000003", "000004"]
        self.pages: dict[str, bytes] = {number: page(number).encode() for number in self.ids}
        self.lists = {split: "\n".join(self.ids).encode() for split in ("train", "test")}
        self.more: dict[str, Any] = {}
        for number in self.ids:
            picture().save(self.images / f"{number}.jpg")

    def edit(self, old: str, new: str, every: bool = False) -> None:
        """Replaces text in the first xml file, or in all."""
        for number in self.ids if every else self.ids[:1]:
            before = self.pages[number].decode()
            assert old in before
            self.pages[number] = before.replace(old, new).encode()

    def rename(self, change: Callable[[str], str]) -> None:
        """Renames images, lists and pages alike."""
        for number in self.ids:
            self.pages[change(number)] = self.pages.pop(number)
            target = self.images / f"{change(number)}.jpg"
            target.parent.mkdir(exist_ok=True)
            (self.images / f"{number}.jpg").rename(target)
        self.ids = [change(number) for number in self.ids]
        self.lists = {split: "\n".join(self.ids).encode() for split in self.lists}

    def write(self) -> dict[str, Any]:
        """Writes the set; returns CUSTOM_DATASETS."""
        (self.root / "ImageSets" / "Main").mkdir(parents=True)
        for split, text in self.lists.items():
            (self.root / "ImageSets" / "Main" / f"{split}.txt").write_bytes(text)
        for number, data in self.pages.items():
            file = self.root / "Annotations" / f"{number}.xml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        return {
            f"odd_{split}": {"LAYOUT": "voc", "FOLDER": str(self.root), "SPLIT": split, **self.more}
            for split in self.lists
        }


def page(number: str, extension: str = "jpg") -> str:
    """As LabelImg and VOC have it."""
    objects = "".join(
        f"<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated>"
        f"<difficult>0</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
        f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for name, box in BOXES.items()
    )
    return (
        f"<annotation><folder>JPEGImages</folder><filename>{number}.{extension}</filename>"
        f"<path>C:\\pictures\\{number}.{extension}</path><source><database>Unknown</database>"
        f"</source><size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
        f"<segmented>0</segmented>{objects}</annotation>"
    )


def kind(name: str, **about: Any) -> Callable[[Callable[[Odd], None]], Callable[[Odd], None]]:
    def add(change: Callable[[Odd], None]) -> Callable[[Odd], None]:
        assert name not in KINDS
        KINDS[name] = Kind(change, **{"masks": False, **about})  # type: ignore[arg-type]
        return change

    return add


def edited(name: str, old: str, new: str, every: bool = False, **about: Any) -> None:
    kind(name, **about)(lambda odd: odd.edit(old, new, every))


# --- what can be used ---


@kind("clean")
def _clean(odd: Odd) -> None:
    pass


edited("xmin 0, as CVAT and labelme write", "<xmin>3<", "<xmin>0<", True, note="boxes cut at the e")
edited("xmin 0.0 and ymin 0.0", "<xmin>3</xmin><ymin>4<", "<xmin>0.0</xmin><ymin>0.0<", True)
edited("xmax over the edge", "<xmax>55<", "<xmax>70<", note="boxes cut at the edge of their image")
edited("xmax half a pixel over the edge", "<xmax>55<", "<xmax>64.5<")
edited("corners of floats", "<xmin>3<", "<xmin> 3.25 <", True)
edited("widths of 64.0", "<width>64<", "<width>64.0<", True, note="widths and heights like 64.0")
edited("no size", "<width>64</width><height>48</height>", "", True, note="sizes taken from the im")
edited("sizes 0", ">64</width><height>48<", ">0</width><height>0<", True, note="sizes taken from")
edited("no word on difficulty", "<difficult>0</difficult>", "", True)
edited("difficulty without a number", "<difficult>0</difficult>", "<difficult/>", True)
edited("names with spaces around", "<name>cat<", "<name>\n cat <", True)
edited(
    "names with breaks inside", "<name>cat<", "<name>house\n cat<", note="classes with other spac"
)
edited("names of another script", "<name>cat<", "<name>猫<", True)
edited(
    "parts of objects", "<pose>Unspecified</pose>", "<pose/><part><name>head</name></part>", True
)
edited("one difficult object", "<difficult>0<", "<difficult>1<")


@kind("as labelme writes it")
def _labelme(odd: Odd) -> None:
    """labelme's labelme2voc: empty marks, corners of floats, an element named as the root."""
    for number in odd.ids:
        objects = "".join(
            f"<object><name>{name}</name><pose/><truncated/><difficult/><bndbox>"
            f"<xmin>{x0}.0</xmin><ymin>{y0}.36900369003689</ymin><xmax>{x1}.0</xmax>"
            f"<ymax>{y1}.36900369003695</ymax></bndbox></object>"
            for name, (x0, y0, x1, y1) in BOXES.items()
        )
        odd.pages[number] = (
            f"<annotation><folder/><filename>{number}.jpg</filename><database/><annotation/>"
            f"<image/><size><height>{HEIGHT}</height><width>{WIDTH}</width><depth>3</depth></size>"
            f"<segmented/>{objects}</annotation>"
        ).encode()


@kind("as CVAT writes it", note="boxes cut at the edge of their image .*: 4,")
def _cvat_export(odd: Odd) -> None:
    """CVAT's VOC export: corners from 0, further marks, attributes."""
    for number in odd.ids:
        text = page(number).replace("<xmin>3<", "<xmin>0.0<").replace("<xmax>55<", "<xmax>64.0<")
        text = text.replace("<pose>Unspecified</pose>", "<occluded>0</occluded>")
        attributes = "<attributes><attribute><name>rotation</name><value>0.0</value></attribute>"
        odd.pages[number] = text.replace(
            "</object>", f"{attributes}</attributes></object>"
        ).encode()


@kind("images without objects")
def _no_objects(odd: Odd) -> None:
    text = page("000001")
    odd.pages["000001"] = (text[: text.index("<object>")] + "</annotation>").encode()


@kind("PNG pictures", note="images of another ending than .jpg: 4")
def _png(odd: Odd) -> None:
    for number in odd.ids:
        (odd.images / f"{number}.jpg").unlink()
        picture().save(odd.images / f"{number}.png")


@kind("endings in capitals", note="another ending")
def _capitals(odd: Odd) -> None:
    for number in odd.ids:
        (odd.images / f"{number}.jpg").rename(odd.images / f"{number}.JPG")


@kind("two pictures, of which the xml names one", note="another ending")
def _two_named(odd: Odd) -> None:
    odd.pages["000001"] = page("000001", "png").encode()
    picture().save(odd.images / "000001.png")
    (odd.images / "000001.jpg").rename(odd.images / "000001.bmp")


@kind("pictures that only the xml names", note="images found by the xml's <filename>")
def _named(odd: Odd) -> None:
    for number in odd.ids:
        odd.pages[number] = page(f"img_{number}").encode()
        (odd.images / f"{number}.jpg").rename(odd.images / f"img_{number}.jpg")


@kind("lists with label columns", note="columns after the image's name ignored: 4")
def _columns(odd: Odd) -> None:
    odd.lists["train"] = b"000001  1\n000002 -1\n000003  0\n000004\t1\n"


@kind("objects that are there twice", note="objects listed twice, used once: 8, the first")
def _objects_twice(odd: Odd) -> None:
    for number, data in odd.pages.items():
        first, end = data.index(b"<object>"), data.rindex(b"</annotation>")
        odd.pages[number] = data[:end] + data[first:end] + data[end:]


@kind("lists with endings and folders", note="extensions and folders in the list ignored: 4")
def _endings(odd: Odd) -> None:
    odd.lists["test"] = b"000001.jpg\nJPEGImages/000002.jpg\n000003.xml\n000004.JPG\n"


@kind("lists of Windows, with a byte order mark, twice", note="images listed twice, used once: 1")
def _windows(odd: Odd) -> None:
    odd.lists["train"] = (
        b"\xef\xbb\xbf" + b"\r\n\r\n".join(n.encode() for n in odd.ids) + b"\r\n000001"
    )


@kind("lists in UTF-16")
def _utf16_list(odd: Odd) -> None:
    odd.lists["test"] = "\r\n".join(odd.ids).encode("utf-16")


@kind("names with spaces, and label columns", note="columns after the image's name ignored: 4")
def _spaces_and_columns(odd: Odd) -> None:
    odd.rename(lambda number: f"my photo {int(number)}")
    odd.lists["train"] = "\n".join(f"{number}\t1 0" for number in odd.ids).encode()


@kind("accents of files in another form", note="Unicode's form NFD: 4")
def _accents(odd: Odd) -> None:
    odd.rename(lambda number: unicodedata.normalize("NFD", f"é{number}"))
    names = (unicodedata.normalize("NFC", number) for number in odd.ids)
    odd.lists["test"] = "\n".join(names).encode()


@kind("names with spaces")
def _spaces(odd: Odd) -> None:
    odd.rename(lambda number: f"my photo {int(number)}")


@kind("names in folders")
def _folders(odd: Odd) -> None:
    odd.rename(lambda number: f"aachen/{number}")


@kind("a class that only one split has")
def _one_split(odd: Odd) -> None:
    odd.lists["train"], odd.lists["test"] = b"000001\n000002", b"000003\n000004"
    odd.edit("<name>dog<", "<name>cat<")
    odd.pages["000002"] = odd.pages["000002"].replace(b"<name>dog<", b"<name>cow<")


@kind("CLASSES settle the order", options={"CLASSES": ["dog", "cat"]})
def _classes(odd: Odd) -> None:
    pass


def _encoded(name: str, encoding: str, declared: str | None, **about: Any) -> None:
    def change(odd: Odd) -> None:
        for number in odd.ids:
            text = page(number).replace("cat", "Löwe" if encoding == "latin-1" else "猫")
            head = f'<?xml version="1.0" encoding="{declared}"?>\n' if declared else ""
            odd.pages[number] = (head + text).encode(encoding)

    kind(name, **about)(change)


_encoded("declared as ISO-8859-1", "latin-1", "ISO-8859-1")
_encoded("declared as GB2312", "gb2312", "GB2312")
_encoded("declared as Shift_JIS", "shift_jis", "Shift_JIS")
_encoded("declared as UTF-16", "utf-16", "UTF-16")
_encoded("UTF-32", "utf-32", None)
_encoded("UTF-8 with a byte order mark, declared as another", "utf-8-sig", "GB2312")
_encoded("UTF-8 with a byte order mark", "utf-8-sig", "utf-8")


# --- what cannot ---

_encoded("an encoding that is not declared", "latin-1", None, refused="not in the encoding that it")
_encoded("an encoding that is another", "latin-1", "utf-8", refused="not in the encoding that it d")
_encoded("an encoding that nobody knows", "utf-8", "klingon", refused="unknown encoding: klingon")
edited("another root", "<annotation>", "<annotations>", refused="is not a VOC annotation")
edited("no bndbox", "bndbox>", "robndbox>", refused=r"object 1 \(cat\) has no bndbox")
edited(
    "two boxes of one object",
    "</bndbox>",
    "</bndbox><bndbox/>",
    refused=r"object 1 \(cat\) has 2 bndbox; expected one",
)
edited(
    "a corner that is Python's", "<xmax>23<", "<xmax>2_3<", refused="is '2_3'; expected a number"
)
edited("no xmax", "<xmax>23</xmax>", "", refused=r"no xmax in object 1 \(cat\)")
edited(
    "a corner of text", "<xmin>3<", "<xmin>left<", refused="xmin of object 1 .cat. is 'left'; exp"
)
edited("a corner that is NaN", "<xmin>3<", "<xmin>nan<", refused="xmin of object 1 .cat. is 'nan'")
edited(
    "a corner that is empty", "<xmin>3</xmin>", "<xmin/>", refused="xmin of object 1 .cat. is ''"
)
edited(
    "corners exchanged", "<xmax>23<", "<xmax>2<", refused=r"\[3.0, 4.0, 2.0, 22.0\] .* ends befo"
)
edited(
    "a box outside",
    "<xmin>31</xmin><ymin>12</ymin><xmax>55<",
    "<xmin>80</xmin><ymin>12</ymin><xmax>99<",
    refused=r"lies outside its image \(64 x 48\)",
)
edited("no name", "<name>cat</name>", "<name> </name>", refused="object 1 has no name")
edited(
    "difficult is 2", "<difficult>0<", "<difficult>2<", refused="difficult is '2'; expected 0 or"
)
edited(
    "a width of text", "<width>64<", "<width>wide<", refused="width of size is 'wide'; expected a"
)
edited("a width of 64.5", "<width>64<", "<width>64.5<", refused="size is 64.5 x 48; expected whole")
edited("a width without height", "<height>48</height>", "", refused="no height in size")
edited(
    "sizes of another image", "<height>48<", "<height>50<", refused="the annotations say 64 x 50"
)
edited("no object at all", "object>", "thing>", True, refused="no object in any of its xml files")
edited(
    "only difficult objects", "<difficult>0<", "<difficult>1<", True, refused="no object that cou"
)
edited(
    "a class that is not among CLASSES",
    "<name>cat<",
    "<name>catt<",
    refused="no class 'catt'; known are cat, dog. Did you mean 'cat'",
    options={"CLASSES": ["cat", "dog"]},
)
edited(
    "masks asked for",
    "cat",
    "cat",
    refused="MODEL.MASK_ON is True, but 'odd_train' has no masks",
    options={"MODEL": {"MASK_ON": True}},
)


@kind("objects in a list of their own", refused="<object> that is not directly below")
def _nested(odd: Odd) -> None:
    odd.edit("<object><name>cat", "<objects><object><name>cat")
    odd.edit("</annotation>", "</objects></annotation>")


@kind("CVAT's own xml", refused="its root is <annotations>; expected <annotation>")
def _cvat(odd: Odd) -> None:
    odd.pages["000001"] = b'<annotations><image id="0" name="a.jpg"></image></annotations>'


@kind("an xml file that is cut off", refused=r"000001\.xml is not a VOC annotation")
def _cut(odd: Odd) -> None:
    odd.pages["000001"] = odd.pages["000001"][:200]


@kind("an xml file that is empty", refused=r"000001\.xml is not a VOC annotation")
def _empty(odd: Odd) -> None:
    odd.pages["000001"] = b""


@kind("an xml file that is no text", refused=r"000001\.xml is not a VOC annotation")
def _binary(odd: Odd) -> None:
    odd.pages["000001"] = bytes(range(256))


@kind("entities that grow", refused="it defines entities, which no annotation needs")
def _bomb(odd: Odd) -> None:
    entities = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(9))
    head = f'<!DOCTYPE a [<!ENTITY e0 "ha">{entities}]>'
    odd.pages["000001"] = (head + page("000001").replace("cat", "&e9;")).encode()


@kind(
    "an xml file that is absent", refused=r"names 1 image\(s\) that .*lacks, the first: 000001.xm"
)
def _absent(odd: Odd) -> None:
    del odd.pages["000001"]


@kind(
    "a picture that is absent", refused=r"names 1 image\(s\) that .* lacks, the first: 000001.jpg"
)
def _no_picture(odd: Odd) -> None:
    (odd.images / "000001.jpg").unlink()


@kind("two pictures, of which the xml names none", refused="lacks, the first: 000001.jpg")
def _two(odd: Odd) -> None:
    picture().save(odd.images / "000001.png")
    (odd.images / "000001.jpg").rename(odd.images / "000001.bmp")


@kind("a list that is empty", refused=r"test.txt is empty: no images in data set 'odd_test'")
def _empty_list(odd: Odd) -> None:
    odd.lists["test"] = b" \n\n"


@kind("a list that is no text", refused=r"test.txt, line 1: not UTF-8 text .*expected a list of im")
def _binary_list(odd: Odd) -> None:
    odd.lists["test"] = b"\x80\xff\x00"


@kind(
    "boxes in parts of the image", refused=r"\[0.05, .* has no number above 1: relative to the im"
)
def _relative(odd: Odd) -> None:
    for old, new in {">3<": ">0.05<", ">4<": ">0.1<", ">23<": ">0.4<", ">22<": ">0.5<"}.items():
        odd.edit(old, new)


@kind("a picture that is cut off", refused=r"000001\.jpg cannot be read as an image")
def _cut_picture(odd: Odd) -> None:
    file = odd.images / "000001.jpg"
    file.write_bytes(file.read_bytes()[:-300])
