"""Earlier spellings of keys: one table, for files and command lines.

The standard spelling is written; earlier spellings are still read. Keys are listed with their full
path, so that names chosen by users (initializations, data sets, options of a loss, classes) are
never renamed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from intl_transfer.errors import UserError

#: Earlier to standard spelling, dotted, without indices; they differ only in the last part.
ALIASES: dict[str, str] = {
    "config_said_by": "config_source",
    "engine.recompute": "engine.activation_checkpointing",
    "foreign": "external",
    "initialisation": "initialization",
    "initialisations": "initializations",
    "unlabelled": "unlabeled",
    "views.grey": "views.grayscale",
    "views.solarise": "views.solarize",
}
_INDEX = re.compile(r"\[\d*\]")


def standard_key(key: str) -> str:
    """A dotted key in its standard spelling.

    Args:
        key: for example ``views[0].solarise``.
    """
    path, dot, _ = key.rpartition(".")
    bare = _INDEX.sub("", key) if "[" in key else key
    if bare not in ALIASES:
        return key
    return f"{path}{dot}{ALIASES[bare].rpartition('.')[2]}"


def standard_keys(values: Any, where: str, prefix: str = "") -> Any:
    """A configuration's values under the standard spelling of their keys.

    Args:
        values: nested mappings and lists.
        where: source of the values, for messages.
        prefix: dotted path of the values, ending in a dot.

    Returns:
        New mappings with the same values.

    Raises:
        UserError: if both spellings of a key are given.
    """
    if isinstance(values, list):
        return [standard_keys(value, where, prefix) for value in values]
    if not isinstance(values, Mapping):
        return values
    found: dict[Any, Any] = {}
    for key, value in values.items():
        name = standard_key(f"{prefix}{key}")[len(prefix) :] if isinstance(key, str) else key
        if name in found or (name != key and name in values):
            raise UserError(f"{where}: {prefix}{key} is {prefix}{name}; give one of the two")
        found[name] = standard_keys(value, where, f"{prefix}{name}.")
    return found


def earlier_spellings(key: str) -> list[str]:
    """Earlier spellings of a key; empty for most keys."""
    return [old for old, standard in ALIASES.items() if standard == key]
