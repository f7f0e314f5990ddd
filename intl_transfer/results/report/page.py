"""Writes the page: template, styles, scripts and data in one HTML file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from intl_transfer.results.collect import Collection
from intl_transfer.results.grid import SPREADS, Spread
from intl_transfer.results.render import render
from intl_transfer.results.report.details import Cache
from intl_transfer.results.report.drawn import pictures_of
from intl_transfer.results.report.modules import one_script
from intl_transfer.results.report.payload import build_payload
from intl_transfer.results.tables import Table
from intl_transfer.runs import write_atomically
from intl_transfer.runs.private import Privacy

PAGE = "index.html"
NOTHING = "No finished detection run."
STYLES = (
    "theme.css",
    "layout.css",
    "parts.css",
    "tables.css",
    "charts.css",
    "pictures.css",
    "narrow.css",
    "print.css",
)


def write_report(
    collection: Collection,
    tables: Sequence[Table],
    folder: str | Path,
    *,
    refresh: int | None = None,
    cache: Cache | None = None,
    privacy: Privacy | None = None,
    precision: int = 1,
    spread: Spread = "std",
) -> Path:
    """Writes the report: one self-contained file without network requests.

    Args:
        collection: from :func:`intl_transfer.results.collect`.
        tables: from :func:`intl_transfer.results.build_tables`.
        folder: for the page; created if missing.
        refresh: seconds after which an open page reloads; None: never.
        cache: kept between builds, so that only changed runs are read again.
        privacy: takes out what tells of machines and people; None leaves it in.
        precision: number of decimals that the page begins with.
        spread: beside means; the page begins with standard deviations, or none.

    Returns:
        The page, ``folder/index.html``.

    Raises:
        OSError: if it cannot be written.
    """
    payload = build_payload(collection, tables, cache)
    overview = {
        **payload.overview,
        "built": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "refresh": refresh,
        "digits": precision,
        # Intervals are for tables, whose numbers of digits are fixed.
        "spread": spread in ("std", "difference"),
        "spreads": {"measured": SPREADS["std"], "published": SPREADS["published"]},
    }
    words = render(tables, "md", precision, spread=spread) if tables else NOTHING
    details, plain = payload.details, words
    if privacy is not None:
        overview, plain = privacy.value(overview), privacy.text(plain)
        details = {key: privacy.value(detail) for key, detail in details.items()}
    for table, pictures in zip(overview["tables"], pictures_of(tables, privacy), strict=True):
        table["pictures"] = pictures
    shell = Environment(
        loader=PackageLoader("intl_transfer.results.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = shell.get_template("page.html.j2").render(
        overview=inline_json(overview),
        details={key: inline_json(detail) for key, detail in details.items()},
        style=Markup("\n".join(map(_static, STYLES))),
        script=Markup(one_script(_static)),
        plain=plain,
    )
    path = Path(folder) / PAGE
    # A name may contain a lone surrogate, which JSON can represent but UTF-8 cannot.
    write_atomically(path, lambda file: file.write(page.encode(errors="replace")))
    return path


def inline_json(value: Any) -> Markup:
    r"""JSON that is safe in a ``<script>`` element.

    Non-ASCII characters and possible markup are written as ``\uXXXX``: the text cannot end its
    element, open a comment, or break a line.

    Args:
        value: JSON-compatible.

    Returns:
        The text, marked as safe.

    Raises:
        ValueError: for NaN and infinities, which are invalid JSON.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _static(name: str) -> str:
    """One of the page's own files, the only text inserted without escaping."""
    file = resources.files("intl_transfer.results.report") / "static" / name
    return file.read_text(encoding="utf-8")
