"""Colors: legible in both themes, and told apart without red or green."""

from __future__ import annotations

import itertools
import re
from importlib import resources

import numpy as np
import pytest

TEXT = 4.5  # WCAG 2 AA
GRAPHICS = 3.0
# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
DEFICIENCIES = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]],
}  # fmt: skip


def colors(theme):
    file = resources.files("intl_transfer.results.report") / "static" / "theme.css"
    found = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", file.read_text())
    return {name: linear(pair[theme == "dark"]) for name, *pair in found}


def linear(code):
    values = np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def luminance(rgb):
    return float(rgb @ (0.2126, 0.7152, 0.0722))


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def lab(rgb):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    t = xyz @ np.clip(rgb, 0, 1) / (0.9505, 1.0, 1.089)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_contrast_is_what_it_is_defined_to_be():
    assert contrast(linear("#000000"), linear("#ffffff")) == pytest.approx(21)
    assert contrast(linear("#777777"), linear("#ffffff")) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_lines_are_legible(theme):
    found = colors(theme)
    grounds = ("paper", "card", "quiet")
    pairs = [(text, ground) for text in ("ink", "soft", "accent") for ground in grounds]
    pairs += [(name, f"{name}-soft") for name in ("accent", "ok", "warn", "bad")]
    pairs += [("ink", f"{name}-soft") for name in ("accent", "ok", "warn", "bad")]
    pairs += [(name, ground) for name in ("ok", "warn", "bad") for ground in ("paper", "card")]
    pairs += [("card", "accent")]  # letters on a filled button
    for text, ground in pairs:
        assert contrast(found[text], found[ground]) >= TEXT, (text, ground)
    series = [name for name in found if re.fullmatch(r"s\d", name)]
    assert len(series) == 8
    for name in [*series, "strong-line"]:
        assert contrast(found[name], found["card"]) >= GRAPHICS, name


@pytest.mark.parametrize("kind", ["none", *DEFICIENCIES])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_series_differ_for_everybody(theme, kind):
    found = colors(theme)
    eyes = np.array(DEFICIENCIES.get(kind, np.eye(3)))
    seen = [lab(eyes @ found[f"s{i}"]) for i in range(8)]
    # CIE76: 2 is just visible, 10 is seen at a glance. Dashes and shapes differ besides.
    for (i, a), (j, b) in itertools.combinations(enumerate(seen), 2):
        assert np.linalg.norm(a - b) > (20 if max(i, j) < 4 else 10), (i, j)
