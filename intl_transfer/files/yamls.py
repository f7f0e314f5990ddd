"""The reader of YAML files, and of single values on a command line.

Plain values only: tags, which create objects, are refused, the expanded size of aliases is bounded,
and every error is one line with file, line and column.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from intl_transfer.errors import UserError
from intl_transfer.files.texts import decoded, has_surrogate, read_bytes

#: Bytes of a file, values in it with every alias written out, and how deep they are nested.
MOST_BYTES = 2 * 2**20
MOST_VALUES = 100_000
DEEPEST = 50
_WHAT = "a YAML file"
_OWN_TAGS = {
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map")
}
_TEXT = "tag:yaml.org,2002:str"
_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


_MERGE = "tag:yaml.org,2002:merge"
_DECIMAL = {
    "tag:yaml.org,2002:int": re.compile(r"-?(?:0|[1-9][0-9]*)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?$"
        r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
    ),
}


class _Loader(_Parser):  # type: ignore[misc]  # one of two classes
    """The safe loader, without dates, which JSON cannot represent, and with decimal numbers only.

    YAML 1.1 would read ``0123`` as 83 and ``1:30.5`` as 90.5; they are texts, as they are written.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - as the base class has it
        first: [
            (tag, _DECIMAL.get(tag, pattern))
            for tag, pattern in pairs
            if tag in _OWN_TAGS or tag == _MERGE
        ]
        for first, pairs in _Parser.yaml_implicit_resolvers.items()
    }

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """A value; invalid numbers and truth values are reported with their position."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:
            reason = str(error).split(";")[0]
        except LookupError:  # of PyYAML's own tables
            kind = str(node.tag).rpartition(":")[2]
            reason = f"'{str(node.value)[:60]}' is not of the type !!{kind}"
        raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark)

    def scalar(self, text: str, tag: str | None, implicit: tuple[bool, bool], mark: Any) -> Any:
        """The value of a single text.

        Args:
            text: without quotes.
            tag: as given; None for none.
            implicit: whether a missing tag follows from the text, if it is plain, and if quoted.
            mark: its position.
        """
        if tag is None or tag == "!":
            tag = self.resolve(yaml.ScalarNode, text, implicit)
        return self.construct_object(yaml.ScalarNode(tag, text, mark))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML mapping.

    Args:
        path: the file.

    Returns:
        Its keys and values; empty for an empty file.

    Raises:
        UserError: if it is missing, not text, not valid YAML, not a mapping, too large, or has
            tags.
    """
    try:
        data = read_bytes(path, MOST_BYTES, _WHAT)
    except FileNotFoundError as error:
        raise UserError(str(error)) from None
    try:
        text = decoded(data, path, _WHAT)
    except UserError as error:
        raise UserError(f"{error} It is not valid YAML") from None
    value = parse_yaml(text, str(path))
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(
            f"{path}: expected keys and values, a mapping, found {type(value).__name__}"
        )
    return value


def parse_yaml(text: str, where: str) -> Any:
    """Parses a YAML text.

    Args:
        text: one document.
        where: its source, for messages.

    Raises:
        UserError: in one line, with line and column.
    """
    with _in_one_line(text, where):
        _check(text, where)
        return yaml.load(text, Loader=_Loader)


def parse_value(text: str, where: str) -> Any:
    """The value in a ``key=value``: YAML in brackets or quotes, and otherwise one word.

    A word is a number, a truth value or nothing where it is in a file. Else it is a text as it is
    given: comments, anchors and other forms of YAML would be lost without a trace, and folders have
    such names (``exp #2``).

    Args:
        text: behind the equals sign.
        where: its source, for messages.

    Raises:
        UserError: in one line, with line and column.
    """
    word = text.strip()
    if has_surrogate(text) or word.startswith(("[", "{", "'", '"')):
        return parse_yaml(text, where)
    with _in_one_line(text, where):
        loader = _Loader("")
        tag = loader.resolve(yaml.ScalarNode, word, (True, False))
        is_text = tag not in _OWN_TAGS or tag == _TEXT
        return text if is_text else loader.scalar(word, tag, (True, False), None)


