"""Reads pickles without executing them.

A pickle is a program: it names classes and functions, calls them, and gives objects their states.
This interpreter implements its instructions (https://docs.python.org/3/library/pickletools.html)
and imports no name. Some names are implemented here, with all arguments checked: Python's
containers and numbers, numpy's arrays and torch's tensors of numbers. Any other becomes a
:class:`~intl_transfer.files.placeholders.Stored`, which is never called.

The cost of a file is bounded by its size and by :data:`MOST_WORK`: no number in it allocates
memory, no nesting causes recursion, and the result is finite.
"""

from __future__ import annotations

import codecs
import gc
import mmap
import struct
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from intl_transfer.files.placeholders import Stored, StoredMapping, as_mapping

#: Instructions in one file, and what calls copy: some seconds and less than 1.5 GiB.
MOST_WORK = 3_000_000
# The result may reference an object many times; limit of its expanded size.
_MOST_REPEATED = 1_000_000
_DEEPEST = 100
_LARGEST_KEY = 1000
_CHOSEN_KEY = MOST_WORK // 10_000
_LONGEST_NUMBER = 4096  # bytes

Maker = Callable[["Machine", tuple[Any, ...]], Any]


class PickleError(ValueError):
    """A pickle that is damaged or invalid."""


class Pending(Stored):
    """An object that is built once its state is known; it may be referenced before."""

    def made(self, state: Any) -> Any:
        """Its replacement."""
        raise NotImplementedError


@dataclass
class Budget:
    """The budget of one file, including nested files.

    Attributes:
        size: of the file, in bytes.
        work: instructions and copied values so far.
        tensor_bytes: of all tensors so far, each counted in full.
        names: of foreign classes and functions.
    """

    size: int
    work: int = 0
    tensor_bytes: int = 0
    names: dict[str, None] = field(default_factory=dict)

    def spend(self, work: int) -> None:
        """Counts work.

        Raises:
            PickleError: if it is too much.
        """
        self.work += work
        if self.work > MOST_WORK:
            raise PickleError(f"it holds more than {MOST_WORK:,} values beside its arrays")


