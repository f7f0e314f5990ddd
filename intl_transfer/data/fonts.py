"""Draws text of any script, each part of it in a font that has its characters.

DejaVu Sans, which comes with matplotlib, has Latin, Greek, Cyrillic and a few more; the Noto fonts
that come as packages have the other scripts in use; missing characters are searched for in the
machine's fonts. Shaping and direction within a part are Pillow's (Raqm, if available).
"""

from __future__ import annotations

import importlib.util
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
from fontTools.ttLib import TTCollection, TTFont, TTLibError
from matplotlib import font_manager
from PIL import ImageDraw, ImageFont

# Packages that contain only fonts (pyproject.toml).
_PACKAGES = ("manimgx_fonts", "noto_cjk_sans_otc")
# Faces of Noto Sans CJK: one character may be written otherwise in Japan, Korea and China.
_JAPANESE, _KOREAN, _CHINESE = 0, 1, 2


@dataclass(frozen=True)
class Face:
    """A font file, and which of the faces in it."""

    file: Path
    index: int = 0


def draw_text(
    pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, fill: object
) -> None:
    """Writes one line at a baseline, as measured by :func:`text_box`.

    Args:
        pen: of the image.
        place: x, and y of the baseline.
        text: of any script; line breaks and control characters become spaces.
        size: height of the font in pixels.
        fill: the color.
    """
    x, y = place
    for part, face in parts(text):
        chosen = font(size, face)
        # A color of any length.
        pen.text((x, y), part, font=chosen, fill=fill, anchor="ls")  # type: ignore[arg-type]
        x += chosen.getlength(part)


def text_box(text: str, size: int) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a line, from the start of its baseline at (0, 0)."""
    x, boxes = 0.0, []
    for part, face in parts(text):
        chosen = font(size, face)
        left, top, right, bottom = chosen.getbbox(part, anchor="ls")
        boxes.append((x + left, top, x + right, bottom))
        x += chosen.getlength(part)
    if not boxes:
        return (0.0, 0.0, 0.0, 0.0)
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


@lru_cache(maxsize=256)
def font(size: int, face: Face | None = None) -> ImageFont.FreeTypeFont:
    """A face in a size; DejaVu Sans by default, so that images look the same everywhere."""
    face = face or Face(_dejavu())
    return ImageFont.truetype(face.file, size, index=face.index)


@lru_cache(maxsize=4096)
def parts(text: str) -> tuple[tuple[str, Face], ...]:
    """Splits a line into parts of one face each.

    Spaces, punctuation and combining marks use the face of the preceding character, if it has them.
    Characters without a face are drawn in DejaVu Sans, as boxes.
    """
    clean = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)
    found: list[tuple[str, Face]] = []
    for character in clean:
        stays = unicodedata.category(character)[0] in "MPZC"
        if found and stays and _has(found[-1][1], character):
            face = found[-1][1]
        else:
            face = next((f for f in _faces(clean) if _has(f, character)), Face(_dejavu()))
        if found and found[-1][1] == face:
            found[-1] = (found[-1][0] + character, face)
        else:
            found.append((character, face))
    return tuple(found)


def families(text: str = "") -> list[str]:
    """Names of font families for matplotlib, in order of fallback.

    Args:
        text: all that will be drawn; unneeded fonts are omitted.
    """
    names = ["DejaVu Sans"]
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for face in dict.fromkeys(face for line in text.splitlines() for _, face in parts(line)):
        if face.file == _dejavu():
            continue
        if str(face.file) not in known:
            font_manager.fontManager.addfont(face.file)
            known.add(str(face.file))
        # matplotlib knows only the first face of a collection.
        names.append(font_manager.get_font(face.file).family_name)
    return list(dict.fromkeys(names))


def _faces(text: str) -> Iterator[Face]:
    """All faces, in order of preference."""
    yield Face(_dejavu())
    for file in _packaged():
        if file.suffix == ".ttc":
            yield Face(file, _written_in(text))
        else:
            yield Face(file)
    for file in _of_the_machine():
        yield Face(file)


def _written_in(text: str) -> int:
    """The face of a CJK font for a text, by characters that only one country uses."""
    if any("\u3040" <= character <= "\u30ff" for character in text):
        return _JAPANESE
    if any("\uac00" <= c <= "\ud7a3" or "\u1100" <= c <= "\u11ff" for c in text):
        return _KOREAN
    return _CHINESE


@lru_cache
def _dejavu() -> Path:
    return Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


@lru_cache
def _packaged() -> tuple[Path, ...]:
    """Font files of the installed packages: upright ones, pictographs last."""
    files: list[Path] = []
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            found = (f for f in Path(folder).iterdir() if f.suffix in (".ttf", ".ttc", ".otf"))
            files += sorted(file for file in found if "Italic" not in file.name)
    return tuple(sorted(files, key=lambda file: "Emoji" in file.name))


@lru_cache
def _of_the_machine() -> tuple[Path, ...]:
    return tuple(map(Path, sorted(font_manager.findSystemFonts())))


def _has(face: Face, character: str) -> bool:
    return ord(character) in _characters(face.file)


@lru_cache(maxsize=512)
def _characters(file: Path) -> frozenset[int]:
    """The code points that a font has glyphs for; empty for an unreadable file."""
    try:
        if file.suffix in (".ttc", ".otc"):
            with TTCollection(file, lazy=True) as collection:
                return frozenset(collection.fonts[0].getBestCmap() or ())
        with TTFont(file, lazy=True) as opened:
            return frozenset(opened.getBestCmap() or ())
    except (OSError, TTLibError, KeyError, AssertionError):
        return frozenset()
