"""Checks values as they are given: texts that YAML reads as something else, and lists."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from intl_transfer.errors import UserError

#: Of a field with words of a command line, where ``0.02`` and ``False`` mean what YAML reads.
WORDS = {"words": True}


def check_given(schema: Any, values: Any, where: str, key: str = "") -> None:
    """Refuses words that YAML has read as something else, and single values for lists.

    ``name: no`` would be ``False``, ``WANDB_SILENT: true`` ``True``, and ``12.10`` ``12.1``.

    Args:
        schema: a dataclass, nested ones included, or the type of a value.
        values: of the dataclass, nested as in the file; keys that it does not have are passed over.
        where: their source, for messages.
        key: dotted, of the values.

    Raises:
        UserError: naming the first such value.
    """
    kinds = typing.get_args(schema) if _is_union(schema) else (schema,)
    if isinstance(values, (bool, float)) and str in kinds and type(values) not in kinds:
        kind = "a truth value" if isinstance(values, bool) else "a number"
        raise UserError(
            f"{where}: {key} is a text, and YAML reads it as {kind} ({values}); put it in quotes"
        )
    if all(typing.get_origin(kind) is list for kind in kinds) and _is_single(values):
        raise UserError(f"{where}: {key} is {values}; expected a list: {key}=[{values}]")
    for kind in kinds:
        inner = typing.get_args(kind)[-1:]
        if isinstance(values, (list, tuple)) and typing.get_origin(kind) in (list, tuple):
            for index, value in enumerate(values):
                check_given(inner[0], value, where, f"{key}[{index}]")
        elif isinstance(values, Mapping):
            hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
            fields = dataclasses.fields(kind) if hints else ()
            words = {one.name for one in fields if one.metadata == WORDS}
            for name, value in values.items():
                if name in words and not _is_single(value):
                    continue
                of = hints.get(name, Any) if hints else inner[0] if inner else Any
                check_given(of, value, where, f"{key}.{name}" if key else str(name))


def _is_single(value: Any) -> bool:
    """Whether a value is one of a list's; a reference can be to a list."""
    return isinstance(value, (bool, int, float)) or (isinstance(value, str) and "${" not in value)


def _is_union(schema: Any) -> bool:
    return typing.get_origin(schema) in (typing.Union, types.UnionType)