class Machine:
    """Reads one pickle.

    Args:
        data: the file's bytes.
        position: where the pickle begins.
        makers: implementations of names, by name with module: called with this interpreter and the
            arguments.
        constants: values of names.
        budget: of the file.
        persistent: resolves persistent ids, for data elsewhere in the file.
    """

    _OPERATIONS: ClassVar[dict[int, Callable[[Machine], None]]] = {}

    def __init__(
        self,
        data: bytes | mmap.mmap,
        position: int,
        makers: Mapping[str, Maker],
        constants: Mapping[str, Any],
        budget: Budget,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self.position, self.budget = position, budget
        self._data, self._makers, self._constants = data, makers, constants
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._places: dict[int, list[int]] = {}  # of what is pending, in the memo, by its identity

    def run(self) -> Any:
        """The object in the pickle; :attr:`position` is then behind it.

        Raises:
            PickleError: if it is damaged or costs too much.
        """
        operations, stop = self._OPERATIONS, ord(".")
        collecting = gc.isenabled()
        gc.disable()  # it would look through all that was made so far, again and again
        try:
            while True:
                code = self._take(1)[0]
                if code == stop:
                    value = self._stack.pop()
                    check_end(value, self.budget)
                    return value
                operation = operations.get(code)
                self.budget.work += 1
                if self.budget.work > MOST_WORK:
                    self.budget.spend(0)
                if operation is None:
                    raise PickleError(f"it has an unknown instruction, {bytes([code])!r}")
                operation(self)
        except PickleError:
            raise
        except Exception as error:  # a damaged pickle can cause any exception
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise PickleError(f"its pickle is broken at byte {self.position}: {reason}") from None
        finally:
            if collecting:
                gc.enable()

    # Reading

    def _take(self, count: int) -> bytes:
        end = self.position + count
        data = self._data[self.position : end]
        if len(data) != count:
            raise PickleError("it ends too early")
        self.position = end
        return data

    def _line(self) -> str:
        end = self._data.find(b"\n", self.position)
        if end < 0:
            raise PickleError("it ends too early")
        line = self._take(end - self.position)
        self.position += 1
        return line.decode("latin1")

    def _number(self, form: str) -> int:
        return int(struct.unpack(form, self._take(struct.calcsize(form)))[0])

    def _long(self, form: str) -> int:
        size = self._number(form)
        if not 0 <= size <= _LONGEST_NUMBER:
            raise PickleError(f"a number of {size} bytes")
        return int.from_bytes(self._take(size), "little", signed=True)

    def _text(self, form: str) -> str:
        return self._take(self._length(form)).decode("utf-8", "surrogatepass")

    def _length(self, form: str) -> int:
        size = self._number(form)
        if size < 0:
            raise PickleError(f"a text of {size} bytes")
        return size

    # The stack

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _since_mark(self) -> list[Any]:
        values, self._stack = self._stack, self._marks.pop()
        return values

    def _remember(self, place: int) -> None:
        if place < 0:
            raise PickleError(f"a place {place} in its memory")
        value = self._memo[place] = self._stack[-1]
        if isinstance(value, Pending):
            self._places.setdefault(id(value), []).append(place)

    # Potentially harmful instructions

    def _named(self, module: str, name: str) -> Any:
        full = f"{_MODULES.get(module, module)}.{name}"
        if full in self._constants:
            return self._constants[full]
        if full not in self._makers:
            self.budget.names[full] = None
        return Stored(full)

    def call(self, what: Any, arguments: Any) -> Any:
        """The result of a call: an object built here, or a placeholder."""
        if not isinstance(what, Stored) or not isinstance(arguments, tuple):
            raise PickleError(f"a call of {_kind(what)} with {_kind(arguments)}")
        if what.arguments is not None or isinstance(what, StoredMapping):
            return Stored(f"{what.name}()", (what, *arguments))
        maker = self._makers.get(what.name)
        return Stored(what.name, arguments) if maker is None else maker(self, arguments)

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Pending):
            made = target.made(state)
            self._stack[-1] = made
            for place in self._places.pop(id(target), ()):
                if self._memo.get(place) is target:
                    self._memo[place] = made
        elif isinstance(target, Stored):
            target.state = state
        elif type(target) is OrderedDict:
            # An attribute of torch's state dicts. Any other name could shadow a method.
            if isinstance(state, dict) and isinstance(state.get("_metadata"), dict):
                # As torch sets it.
                target._metadata = state["_metadata"]  # type: ignore[attr-defined]
        elif not isinstance(target, torch.Tensor):  # whose attributes are of no interest
            raise PickleError(f"a state for {_kind(target)}")

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is list:
            target.extend(values)
        elif isinstance(target, Stored):
            target.appended.extend(values)
        else:
            raise PickleError(f"values appended to {_kind(target)}")

    def _set(self, pairs: list[Any]) -> None:
        target = self._stack[-1]
        if len(pairs) % 2:
            raise PickleError("a key without a value")
        entries = zip(pairs[::2], pairs[1::2], strict=True)
        if type(target) in (dict, OrderedDict):
            for key, value in entries:
                target[self.key(key)] = value
        elif isinstance(target, Stored):
            mapping = as_mapping(target)
            for key, value in entries:
                mapping.put(self.key(key), value)
        else:
            raise PickleError(f"entries put into {_kind(target)}")

    def key(self, value: Any) -> Hashable:
        """Checks a dictionary key or set member, whose hash must be cheap.

        Hashing nested tuples can take exponential time.
        """
        waiting, seen = [value], 0
        while waiting:
            part = waiting.pop()
            seen += 1
            if isinstance(part, (tuple, frozenset)):
                seen += len(part)
                if seen > _LARGEST_KEY:
                    raise PickleError("a key that is larger than any")
                waiting.extend(part)
            elif isinstance(part, int) and part.bit_length() > 64:
                raise PickleError("a number as key that is larger than any")
            elif not isinstance(part, _KEYS):
                raise PickleError(f"{_kind(part)} as key")
        if seen > 1 or isinstance(value, complex):  # a file can choose many with the same hash
            self.budget.spend(_CHOSEN_KEY)
        return value  # type: ignore[no-any-return]  # one of _KEYS


_KEYS = (
    str,
    bytes,
    int,
    float,
    complex,
    bool,
    type(None),
    np.number,
    np.bool_,
    torch.dtype,
    Stored,
)
# Python 2's names, and modules that were renamed.
_MODULES = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "UserDict": "collections",
    "UserList": "collections",
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
    "torch.tensor": "torch._tensor",
}


