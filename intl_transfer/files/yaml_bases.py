"""Configurations of Detectron2 in several files, linked by ``_BASE_``."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.files.texts import is_file
from intl_transfer.files.yamls import read_yaml

_MOST_FILES = 50


def merged(path: Path) -> dict[str, Any]:
    """A configuration's values, overriding those of its bases.

    Args:
        path: the file.

    Raises:
        UserError: as for :func:`files_of`; and if a value is a section in another file.
    """
    values: dict[str, Any] = {}
    for file, own in files_of(path):
        _put_over(values, own, file)
    return values


def files_of(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """A configuration's file and all its bases (``_BASE_``), outermost first.

    Unlike Detectron2's reader, it refuses URLs and circular references.

    Args:
        path: the file.

    Returns:
        Files, with the content of each.

    Raises:
        UserError: if one of them is missing, not plain YAML, or circular.
    """
    found: list[tuple[Path, dict[str, Any]]] = []
    _follow(path, (), found)
    return found


def _follow(path: Path, above: tuple[Path, ...], found: list[tuple[Path, dict[str, Any]]]) -> None:
    real = path.resolve()
    if real in above:
        names = " -> ".join(file.name for file in (*above, real))
        raise UserError(f"{above[0]}: _BASE_ is circular: {names}")
    values = read_yaml(path)
    bases = values.pop("_BASE_", [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise UserError(f"{path}: _BASE_ is {base!r}; expected the name of a file, or a list")
        if "://" in base:
            raise UserError(
                f"{path}: _BASE_ is '{base}', a URL; expected a file. Save it next to this one"
            )
        file = path.parent / os.path.expanduser(base)
        if not is_file(file):
            raise UserError(f"{path}: _BASE_ is '{base[:200]}'; there is no file {file}"[:600])
        if len(found) + len(above) > _MOST_FILES:
            raise UserError(f"{path}: _BASE_ leads to more than {_MOST_FILES} files")
        _follow(file, (*above, real), found)
    found.append((path, values))


def _put_over(values: dict[str, Any], own: dict[str, Any], file: Path, place: str = "") -> None:
    """Puts a file's values over those that it starts from."""
    for key, value in own.items():
        if not isinstance(key, str):
            raise UserError(
                f"{file}: the key {place}{key} is {type(key).__name__}; expected text: write it in "
                "quotes"
            )
        if isinstance(value, dict):
            values.setdefault(key, {})
            if not isinstance(values[key], dict):
                raise UserError(f"{file}: {place}{key} is a section; in its _BASE_ it is a value")
            _put_over(values[key], value, file, f"{place}{key}.")
        else:
            # A copy: an alias would have one section changed with another.
            values[key] = copy.deepcopy(value)
