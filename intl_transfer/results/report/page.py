"""The page itself: a shell from a template, styles, scripts and data in one HTML file."""

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
) -> Path:
    """Writes the report: one file that needs no other, and asks the network for nothing.

    Args:
        collection: from :func:`intl_transfer.results.collect`.
        tables: from :func:`intl_transfer.results.build_tables`.
        folder: where the page goes; made if absent.
        refresh: seconds after which an open page loads itself again; None: never.
        cache: kept from page to page, so that only what has changed is read again.
        privacy: takes out what tells of machines and people; None leaves it in.

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
    }
    details, plain = payload.details, render(tables, "md") if tables else NOTHING
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
    # A name may hold half a character; JSON carries it, a file in UTF-8 cannot.
    write_atomically(path, lambda file: file.write(page.encode(errors="replace")))
    return path


def inline_json(value: Any) -> Markup:
    r"""JSON that may stand in a ``<script>`` element.

    Everything beyond ASCII, and what a browser could take for markup, is written as ``\uXXXX``:
    the text cannot end its element, open a comment, or break a line.

    Args:
        value: JSON-compatible.

    Returns:
        The text, marked as safe.

    Raises:
        ValueError: for NaN and infinities, which a browser would refuse.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _static(name: str) -> str:
    """One of the page's own files: the only text that enters it unescaped."""
    file = resources.files("intl_transfer.results.report") / "static" / name
    return file.read_text(encoding="utf-8")