def _kind(value: Any) -> str:
    return value.name if isinstance(value, Stored) else f"'{type(value).__name__}'"


def check_end(value: Any, budget: Budget) -> None:
    """Checks that traversing a value terminates quickly.

    Raises:
        PickleError: if a container contains itself, is nested too deeply, or references an object
            so often that its expanded size is far larger than the file.
    """
    # Depth first, without recursion: expanded sizes, by identity; None while inside.
    sizes: dict[int, int | None] = {}
    path: list[tuple[Any, Iterator[Any], int]] = [(None, iter((value,)), 0)]
    while path:
        owner, inner, size = path[-1]
        part = next(inner, _NOTHING)
        if part is _NOTHING:
            path.pop()
            if path:
                sizes[id(owner)] = size
                path[-1] = (*path[-1][:2], path[-1][2] + size)
        else:
            parts = _parts(part)
            known = sizes.get(id(part), 0) if parts is not None else 1
            if parts is None or known:
                path[-1] = (owner, inner, size + (known or 1))
            elif known is None:
                raise PickleError("a container in it holds itself")
            else:
                sizes[id(part)] = None
                path.append((part, parts, 1))
        if len(path) > _DEEPEST:
            raise PickleError(f"containers in it are nested more than {_DEEPEST} deep")
        if path and path[-1][2] > 4 * budget.work + _MOST_REPEATED:
            raise PickleError(
                "it references an object so often that its expanded size is too large"
            )


_NOTHING = object()


