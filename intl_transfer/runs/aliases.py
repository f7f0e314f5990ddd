"""Keys that earlier versions spelled otherwise: one table, for files and command lines alike.

What is written has the standard spelling; what was written before is read by its old one. Keys
stand with their whole path, so that names which a user gives (initializations, data sets, a loss's
options, classes) are never taken for one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from intl_transfer.errors import UserError

#: Earlier to standard spelling, dotted, without indices; they differ in the last part alone.
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
        where: the values are from, for messages.
        prefix: dotted, of the values' own place, with a dot at its end.

    Returns:
        The same, with new mappings; the values as they are.

    Raises:
        UserError: if a key stands there in both spellings.
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
    """What a key was called before; empty for most."""
    return [old for old, standard in ALIASES.items() if standard == key]
