"""Reads VOC's lists and xml files: all that Detectron2 reads, and more."""

from __future__ import annotations

import codecs
import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path, PurePath

from intl_transfer.data.annotations import (
    AnnotatedImage,
    Annotation,
    Contents,
    Findings,
    Folder,
    Repeats,
    are_relative,
    listed,
    place_of,
    shown,
)
from intl_transfer.data.class_names import canonical
from intl_transfer.data.detection_sets import DetectionSet
from intl_transfer.data.images import EXTENSIONS, MAX_PIXELS, UnreadableImageError, read_header
from intl_transfer.data.segmentations import Box
from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.files.texts import read_text

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_TRUTHS = {"": False, "0": False, "1": True, "false": False, "true": True}
# A name, and a column of -1, 0 or 1 (difficult) behind it.
_COLUMN = re.compile(r"(.*\S)\s+[-+]?\d+")
_MARKS = (  # of more bytes first
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MAX_BYTES = 64 << 20  # of an xml file
# <?xml version="1.0" encoding="..."?>
_DECLARATION = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["'][^>]*\?>""")


class XmlError(ValueError):
    """An invalid annotation file; the message states what was found and expected."""


@dataclass(frozen=True)
class _Object:
    """One object as written: class, corners (1-based, inclusive), whether difficult."""

    name: str
    corners: Box
    difficult: bool


@dataclass(frozen=True)
class _Page:
    """One xml file: width and height (None if not stated), file name, objects."""

    size: tuple[int, int] | None
    filename: str | None
    objects: list[_Object]
    notes: list[tuple[str, str]]


def read_voc(one: DetectionSet) -> Contents:
    """Reads a VOC-style data set: its list, its xml files, and its classes.

    Args:
        one: its location; its ``classes``, if given, determine the classes and their order.
            Otherwise they are those of all xml files in the folder, sorted, so that a split may
            lack a class.
    """
    findings = Findings()
    reader = _Reader(one, findings)
    contents = reader.read()
    contents.problems, contents.notes = findings.problems(), findings.notes()
    return contents


def class_names(one: DetectionSet) -> tuple[str, ...]:
    """Names of a VOC-style data set's classes: as given, or those in its folder's annotations."""
    if one.classes is not None:
        return one.classes
    names: set[str] = set()
    for file in sorted(one.annotations.rglob("*.xml")) if one.annotations.is_dir() else ():
        try:
            names.update(thing.name for thing in _page(file).objects)
        except XmlError:
            continue  # reported where it is listed
    return tuple(sorted(names))


class _Reader:
    def __init__(self, one: DetectionSet, findings: Findings) -> None:
        assert one.listing is not None
        self._one, self._findings, self._listing = one, findings, one.listing
        self._xml, self._pictures = Folder(one.annotations), Folder(one.images)

    def read(self) -> Contents:
        contents = Contents()
        pages: dict[str, _Page] = {}
        absent: list[str] = []
        ids = self._ids()
        self._findings.published = len(ids) == self._one.known_images
        for number in ids:
            file = self._one.annotations / f"{number}.xml"
            if not self._xml.has(file):
                absent.append(f"{number}.xml")
                continue
            try:
                pages[number] = _page(file)
            except XmlError as error:
                self._findings.problem("xml", f"{file} is not a VOC annotation ({error})")
        if absent:
            near = self._xml.hint(absent[0])
            self._findings.problem(
                "no xml",
                f"{self._listing} names {len(absent)} image(s) that {self._one.annotations} lacks, "
                f"the first: {absent[0]}.{near}",
            )
        names = {thing.name for page in pages.values() for thing in page.objects}
        contents.classes = self._one.classes or tuple(sorted(names | set(class_names(self._one))))
        contents.category_ids = tuple(range(len(contents.classes)))
        label = {name: number for number, name in enumerate(contents.classes)}
        no_picture: list[str] = []
        for number, page in pages.items():
            picture = self._picture(number, page)
            if picture is None:
                no_picture.append(number)
                continue
            file = self._one.annotations / f"{number}.xml"
            for kind, text in page.notes:
                self._findings.note(kind, text, f"in {file}")
            size = page.size or self._size(file, picture)
            if size is None:
                continue
            contents.images[number] = AnnotatedImage(picture, *size)
            found = [self._annotation(thing, file, label, size) for thing in page.objects]
            kept = [one for one in found if one is not None]
            contents.annotations[number] = self._once(number, kept, file)
        if no_picture:
            near = self._pictures.hint(f"{no_picture[0]}.jpg")
            self._findings.problem(
                "absent",
                f"{self._listing} names {len(no_picture)} image(s) that {self._one.images} lacks, "
                f"the first: {no_picture[0]}.jpg (nor with another ending: "
                f"{listed(EXTENSIONS, 4)}).{near}",
            )
        if ids and not names and not self._findings.any_problem:
            self._findings.problem("empty", f"{self._listing}: no object in any of its xml files")
        return contents

    def _once(self, number: str, given: list[Annotation], file: Path) -> list[Annotation]:
        """The objects of an image, each once."""
        repeats, kept = Repeats(), []
        for one in given:
            if not self._findings.published and repeats.has(number, one):
                self._findings.note("twice", "objects listed twice, used once", f"in {file}")
            else:
                kept.append(one)
        return kept

    def _ids(self) -> list[str]:
        """The images of the list, each once."""
        try:
            lines = read_text(self._listing, _MAX_BYTES, "a list of images").splitlines()
        except (FileNotFoundError, UserError) as error:
            self._findings.problem("list", str(error))
            return []
        ids: dict[str, None] = {}
        for place, line in enumerate((line.strip() for line in lines), 1):
            if not line:
                continue
            number = self._id(line, f"in line {place} of {self._listing}")
            if number in ids:
                where = f"{number} in {self._listing}"
                self._findings.note("listed twice", "images listed twice, used once", where)
            ids[number] = None
        if not ids:
            text = f"{self._listing} is empty: no images in data set '{self._one.name}'"
            self._findings.problem("list", text)
        return list(ids)

    def _id(self, line: str, where: str) -> str:
        """The image that a line means: all of it, or its first column, with or without ending."""
        name = line
        while True:  # without further columns from the right: a name may have spaces
            found = self._page_of(name, where)
            if found is not None:
                if name != line:
                    note = "columns after the image's name ignored"
                    self._findings.note("columns", note, where)
                return found
            columns = _COLUMN.fullmatch(name)
            if columns is None:
                return line if " " in name else name
            name = columns[1]

    def _page_of(self, name: str, where: str) -> str | None:
        """The path of a name's xml file below their folder, without its ending."""
        bare = PurePath(name.replace("\\", "/"))
        names = [name]
        if bare.suffix.lower() in (*EXTENSIONS, ".xml"):
            names += [str(bare.with_suffix("")), bare.stem]
        for one in dict.fromkeys(names):
            found = self._xml.find(f"{one}.xml")
            if found is None:
                continue
            if one != name:
                note = "extensions and folders in the list ignored"
                self._findings.note("endings", note, where)
            elif found[1] is not None:
                self._findings.note("spelling", f"file names found by other {found[1]}", where)
            path = found[0]
            if path.is_relative_to(self._one.annotations):
                path = path.relative_to(self._one.annotations)
            return str(path).removesuffix(".xml")
        return None

    def _picture(self, number: str, page: _Page) -> Path | None:
        """The image's file, of any format."""
        usual = self._one.images / f"{number}.jpg"
        if self._pictures.has(usual):
            return usual
        there = self._pictures.names(usual.parent)
        stem = unicodedata.normalize("NFC", usual.name.removesuffix(".jpg"))
        found = sorted(n for n in there if Path(n).suffix.lower() in EXTENSIONS and
                       unicodedata.normalize("NFC", n[: -len(Path(n).suffix)]) == stem)  # fmt: skip
        named = Path(page.filename.replace("\\", "/")).name if page.filename else None
        if len(found) > 1 and named in found:
            found = [str(named)]
        if len(found) == 1:
            if found[0].endswith(".jpg"):
                text = "file names found by other accents in Unicode's forms"
                self._findings.note("spelling", text, found[0])
            else:
                self._findings.note("ending", "images of another ending than .jpg", found[0])
            return usual.with_name(found[0])
        if named and not found and named in there:
            self._findings.note("named", "images found by the xml's <filename>", f"{number}.xml")
            return usual.with_name(named)
        return None

    def _size(self, file: Path, picture: Path) -> tuple[int, int] | None:
        try:
            header = read_header(picture)
        except UnreadableImageError as error:
            self._findings.problem("unreadable", str(error))
            return None
        text = "sizes taken from the images, since the xml does not state them"
        self._findings.note("no size", text, f"in {file}")
        return header.width, header.height

    def _annotation(
        self, thing: _Object, file: Path, label: dict[str, int], size: tuple[int, int]
    ) -> Annotation | None:
        if thing.name not in label:
            self._findings.problem(
                "class",
                f"{file}: no class '{thing.name}'; known are {listed(label)}."
                f"{did_you_mean(thing.name, label)}",
            )
            return None
        xmin, ymin, xmax, ymax = thing.corners
        where = f"{file}: the box {list(thing.corners)} (xmin, ymin, xmax, ymax)"
        if xmax < xmin or ymax < ymin:
            self._findings.problem(
                "box", f"{where} ends before it begins; expected corners, not width and height"
            )
            return None
        if are_relative(thing.corners, *size):
            self._findings.problem(
                "relative",
                f"{where} has no number above 1: relative to the image's size; expected pixels",
            )
            return None
        # Corners count from 1, and are inside.
        box = (xmin - 1.0, ymin - 1.0, xmax, ymax)
        place, cut = place_of(box, *size)
        if place == "outside":
            self._findings.problem(
                "outside",
                f"{where} lies outside its image ({size[0]} x {size[1]}); correct or remove it",
            )
            return None
        if place == "cut" and not self._findings.published:
            text = "boxes cut at the edge of their image (corners count from 1)"
            self._findings.note("cut", text, f"in {file}")
            box = cut
        area = (box[2] - box[0]) * (box[3] - box[1])
        return Annotation(label[thing.name], box, True, None, area, thing.difficult)


def _page(file: Path) -> _Page:
    """Reads one xml file.

    Raises:
        XmlError: naming the field, what was found and what was expected.
    """
    root = _root(file)
    if root.tag != "annotation":
        raise XmlError(f"its root is <{root.tag}>; expected <annotation>")
    notes: list[tuple[str, str]] = []
    objects, given = [], root.findall("object")
    if len(given) < sum(1 for _ in root.iter("object")):
        raise XmlError("it has an <object> that is not directly below <annotation>")
    for place, element in enumerate(given, 1):
        text = element.findtext("name") or ""
        name = canonical(text)
        if name != text.strip():
            notes.append(
                ("spelling", "names of classes with other spaces or forms of accents, put right")
            )
        if not name:
            raise XmlError(f"object {place} has no name")
        boxes = element.findall("bndbox")
        if len(boxes) != 1:
            count = f"{len(boxes)} bndbox; expected one" if boxes else "no bndbox"
            raise XmlError(f"object {place} ({name}) has {count}")
        (corners,) = boxes
        box = tuple(_number(corners, key, f"object {place} ({name})") for key in _CORNERS)
        mark = (element.findtext("difficult") or "").strip().lower()
        if mark not in _TRUTHS:
            raise XmlError(f"object {place} ({name}): difficult is '{mark}'; expected 0 or 1")
        objects.append(_Object(name, (box[0], box[1], box[2], box[3]), _TRUTHS[mark]))
    filename = (root.findtext("filename") or "").strip() or None
    return _Page(_stated_size(root, notes), filename, objects, notes)


def _stated_size(root: ElementTree.Element, notes: list[tuple[str, str]]) -> tuple[int, int] | None:
    element = root.find("size")
    texts = [((element.findtext(k) if element is not None else "") or "").strip()
             for k in ("width", "height")]  # fmt: skip
    if all(text in ("", "0") for text in texts):
        return None
    sides = [_number(element, key, "size") for key in ("width", "height")]
    if any(side != int(side) or side < 1 for side in sides) or sides[0] * sides[1] > MAX_PIXELS:
        raise XmlError(
            f"size is {texts[0]} x {texts[1]}; expected whole numbers above 0, of at most "
            f"{MAX_PIXELS:,} pixels together"
        )
    if not all(text.isdigit() for text in texts):
        notes.append(("float size", "widths and heights like 64.0, taken as whole"))
    return int(sides[0]), int(sides[1])


def _number(element: ElementTree.Element | None, key: str, where: str) -> float:
    text = None if element is None else element.findtext(key)
    if text is None:
        raise XmlError(f"no {key} in {where}")
    try:
        value = float(text) if "_" not in text else float("nan")  # Python's way to write 23
    except ValueError:
        value = float("nan")
    if not abs(value) < 2**31:  # NaN, too
        raise XmlError(f"{key} of {where} is {shown(text.strip())}; expected a number")
    return value


def _root(file: Path) -> ElementTree.Element:
    """Parses a file, in whatever encoding it declares; entities, which can grow, are refused."""
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise XmlError(f"it has over {_MAX_BYTES >> 20} MiB")
        data = file.read_bytes()
    except (OSError, ValueError) as error:
        raise XmlError(str(error)) from None
    try:
        # A byte order mark says more than a declaration, which editors leave as it was.
        encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None)
        if encoding is None:
            declared = _DECLARATION.match(data)
            encoding = declared[1].decode() if declared else "utf-8"
        text = data.decode(encoding)
        text = text.lstrip("\ufeff \t\r\n")
        if "<!ENTITY" in text:
            raise XmlError("it defines entities, which no annotation needs")
        # The parser takes text as it is, whatever its declaration says.
        return ElementTree.fromstring(text)
    except (UnicodeDecodeError, LookupError) as error:
        raise XmlError(
            f"its text is not in the encoding that it declares, UTF-8 if none: {error}"
        ) from None
    except (ElementTree.ParseError, ValueError) as error:
        raise XmlError(str(error)) from None