def _parts(value: Any) -> Iterator[Any] | None:
    if isinstance(value, (dict, StoredMapping)):
        return iter(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return iter(value)
    return None


def _string(machine: Machine) -> None:
    """A text of Python 2 in quotes, with escapes."""
    quoted = machine._line().strip()
    if len(quoted) < 2 or quoted[0] != quoted[-1] or quoted[0] not in "'\"":
        raise PickleError("a text without quotes")
    machine._push(codecs.escape_decode(quoted[1:-1].encode("latin1"))[0].decode("latin1"))


def _integer(machine: Machine) -> None:
    line = machine._line()
    if line in ("00", "01"):
        machine._push(line == "01")
    else:
        machine._push(int(line.rstrip("L\r")))


def _instance(machine: Machine) -> None:
    what = machine._named(machine._line(), machine._line())
    arguments = tuple(machine._since_mark())
    machine._push(machine.call(what, arguments))


def _object(machine: Machine) -> None:
    what, *arguments = machine._since_mark()
    machine._push(machine.call(what, tuple(arguments)))


def _reduce(machine: Machine) -> None:
    arguments, what = machine._stack.pop(), machine._stack.pop()
    machine._push(machine.call(what, arguments))


def _new_with_keywords(machine: Machine) -> None:
    keywords, arguments, what = (machine._stack.pop() for _ in range(3))
    if keywords or not isinstance(arguments, tuple):
        machine._push(Stored(_kind(what), (arguments, keywords)))
    else:
        machine._push(machine.call(what, arguments))


def _stack_global(machine: Machine) -> None:
    name, module = machine._stack.pop(), machine._stack.pop()
    if type(name) is not str or type(module) is not str:
        raise PickleError("a name that is no text")
    machine._push(machine._named(module, name))


def _elsewhere(machine: Machine, what: Any) -> None:
    known = machine._persistent
    if known is None:
        machine.budget.names["an object outside the file"] = None
    machine._push(Stored("an object outside the file", (what,)) if known is None else known(what))


def _drop_mark(machine: Machine) -> None:
    # As Python does: what is dropped may be a mark.
    if machine._stack:
        machine._stack.pop()
    else:
        machine._since_mark()


def _pop_mark(machine: Machine) -> None:
    machine._since_mark()


def _skipped(count: int) -> Callable[[Machine], None]:
    def skip(machine: Machine) -> None:
        machine._take(count)

    return skip


def _mark(machine: Machine) -> None:
    machine._marks.append(machine._stack)
    machine._stack = []


def _members(machine: Machine) -> None:
    values, target = machine._since_mark(), machine._stack[-1]
    if type(target) is not set:
        raise PickleError(f"members added to {_kind(target)}")
    target.update(machine.key(value) for value in values)


def _append(machine: Machine) -> None:
    value = machine._stack.pop()
    machine._extend([value])


def _put(machine: Machine) -> None:
    value, key = machine._stack.pop(), machine._stack.pop()
    machine._set([key, value])


def _from_top(machine: Machine, count: int) -> None:
    if len(machine._stack) < count:
        raise PickleError("a tuple of what it has not")
    values = tuple(machine._stack[-count:])
    machine._stack[-count:] = [values]


def _pairs(machine: Machine) -> None:
    values = machine._since_mark()
    machine._push({})
    machine._set(values)


def _constant(value: Any) -> Callable[[Machine], None]:
    return lambda machine: machine._push(value)


def _sized(form: str) -> Callable[[Machine], None]:
    return lambda machine: machine._push(machine._take(machine._length(form)))


def _byte_string(form: str) -> Callable[[Machine], None]:
    return lambda m: m._push(m._take(m._length(form)).decode("latin1"))


def _text_of(form: str) -> Callable[[Machine], None]:
    return lambda machine: machine._push(machine._text(form))


def _number_of(form: str) -> Callable[[Machine], None]:
    return lambda machine: machine._push(machine._number(form))


# Extensions (EXT1, EXT2, EXT4) and buffers outside the file are not among them.
_TABLE: dict[str, Callable[[Machine], None]] = {
    # numbers and constants
    "N": _constant(None), "\x88": _constant(True), "\x89": _constant(False), "I": _integer,
    "K": _number_of("<B"), "M": _number_of("<H"), "J": _number_of("<i"),
    "L": lambda m: m._push(int(m._line().rstrip("L\r"))),
    "\x8a": lambda m: m._push(m._long("<B")), "\x8b": lambda m: m._push(m._long("<i")),
    "F": lambda m: m._push(float(m._line())),
    "G": lambda m: m._push(struct.unpack(">d", m._take(8))[0]),
    # texts and bytes
    "S": _string, "T": _byte_string("<i"), "U": _byte_string("<B"),
    "V": lambda m: m._push(m._line().encode("latin1").decode("raw-unicode-escape")),
    "X": _text_of("<I"), "\x8c": _text_of("<B"), "\x8d": _text_of("<Q"),
    "B": _sized("<I"), "C": _sized("<B"), "\x8e": _sized("<Q"),
    "\x96": lambda m: m._push(bytearray(m._take(m._length("<Q")))),
    # containers
    ")": lambda m: m._push(()), "]": lambda m: m._push([]), "}": lambda m: m._push({}),
    "\x8f": lambda m: m._push(set()),
    "t": lambda m: m._push(tuple(m._since_mark())), "l": lambda m: m._push(m._since_mark()),
    "d": _pairs, "\x85": lambda m: _from_top(m, 1), "\x86": lambda m: _from_top(m, 2),
    "\x87": lambda m: _from_top(m, 3), "a": _append, "s": _put,
    "e": lambda m: m._extend(m._since_mark()), "u": lambda m: m._set(m._since_mark()),
    "\x90": _members,
    "\x91": lambda m: m._push(frozenset(map(m.key, m._since_mark()))),
    # the stack and the memo
    "(": _mark, "0": _drop_mark, "1": _pop_mark,
    "2": lambda m: m._push(m._stack[-1]),
    "g": lambda m: m._push(m._memo[int(m._line())]),
    "h": lambda m: m._push(m._memo[m._number("<B")]),
    "j": lambda m: m._push(m._memo[m._number("<I")]),
    "p": lambda m: m._remember(int(m._line())), "q": lambda m: m._remember(m._number("<B")),
    "r": lambda m: m._remember(m._number("<I")),
    "\x94": lambda m: m._remember(len(m._memo)),
    # names, calls, states
    "c": lambda m: m._push(m._named(m._line(), m._line())), "\x93": _stack_global,
    "R": _reduce, "\x81": _reduce, "\x92": _new_with_keywords, "i": _instance, "o": _object,
    "b": lambda m: m._build(),
    "P": lambda m: _elsewhere(m, m._line()), "Q": lambda m: _elsewhere(m, m._stack.pop()),
    # the protocol, and where its parts begin
    "\x80": _skipped(1), "\x95": _skipped(8),
}  # fmt: skip
Machine._OPERATIONS.update({ord(code): do for code, do in _TABLE.items()})
