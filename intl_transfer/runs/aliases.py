"""Keys that earlier versions spelled differently: one table, for files and command lines alike.

What is written has the standard spelling; what was written before is read by its old one. Keys that
a user names (initializations, evaluations, a loss's options, classes) are never touched: a key is
taken for another only where the schema knows the other and not the key itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from intl_transfer.errors import UserError

#: Old to standard spelling, of one part of a dotted key.
ALIASES: dict[str, str] = {
    "config_said_by": "config_source",
    "foreign": "external",
    "grey": "grayscale",
    "initialisation": "initialization",
    "initialisations": "initializations",
    "recompute": "activation_checkpointing",
    "solarise": "solarize",
    "unlabelled": "unlabeled",
}
_PART = re.compile(r"[^.\[\]]+")


def standard_key(key: str) -> str:
    """A dotted key of a known schema in its standard spelling.

    Args:
        key: for example ``views[0].solarise``.
    """
    return _PART.sub(lambda part: ALIASES.get(part[0], part[0]), key)


def standard_keys(values: Any, known: Collection[str], where: str, prefix: str = "") -> Any:
    """A configuration's values under the standard spelling of their keys.

    Args:
        values: nested mappings and lists.
        known: the schema's dotted keys, without indices.
        where: the values are from, for messages.
        prefix: dotted, of the values' own place, with a dot at its end.

    Returns:
        The same, with new mappings; the values as they are.

    Raises:
        UserError: if a key stands there in both spellings.
    """
    if isinstance(values, list):
        return [standard_keys(value, known, where, prefix) for value in values]
    if not isinstance(values, Mapping):
        return values
    found: dict[Any, Any] = {}
    for key, value in values.items():
        name = ALIASES.get(key, key) if isinstance(key, str) else key
        if f"{prefix}{key}" in known or f"{prefix}{name}" not in known:
            name = key
        if name in found or (name != key and name in values):
            raise UserError(f"{where}: {prefix}{key} is {prefix}{name}; give one of the two")
        found[name] = standard_keys(value, known, where, f"{prefix}{name}.")
    return found


def earlier_spellings(key: str) -> list[str]:
    """What a key was called before; empty for most."""
    return [old for old, standard in ALIASES.items() if standard == key]
