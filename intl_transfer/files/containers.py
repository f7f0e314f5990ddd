"""Python's containers and numbers in pickles."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Any

from intl_transfer.files.pickles import Machine, Maker, PickleError
from intl_transfer.files.placeholders import Stored, as_mapping

_COPIED = (list, tuple, set, frozenset)
_SIMPLE = (str, bytes, bytearray, int, float, complex, bool)
_LONGEST_NUMBER = 400  # signs


def _copied(machine: Machine, arguments: tuple[Any, ...]) -> list[Any]:
    """The values of a container that a call copies."""
    if not arguments:
        return []
    (values,) = arguments
    if not isinstance(values, _COPIED):
        raise PickleError(f"a container made of '{type(values).__name__}'")
    machine.budget.spend(len(values))
    return list(values)


def _list(machine: Machine, arguments: tuple[Any, ...]) -> list[Any]:
    return _copied(machine, arguments)


def _tuple(machine: Machine, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_copied(machine, arguments))


def _set(machine: Machine, arguments: tuple[Any, ...]) -> set[Any]:
    return {machine.key(value) for value in _copied(machine, arguments)}


def _frozenset(machine: Machine, arguments: tuple[Any, ...]) -> frozenset[Any]:
    return frozenset(_set(machine, arguments))


def _entries(machine: Machine, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if not arguments:
        return {}
    (values,) = arguments
    pairs = list(values.items()) if isinstance(values, dict) else _copied(machine, arguments)
    machine.budget.spend(len(pairs))
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise PickleError("a dictionary of what are no pairs")
    return {machine.key(key): value for key, value in pairs}


def _ordered(machine: Machine, arguments: tuple[Any, ...]) -> OrderedDict[Any, Any]:
    return OrderedDict(_entries(machine, arguments))


def _counter(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    return Counter(_entries(machine, arguments))


def _default(machine: Machine, arguments: tuple[Any, ...]) -> OrderedDict[Any, Any]:
    """Replaces a `defaultdict`, whose factory would be called later."""
    return _ordered(machine, arguments[1:])


def _queue(machine: Machine, arguments: tuple[Any, ...]) -> list[Any]:
    return _copied(machine, arguments[:1])


def _number(kind: type[Any]) -> Maker:
    def make(machine: Machine, arguments: tuple[Any, ...]) -> Any:
        for value in arguments:
            # The cost is quadratic in the digits.
            text = isinstance(value, (str, bytes, bytearray)) and len(value) > _LONGEST_NUMBER
            if text or not isinstance(value, _SIMPLE):
                raise PickleError(f"a number made of '{type(value).__name__}'")
        return kind(*arguments)

    return make


def _text(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    if not arguments or type(arguments[0]) is str:
        return arguments[0] if arguments else ""
    if all(type(value) in (int, float, bool) for value in arguments):
        return str(*arguments)
    return Stored("builtins.str", arguments)


def _bytes(machine: Machine, arguments: tuple[Any, ...]) -> bytes:
    """From a number, `bytes` would allocate that many zeros."""
    if arguments and not isinstance(arguments[0], (str, bytes, bytearray, list, tuple)):
        raise PickleError(f"bytes made of '{type(arguments[0]).__name__}'")
    if arguments:
        machine.budget.spend(len(arguments[0]) // 64)
    return bytes(*arguments)


def _bytearray(machine: Machine, arguments: tuple[Any, ...]) -> bytearray:
    return bytearray(_bytes(machine, arguments))


def _encoded(machine: Machine, arguments: tuple[Any, ...]) -> bytes:
    """How Python 3 writes bytes in Python 2's protocols; any other codec has no place here."""
    text, *encoding = arguments
    if encoding not in (["latin1"], ["latin-1"]) or type(text) is not str:
        raise PickleError(f"a text in the encoding {str(encoding)[:40]}")
    machine.budget.spend(len(text) // 64)
    return text.encode("latin1")


def _reconstructed(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    """How objects of any class are written in Python 2's protocols."""
    kind, _, state = arguments
    made = machine.call(kind, ())
    if not isinstance(made, Stored):
        return machine.call(kind, (state,)) if state is not None else made
    if isinstance(state, dict):
        entries = as_mapping(made)
        machine.budget.spend(len(state))
        for key, value in state.items():
            entries.put(key, value)
    elif isinstance(state, list):
        machine.budget.spend(len(state))
        made.appended.extend(state)
    elif state is not None:
        made.arguments = (state,)
    return made


def _new(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    return machine.call(arguments[0], arguments[1:])


MAKERS: dict[str, Maker] = {
    "builtins.list": _list,
    "builtins.tuple": _tuple,
    "builtins.set": _set,
    "builtins.frozenset": _frozenset,
    "builtins.dict": lambda machine, arguments: _entries(machine, arguments),
    "builtins.bool": _number(bool),
    "builtins.int": _number(int),
    "builtins.long": _number(int),
    "builtins.float": _number(float),
    "builtins.complex": _number(complex),
    "builtins.str": _text,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytearray,
    "_codecs.encode": _encoded,
    "collections.OrderedDict": _ordered,
    "collections.Counter": _counter,
    "collections.defaultdict": _default,
    "collections.deque": _queue,
    "copyreg._reconstructor": _reconstructed,
    "copyreg.__newobj__": _new,
}
