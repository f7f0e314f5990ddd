"""Placeholders for objects in a pickle, which can be inspected but do nothing.

A pickle names classes and functions of other libraries, calls them and gives the objects states.
Here nothing is imported, so nothing can be called: a name stays a name, and a call a record of its
arguments.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from torch import Tensor

# Maximum nesting of modules and wrappers; a file could be circular.
_DEEPEST = 64
# Modules of a network, far more than any ResNet has.
_MOST_MODULES = 50_000


class Stored:
    """A placeholder for an object of another library.

    The file's content is stored in these attributes and never becomes an attribute itself.

    Attributes:
        name: of the class or function, with its module, as the file has it.
        arguments: what it was called with; None where the file names it without a call.
        state: its state in the file.
        appended: items that the file appends to it.
    """

    def __init__(self, name: str, arguments: tuple[Any, ...] | None = None) -> None:
        self.name, self.arguments = name, arguments
        self.state: Any = None
        self.appended: list[Any] = []

    def __repr__(self) -> str:
        return f"<{self.name} from a file>"


class StoredMapping(Stored, Mapping[Any, Any]):
    """Like :class:`Stored`, for a class that the file fills like a dictionary."""

    _entries: dict[Any, Any]

    def __getitem__(self, key: Any) -> Any:
        return self._entries[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    # As anything that is stored: by identity, so that it may be a key itself.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def put(self, key: Hashable, value: Any) -> None:
        """Adds an entry."""
        self._entries[key] = value


def as_mapping(stored: Stored) -> StoredMapping:
    """The same object, from now on with entries."""
    if not isinstance(stored, StoredMapping):
        stored.__class__ = StoredMapping
        stored._entries = {}  # type: ignore[attr-defined]  # its class has just been changed
    assert isinstance(stored, StoredMapping)
    return stored


def plain(value: Any) -> Any:
    """Unwraps a value.

    Args:
        value: as read. Of a dictionary's relatives their entries are given, of OmegaConf's nodes
            their content, of another object its state where that is a dictionary: an
            `argparse.Namespace` or a data class as its fields. Interpolations stay the text that
            they are.
    """
    for _ in range(_DEEPEST):
        if isinstance(value, StoredMapping):
            return dict(value)
        if not isinstance(value, Stored) or not isinstance(value.state, dict):
            return value
        state = value.state
        if "_content" not in state and "_val" not in state:
            return state
        value = state.get("_content", state.get("_val"))
    return None


def module_state(value: Any) -> OrderedDict[str, Tensor] | None:
    """The tensors of a pickled network, named as in its ``state_dict()``.

    Args:
        value: as read.

    Returns:
        Parameters and persistent buffers; None for anything but a network.
    """
    modules = modules_in(value)
    if not modules:
        return None
    found: OrderedDict[str, Tensor] = OrderedDict()
    for place, module in modules.items():
        behind = f"{place}." if place else ""
        found.update((behind + name, tensor) for name, tensor in _tensors(module))
    return found


def modules_in(value: Any) -> dict[str, Stored]:
    """The modules of a pickled network, named as in its ``named_modules()``, itself as ``""``.

    Args:
        value: as read.

    Returns:
        In the order of their registration; none for anything but a network.
    """
    found: dict[str, Stored] = {}
    waiting = [("", value, frozenset({id(value)}))] if _is_module(value) else []
    for _ in range(_MOST_MODULES):  # circular networks would have infinitely many names
        if not waiting:
            break
        place, module, above = waiting.pop()
        found[place] = module
        inner = [
            (f"{place}.{name}" if place else str(name), part, above | {id(part)})
            for name, part in _members(module, "_modules")
            if _is_module(part) and id(part) not in above and len(above) < _DEEPEST
        ]
        waiting += reversed(inner)
    return found


def _is_module(value: Any) -> bool:
    if not isinstance(value, Stored) or not isinstance(value.state, dict):
        return False
    kinds = (value.state.get("_modules"), value.state.get("_parameters"))
    return _is_script(value) or all(isinstance(kind, Mapping) for kind in kinds)


def _is_script(module: Stored) -> bool:
    """Whether a network is a TorchScript program, whose parts are plain attributes."""
    return module.name.startswith("__torch__.")


def _members(module: Stored, kind: str) -> Iterator[tuple[Any, Any]]:
    """Modules, parameters or buffers of a network, by name."""
    members = module.state if _is_script(module) else module.state.get(kind)
    return iter(members.items() if isinstance(members, Mapping) else ())


def _tensors(module: Stored) -> Iterator[tuple[str, Tensor]]:
    transient = module.state.get("_non_persistent_buffers_set")
    left_out = transient if isinstance(transient, (set, frozenset)) else frozenset()
    for kind in ("_parameters", "_buffers"):
        for name, tensor in _members(module, kind):
            if isinstance(tensor, Tensor) and isinstance(name, str) and name not in left_out:
                yield name, tensor.detach()
