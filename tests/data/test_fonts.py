"""Names of any script on pictures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from intl_transfer.data import fonts
from intl_transfer.data.class_names import unique_names

needs_noto = pytest.mark.skipif(
    len(fonts._packaged()) < 20, reason="the packages of Noto fonts are not installed"
)
NAMES = {
    "Latin": "Straße naïve Łódź Việt",
    "Greek": "γάτα",
    "Cyrillic": "кошка",
    "Arabic": "قطة",
    "Hebrew": "חתול",
    "Chinese": "猫 汽车 龍",
    "Japanese": "ネコ ねこ 猫",
    "Korean": "고양이",
    "Devanagari": "बिल्ली",
    "Bengali": "বিড়াল",
    "Tamil": "பூனை",
    "Telugu": "పిల్లి",
    "Kannada": "ಬೆಕ್ಕು",
    "Malayalam": "പൂച്ച",
    "Gujarati": "બિલાડી",
    "Gurmukhi": "ਬਿੱਲੀ",
    "Oriya": "ବିଲେଇ",
    "Sinhala": "පූසා",
    "Thai": "แมว",
    "Lao": "ແມວ",
    "Khmer": "ឆ្មា",
    "Myanmar": "ကြောင်",
    "Georgian": "კატა",
    "Armenian": "կատու",
    "Amharic": "ድመት",
    "pictographs": "🐈",
}


def ink(size, face, text):
    """A text in one face, as pixels."""
    image = Image.new("L", (60, 60))
    ImageDraw.Draw(image).text((10, 40), text, font=fonts.font(size, face), fill=255, anchor="ls")
    return np.asarray(image)


@needs_noto
@pytest.mark.parametrize("script", NAMES)
def test_every_character_is_drawn_and_not_a_box(script):
    """What a font draws for a code point that is no character is its box."""
    for part, face in fonts.parts(NAMES[script]):
        box = ink(24, face, "\U0010fffe")
        for character in part.replace(" ", ""):
            assert not np.array_equal(ink(24, face, character), box), (character, face)


@needs_noto
def test_han_is_written_as_the_text_around_it():
    indices = [fonts.parts(text)[0][1].index for text in ("猫", "ネコ猫", "고猫")]
    assert indices == [2, 0, 1]  # Chinese, Japanese, Korean faces of Noto Sans CJK


@needs_noto
def test_a_line_is_one_part_for_each_face():
    assert [part for part, _ in fonts.parts("cat 猫, 0.95")] == ["cat ", "猫, ", "0.95"]
    assert [part for part, _ in fonts.parts("a\nb\tc")] == ["a b c"]
    assert fonts.families("cat")[0] == fonts.families("cat 猫")[0] == "DejaVu Sans"
    assert "Noto Sans CJK JP" in fonts.families("cat 猫")


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(codec="utf-8", max_codepoint=0x2FFF), max_size=12))
def test_any_text_is_drawn_within_its_box(text):
    left, top, right, bottom = fonts.text_box(text, 14)
    image = Image.new("L", (900, 200))
    fonts.draw_text(ImageDraw.Draw(image), (300, 100), text, 14, 255)
    rows, columns = np.nonzero(np.asarray(image))
    if rows.size:
        assert 300 + left - 1 <= columns.min() <= columns.max() <= 300 + right + 1
        assert 100 + top - 1 <= rows.min() <= rows.max() <= 100 + bottom + 1


def test_without_the_packages_there_is_still_something(monkeypatch):
    fonts.parts.cache_clear()
    monkeypatch.setattr(fonts, "_packaged", lambda: ())
    monkeypatch.setattr(fonts, "_of_the_machine", lambda: ())
    assert [part for part, _ in fonts.parts("cat 猫")] == ["cat 猫"]
    assert fonts.text_box("猫", 14)[2] > 0
    fonts.parts.cache_clear()


@given(st.lists(st.sampled_from(["bird", "bird (2)", "bird (3)", "cat", ""]), max_size=8))
def test_no_name_is_lost(names):
    found = unique_names(names)
    assert len(set(found)) == len(found) == len(names)
    assert unique_names(found) == found
    for name, reported in zip(names, found, strict=True):
        assert reported == name or reported.startswith(f"{name} (")
        if names.count(name) == 1:
            assert reported == name


def test_the_second_of_a_name_has_a_number():
    assert unique_names(["bird", "cat", "bird"]) == ["bird", "cat", "bird (2)"]
