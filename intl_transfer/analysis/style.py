"""The one style of all pictures, and how they are written: PNG, SVG and PDF that say their command.

The settings themselves are in ``paper.mplstyle``, matplotlib's own form.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from intl_transfer.errors import UserError
from intl_transfer.runs import write_atomically

#: Okabe and Ito's colors, told apart with every kind of color vision; yellow is left out, which is
#: too light for lines.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
#: Lines differ too, for those who print in black.
LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1.2, 1.2, 1.2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
#: Inches: one column of a two-column paper, and both.
COLUMN, WIDE = 3.4, 7.0
#: Light to dark in print, and the same to every kind of color vision.
SEQUENTIAL = "cividis"
_FILE = Path(__file__).with_name("paper.mplstyle")


@contextmanager
def paper_style() -> Iterator[None]:
    """Figures made and saved inside have the style; the settings outside stay as they are."""
    with matplotlib.rc_context(fname=_FILE), warnings.catch_warnings():
        # Without a warning for each letter of a run's name that the font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def line_styles() -> Iterator[dict[str, Any]]:
    """A color, a dash and a marker for one line after another."""
    for color, line, marker in zip(cycle(COLORS), cycle(LINES), cycle(MARKERS), strict=False):
        yield {"color": color, "linestyle": line, "marker": marker}


def ordered_colors(count: int) -> list[Any]:
    """Colors for an ordered quantity, dark to light, none too light for a line."""
    shades = matplotlib.colormaps[SEQUENTIAL]
    return [shades(0.9 * index / max(1, count - 1)) for index in range(count)]


def panels(
    columns: int = 1, rows: int = 1, width: float = COLUMN, height: float = 2.3, **more: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with its axes, row by row.

    Args:
        columns: of axes.
        rows: of axes.
        width: inches.
        height: inches.
        more: for ``Figure.subplots``.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **more).flat)


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def log_scale(axis: Axes, which: str) -> None:
    """Makes the ``x`` or ``y`` axis logarithmic, its labels text (``10⁻⁶``) as all labels are."""
    axis.set(**{f"{which}scale": "log"})

    def power(value: float, place: object = None) -> str:
        exponent = math.log10(value) if value > 0 else math.nan
        whole = abs(exponent - round(exponent)) < 1e-6
        return f"10{str(round(exponent)).translate(_RAISED)}" if whole else ""

    side = axis.xaxis if which == "x" else axis.yaxis
    side.set_major_formatter(FuncFormatter(power))
    side.set_minor_formatter(NullFormatter())


def letter(axes: Sequence[Axes], names: Sequence[str]) -> None:
    """Titles ``(a) NAME``, ``(b) NAME``, …; a single one goes without its letter."""
    for index, (axis, name) in enumerate(zip(axes, names, strict=True)):
        mark = f"({chr(ord('a') + index)}) " if len(names) > 1 else ""
        axis.set_title(mark + name, loc="left")


def save(figure: Figure, file: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a picture atomically, by its ending PNG, SVG or PDF.

    Args:
        figure: what to write.
        file: the picture.
        metadata: ``title`` and ``command``, kept inside the picture. There is no date: the same
            figure makes the same file.

    Raises:
        UserError: if the folder cannot be written.
    """
    form = file.suffix[1:]
    title, command = ((metadata or {}).get(key, "") for key in ("title", "command"))
    forms: dict[str, dict[str, Any]] = {
        "png": {"Title": title, "Description": command},
        "svg": {"Title": title, "Description": command, "Date": None},
        "pdf": {"Title": title, "Subject": command, "CreationDate": None},
    }
    kept = {key: value for key, value in forms[form].items() if value != ""}
    try:
        write_atomically(
            file,
            lambda out: figure.savefig(
                out, format=form, dpi=200, bbox_inches="tight", metadata=kept
            ),
        )
    except OSError as error:
        raise UserError(f"{file.parent} cannot be written: {error.strerror or error}") from None
