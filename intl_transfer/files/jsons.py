"""The reader of JSON files."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json

from intl_transfer.errors import UserError

#: Maximum nesting, and digits of an integer, beyond which it overflows a float.
DEEPEST = 200
MOST_DIGITS = 308
_LONG = re.compile(rf"\d{{{MOST_DIGITS + 1}}}")
_LONG_BYTES = re.compile(_LONG.pattern.encode())


def parse_json(data: bytes | str, where: str) -> Any:
    """Parses a JSON text.

    NaN and the infinities, which Python writes, are read; what a field may be is said by the
    records (:mod:`intl_transfer.runs.records`). A lone surrogate, which cannot be encoded, becomes
    a question mark.

    Args:
        data: the text, UTF-8 where it is bytes.
        where: it is from, for messages.

    Raises:
        UserError: if it is not valid JSON, nested too deeply, or has a number of too many digits.
    """
    try:
        value = _parsed(data)
    except (ValueError, RecursionError) as error:
        reason = str(error) or "nested too deeply"
        if isinstance(error, RecursionError) or "recursion" in reason:
            reason = f"objects or lists are nested more than {DEEPEST} deep"
        raise UserError(f"{where} is not valid JSON ({reason}); the file is damaged") from None
    return value


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An ``object_pairs_hook`` for :mod:`json`, which by itself keeps the last of equal keys.

    Raises:
        ValueError: if an object has a key twice.
    """
    value = dict(pairs)
    if len(value) < len(pairs):
        repeated = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f"the key '{repeated[:60]}' twice in one object")
    return value


def _parsed(data: bytes | str) -> Any:
    try:
        value = from_json(data)  # twice as fast as json.loads
        if _has_long_number(data):
            json.loads(data, parse_int=_whole)
    except ValueError as error:
        if "recursion" in str(error):
            raise
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        value = json.loads(text, parse_int=_whole)
        value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    return value


def _has_long_number(data: bytes | str) -> bool:
    if isinstance(data, str):
        return _LONG.search(data) is not None
    return _LONG_BYTES.search(data) is not None


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)
