"""Restricts interpolations in configurations to the configuration's own keys.

OmegaConf's ``${…}`` can read any environment variable, also in an untrusted file, and its value
would appear in the manifest, the model card and the report. So only listed functions are allowed,
and the size of the resolved configuration is checked before resolving.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf

from intl_transfer.errors import UserError

#: Allowed functions, in addition to the configuration's own keys.
RESOLVERS = ("oc.select", "oc.dict.keys", "oc.dict.values", "oc.env")
#: Environment variables that a configuration may read; see docs/run-directory.md.
VARIABLES = ("DETECTRON2_DATASETS", "IMAGENET_DIR")
_MOST = 1_000_000
# OmegaConf's parser takes a millisecond for each.
_COST = 1000
_LONGEST = 10_000
_OPENED = re.compile(r"(?<!\\)((?:\\\\)*)\$\{")
_KEY = re.compile(r"\s*(\.*[\w\-\[\].]+)\s*\}")
_CALL = re.compile(r"\s*([\w.]+)\s*:\s*(['\"]?)([^,}'\"$]*)\2\s*[,}]")


def check_interpolations(value: Any, where: str) -> None:
    """Refuses interpolations of anything but keys and listed functions.

    Args:
        value: of nested dictionaries and lists.
        where: its source, for messages.

    Raises:
        UserError: naming the first.
    """
    for place, text in _texts(value, ""):
        if "${" in text and len(text) > _LONGEST:
            raise UserError(
                f"{where}: {place}: refused: an interpolation of {len(text):,} characters"
            )
        for start, key, call, argument in _interpolations(text):
            shown = text[start : start + 60]
            at = f"{where}: {place}" if place else where
            if call == "oc.env" and argument not in VARIABLES:
                raise UserError(
                    f"{at}: refused: '{shown}' asks for an environment variable; a configuration "
                    f"may ask for {' and '.join(VARIABLES)}"
                )
            if call is not None and call not in RESOLVERS:
                raise UserError(
                    f"{at}: refused: '{shown}' asks for '{call}'; expected a key of the "
                    f"configuration, or one of {', '.join(RESOLVERS)}"
                )
            if call is None and key is None:
                raise UserError(
                    f"{at}: refused: '{shown}' is not a known interpolation; expected "
                    "${KEY}, with a key of the configuration. As text it is written \\${"
                )


def check_size(config: Any, where: str) -> None:
    """Refuses circular interpolations, and ones that would be very large when resolved.

    Args:
        config: an OmegaConf configuration, or nested dictionaries and lists.
        where: its source, for messages.

    Raises:
        UserError: naming a key.
    """
    values = OmegaConf.to_container(config) if OmegaConf.is_config(config) else config
    sizes: dict[tuple[str, ...], int | None] = {}

    def size_of(place: tuple[str, ...], depth: int = 0) -> int:
        known = sizes.get(place, 0)
        if known is None or depth > 200:
            raise UserError(
                f"{where}: {'.'.join(place)}: its interpolation leads to itself, or through more "
                "than 200 others"
            )
        if known:
            return known
        sizes[place] = None
        value = _at(values, place)
        total = 1
        if isinstance(value, (dict, list)):
            names = value if isinstance(value, dict) else range(len(value))
            total += sum(size_of((*place, str(name)), depth + 1) for name in names)
        elif isinstance(value, str):
            total += len(value)
            for target in _targets(value, place):
                # A container that contains itself.
                total += size_of(target, depth + 1) + _COST
        if total > _MOST:
            raise UserError(
                f"{where}: {'.'.join(place) or 'it'}: refused: its interpolations, written "
                f"out, are more than {_MOST:,} signs or {_MOST // _COST:,} values"
            )
        sizes[place] = total
        return total

    size_of(())


def _texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            name = f"{place}.{key}" if place else str(key)
            if isinstance(key, str):
                yield name, key
            yield from _texts(inner, name)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _texts(inner, f"{place}[{index}]")


def _interpolations(text: str) -> Iterator[tuple[int, str | None, str | None, str]]:
    """(where, key, function, its first argument) of every interpolation in a text."""
    for opened in _OPENED.finditer(text):
        key, call = _KEY.match(text, opened.end()), _CALL.match(text, opened.end())
        start = opened.end() - 2
        if key is not None:
            yield start, key.group(1), None, ""
        elif call is not None:
            yield start, None, call.group(1), call.group(3).strip()
        else:
            # `${oc.env:${name}}` too: its variable is unknown before resolving.
            yield start, None, None, ""


def _targets(text: str, place: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for _, key, call, argument in _interpolations(text):
        if call == "oc.env":
            continue
        path = key if key is not None else argument
        dots = len(path) - len(path.lstrip("."))
        base = place[: len(place) - dots] if dots else ()
        yield (*base, *(part for part in re.split(r"[.\[\]]+", path) if part))


def _at(values: Any, place: tuple[str, ...]) -> Any:
    for name in place:
        if isinstance(values, dict):
            values = values.get(name)
        elif isinstance(values, list) and name.isdecimal() and int(name) < len(values):
            values = values[int(name)]
        else:
            return None
    return values
