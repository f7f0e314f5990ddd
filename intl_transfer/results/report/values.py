"""Converts values of any type from users' files for the page."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from intl_transfer.runs.settings import flatten

_KEY = re.compile(r"[0-9a-zA-Z_-]{1,64}")


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, otherwise an empty one."""
    return value if isinstance(value, Mapping) else {}


def sequence(value: Any) -> list[Any]:
    """The value if it is a list, otherwise an empty one."""
    return value if isinstance(value, list) else []


def number(value: Any, digits: int = 5) -> float | int | None:
    """A finite number rounded to significant digits; None for anything else."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    whole = isinstance(value, int) and not isinstance(value, bool)
    return (
        value if whole and abs(value) < 2**53 else None
    )  # the limit of exact integers in a browser


def text(value: Any) -> str | None:
    """A scalar as readable text; None stays None."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def page_key(identity: Any) -> str:
    """A name for URLs within the page: the value itself if safe, otherwise its hash."""
    if isinstance(identity, str) and _KEY.fullmatch(identity):
        return identity
    return hashlib.sha256(repr(identity).encode(errors="replace")).hexdigest()[:16]


def as_text(settings: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings by dotted key, each value as text."""
    return {key: "null" if v is None else str(text(v)) for key, v in flatten(settings).items()}