@contextmanager
def _in_one_line(text: str, where: str) -> Iterator[None]:
    """Errors of the parser, named with their source and position."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "not valid"
        raise _error(where, mark, f"not valid YAML: {problem}") from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise UserError(
            f"{where}, line {line}: not valid YAML: the character #x{ord_of(error.character):04x} "
            "is not allowed in it"
        ) from None
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{where}: not valid YAML: {reason}") from None


def ord_of(character: Any) -> int:
    """The code point of a character in a reader's error."""
    return character if isinstance(character, int) else ord(str(character)[:1] or "\0")


@dataclass
class _Open:
    """A container being read.

    Attributes:
        anchor: its name, if it has one.
        size: values in it so far, itself among them.
        is_mapping: whether keys and values take turns.
        expects_key: whether the next value is a key.
        keys: so far, as they are written, and their values: ``yes`` and ``true`` are one.
    """

    anchor: str | None
    is_mapping: bool
    size: int = 1
    expects_key: bool = True
    keys: set[Any] = field(default_factory=set)


def _error(where: str, mark: Any, reason: str) -> UserError:
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    return UserError(f"{where}{place}: {' '.join(reason.split())}")


def _check(text: str, where: str) -> None:
    """Checks a text in one pass, before any object is built."""
    sizes: dict[str, int] = {}
    path = [_Open(None, False)]
    documents = 0
    for event in _events(text):
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise _error(where, event.start_mark, "a second document; expected one")
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            _check_tag(event, where)
            if len(path) > DEEPEST:
                reason = f"refused: nested more than {DEEPEST} deep"
                raise _error(where, event.start_mark, reason)
            path.append(_Open(event.anchor, isinstance(event, yaml.MappingStartEvent)))
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            done = path.pop()
            if done.anchor is not None:
                sizes[done.anchor] = done.size
            _count(path[-1], done.size, where, event)
        elif isinstance(event, yaml.AliasEvent):
            if any(container.anchor == event.anchor for container in path):
                reason = f"refused: more than any number of values, '*{event.anchor}' holds itself"
                raise _error(where, event.start_mark, reason)
            _count(path[-1], sizes.get(str(event.anchor), 1), where, event)
        elif isinstance(event, yaml.ScalarEvent):
            _check_tag(event, where)
            _check_scalar(event, path[-1], where)
            if event.anchor is not None:
                sizes[event.anchor] = 1
            _count(path[-1], 1, where, event)


def _events(text: str) -> Iterator[Any]:
    yield from yaml.parse(text, Loader=_Loader)


def _check_tag(event: Any, where: str) -> None:
    if event.tag is not None and event.tag not in _OWN_TAGS and event.tag != "!":
        name = event.tag.replace("tag:yaml.org,2002:", "!!")
        reason = f"refused: the tag '{name[:60]}'; expected plain values, without tags"
        raise _error(where, event.start_mark, reason)


def _check_scalar(event: Any, container: _Open, where: str) -> None:
    if has_surrogate(event.value):
        raise _error(where, event.start_mark, "half of a surrogate pair, which is no character")
    if container.is_mapping and container.expects_key and event.value != "<<":
        key = _Loader("").scalar(event.value, event.tag, event.implicit, event.start_mark)
        if event.value in container.keys or key in container.keys:
            raise _error(where, event.start_mark, f"the key '{event.value[:60]}' a second time")
        container.keys |= {event.value, key}


def _count(container: _Open, size: int, where: str, event: Any) -> None:
    container.size += size
    container.expects_key = not container.expects_key
    if container.size > MOST_VALUES:
        reason = f"refused: more than {MOST_VALUES:,} values, its aliases written out"
        raise _error(where, event.start_mark, reason)
