"""The protocols of published results, and what of measured runs contradicts them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from typing import Any

from intl_transfer.files.jsons import parse_json
from intl_transfer.runs.settings import comparable, is_fact

#: Written by ``scripts/write_protocols.py`` from the shipped configurations.
FILE = "protocols.json"
# Sets that are mixed: their order decides nothing.
_UNORDERED = ("DATASETS.TRAIN",)
# Says how results are written, not how they were measured.
_NOT_SETTINGS = ("schema",)


@dataclass(frozen=True)
class Protocol:
    """One protocol of published results.

    Attributes:
        recipe: the shipped configuration that follows it.
        measures: what it measures, the key of its tables: data set, detector and schedule; or data
            set, backbone and kind of evaluation.
        settings: that decide a result, by dotted key, with known facts of the data.
        alternatives: further values that published results have, by key.
        open: patterns of the keys that it leaves open, each with the reason.
    """

    recipe: str
    measures: tuple[str, ...]
    settings: Mapping[str, Any]
    alternatives: Mapping[str, list[Any]]
    open: Mapping[str, str]

    def contradicted(self, stated: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of runs that contradict it. What they do not state contradicts nothing.

        Args:
            stated: what decides their results, by dotted key.
        """
        return {
            key: value
            for key, value in sorted(stated.items())
            if not any(fnmatchcase(key, pattern) for pattern in self.open)
            and not self._allows(key, value)
        }

    def _allows(self, key: str, value: Any) -> bool:
        if key not in self.settings:
            # Facts of images and machines are not published; another setting decides.
            return is_fact(key) or key in _NOT_SETTINGS
        allowed = [self.settings[key], *self.alternatives.get(key, [])]
        return any(_form(key, value) == _form(key, one) for one in allowed)


def _form(key: str, value: Any) -> Any:
    form = comparable(value)
    return tuple(sorted(form, key=repr)) if key in _UNORDERED and isinstance(form, tuple) else form


@functools.cache
def protocols() -> tuple[Protocol, ...]:
    """All protocols, from the data file."""
    text = resources.files("intl_transfer.results").joinpath(FILE).read_text()
    return tuple(
        Protocol(**{**entry, "measures": tuple(entry["measures"])})
        for entry in parse_json(text, FILE)
    )


def contradictions(measures: tuple[str, ...], stated: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of runs that contradict the published protocol of their table.

    Args:
        measures: data set, detector and schedule of the table; or data set, backbone and kind.
        stated: what decides their results, by dotted key.

    Returns:
        By key, the runs' values; of several protocols, those that contradict the nearest. Empty if
        nothing is published of the kind.
    """
    found = [one.contradicted(stated) for one in protocols() if one.measures == measures]
    return min(found, key=len, default={})
