"""Reads a checkpoint of any format as a flat dictionary, without executing code in it."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from intl_transfer.conversion.identify import HEAD, first_words, odd_tensor, what_it_is
from intl_transfer.errors import UserError
from intl_transfer.files.jsons import parse_json
from intl_transfer.files.pickles import PickleError
from intl_transfer.files.placeholders import Stored, module_state, modules_in
from intl_transfer.files.stamps import Stamp, stamp_of
from intl_transfer.files.torch_files import ZIP, Pickled, read_pickled

_EXPECTED = "expected what torch.save or safetensors writes, or a pickle of numpy arrays"
_AGAIN = "fetch or copy it again, or where you can open it: torch.save(model.state_dict(), FILE)"
# Dictionaries in dictionaries.
_DEEPEST = 8
_LONGEST_JSON = 2**20
# Pickled whole, in one file.
_MOST_NETWORKS = 64
# Wrapper modules of torch: torch.compile, activation checkpointing, FSDP.
_WRAPPERS = re.compile(
    r"(?:^|(?<=[./]))"
    r"(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module|_fpw_module)\."
)
# Modules and builtins of Python that a legitimate file does not use.
_RUNNING = {
    *("os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "importlib", "imp", "runpy"),
    *("ctypes", "pty", "webbrowser", "code", "commands", "popen2", "pip", "timeit", "pdb"),
}
_CALLS = {
    f"builtins.{name}"
    for name in ("eval", "exec", "compile", "open", "__import__", "execfile", "apply", "input")
}


@dataclass(frozen=True)
class Content:
    """The content of a file.

    Attributes:
        path: the file.
        values: its dictionary as read; pickled modules are replaced by their state dicts, other
            objects by placeholders (:mod:`intl_transfer.files.placeholders`).
        tensors: all tensors in it, also in nested dictionaries, under names such as
            ``state_dict/module.encoder_q.conv1.weight``; numpy arrays among them.
        metadata: the strings in a safetensors file.
        names: of the classes and functions that the file refers to, which were not imported.
        odd: tensors without plain numbers, such as sparse ones, by name: their kind, and what to
            save instead.
        verifier: see :meth:`verify`.
        modules: of networks that were pickled whole, with names such as those of tensors.
        files: others that were read for it: parts of a split checkpoint, configurations beside it.
    """

    path: Path
    values: Mapping[str, Any]
    tensors: dict[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    odd: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    verifier: Callable[[Iterable[Tensor]], None] = field(default=lambda tensors: None)
    modules: Mapping[str, Stored] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    def beside(self, name: str) -> Path:
        """A file in the same folder, from now on among those that are read.

        Args:
            name: of the file, which may be missing.
        """
        self.files.append(self.path.parent / name)
        return self.files[-1]

    def verify(self, tensors: Iterable[Tensor]) -> None:
        """Verifies the checksums of the records that some tensors were read from.

        Raises:
            UserError: if the file is damaged or no longer exists.
        """
        try:
            self.verifier(tensors)
        except (OSError, PickleError) as error:
            raise UserError(f"{self.path} is damaged ({error}); fetch or copy it again") from None

    def kept(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies tensors, which may be mapped to the file, into memory of their own.

        What becomes of the file later, as when a training writes its next state there, does not
        reach the copies. The checksums are verified.

        Args:
            tensors: of this file, under any names.

        Raises:
            UserError: if the file is damaged or no longer exists.
        """
        copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self.verify(tensors.values())  # after copying: what was copied is then what is verified
        return copies


@contextlib.contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """Refuses what was read of a file in this block if the file was rewritten meanwhile.

    Tensors and hash are read one after the other, and would be of two contents.

    Args:
        path: the file.

    Raises:
        UserError: if it was rewritten, instead of an error that this may have caused.
    """
    before = _stamp(path)
    try:
        yield
    except (OSError, UserError):
        if _stamp(path) == before:
            raise
    if _stamp(path) != before:
        raise UserError(
            f"{path} was rewritten or removed while it was read. Next: wait for the training that "
            "writes it, or copy the file and give the copy"
        )


def _stamp(path: Path) -> Stamp | None:
    """A file's stamp; None if there is none."""
    try:
        return stamp_of(path.stat())
    except OSError:
        return None


def read_content(path: Path, mmap: bool = True, verified: bool = False) -> Content:
    """Reads a checkpoint.

    Args:
        path: a file of torch (either form), safetensors, Detectron2 or Caffe2.
        mmap: memory-map tensors of torch's zip format, so that an optimizer's state uses no memory.
            They change with the file; :meth:`Content.kept` copies those that are to stay.
        verified: verify the checksum of every record of that format, which reads the whole file.

    Returns:
        Its content.

    Raises:
        UserError: if it is missing or damaged.
    """
    found, metadata = _read(path, mmap, verified)
    _warn_of_programs(path, found.names)
    values, modules = _without_modules(found.value)
    if not isinstance(values, Mapping):
        raise UserError(f"{path}: expected a dictionary, found {_in_words(values)}")
    tensors = dict(_flat(values))
    odd = {name: tensors.pop(name) for name in list(tensors) if isinstance(tensors[name], tuple)}
    return Content(path, values, tensors, metadata, found.names, odd, found.verify, modules=modules)


def unwrapped(name: str) -> str:
    """A name without the prefixes of torch's wrapper modules.

    Args:
        name: of a tensor, or a prefix of such names.
    """
    return _WRAPPERS.sub("", name)


def first_keys(values: Mapping[Any, Any]) -> str:
    """The first few names in a dictionary, for messages."""
    return f"its first keys: {', '.join(list(map(str, values))[:5]) or 'none'}"


def small_json(file: Path) -> dict[str, Any]:
    """The object in a small JSON file; empty if there is none.

    Args:
        file: such as :meth:`Content.beside` gives it.
    """
    try:
        if not file.is_file() or file.stat().st_size > _LONGEST_JSON:
            return {}
        value = parse_json(file.read_bytes(), str(file))
    except (OSError, UserError):
        return {}
    return value if isinstance(value, dict) else {}


def _flat(values: Mapping[Any, Any], place: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    texts = [key for key in values if isinstance(key, str)]
    names = {key: unwrapped(key) for key in texts}
    if len(set(names.values())) < len(names):  # on a name collision, both are kept
        names = {key: key for key in texts}
    for text, value in values.items():
        if not isinstance(text, str):  # such as the numbers of an optimizer's parameters
            continue
        key = names[text]
        if isinstance(value, Tensor):
            yield place + key, value
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            native = value.astype(value.dtype.newbyteorder("="), copy=False)
            with warnings.catch_warnings():  # about read-only memory, which is not written to
                warnings.simplefilter("ignore")
                yield place + key, torch.from_numpy(native)
        elif (kind := odd_tensor(value)) is not None:
            yield place + key, kind
        elif isinstance(value, Mapping) and depth < _DEEPEST:
            yield from _flat(value, f"{place}{key}/", depth + 1)


def _read(path: Path, mmap: bool, verified: bool) -> tuple[Pickled, dict[str, str]]:
    if path.exists() and not path.is_file() and not path.is_dir():
        # A pipe waits for its other end, and some devices have none.
        raise UserError(
            f"{path} is no regular file but a pipe or a device; expected a checkpoint. Next: copy "
            "its content to a file and give that"
        )
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(head) < 9:
        raise UserError(f"{path} is damaged: only {len(head)} bytes long. Next: fetch it again")
    other = what_it_is(path, head)
    if other is not None:
        raise UserError(
            f"{path} is not a checkpoint but {other[0]} (it begins with {head[:9]!r}). Next: "
            f"{other[1]}"
        )
    if head[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
        try:
            with safe_open(path, "pt") as opened:
                names = opened.keys()
                tensors = {name: opened.get_tensor(name) for name in names}
                return Pickled(tensors), opened.metadata() or {}
        except Exception as error:  # of safetensors, of torch, or of the system
            raise UserError(f"{path} is damaged: {error}. Next: fetch or copy it again") from None
    try:
        found = read_pickled(path, mmap, verified)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except PickleError as error:
        reason = str(error)
        if head[:2] != ZIP and head[:1] != b"\x80":
            reason = f"it begins with {head[:9]!r}"
        step = _AGAIN
        if (words := first_words(head)) is not None:
            reason = f"it is text, {words!r}"
            step = "read it: a message of the download, or what belongs to a checkpoint"
        raise UserError(
            f"{path} is damaged or not a checkpoint ({reason}); {_EXPECTED}. Next: {step}"
        ) from None
    return found, {}


def _in_words(value: Any) -> str:
    """Describes the content of a file that is not a dictionary, with the command to fix it."""
    save = "Where you can open it, save its state dict: torch.save(model.state_dict(), FILE)"
    if isinstance(value, Tensor):
        return f"one tensor of shape {tuple(value.shape)}, without a name. {save}"
    if not isinstance(value, (list, tuple)):
        kind = f"a {value.name}" if isinstance(value, Stored) else type(value).__name__
        return f"{kind}. {save}"
    counts = {
        index: sum(1 for _ in _flat(inner))
        for index, inner in enumerate(value[:_MOST_NETWORKS])
        if isinstance(inner, Mapping)
    }
    found = ", ".join(f"[{index}] with {n} tensors" for index, n in counts.items() if n)
    kind = f"{type(value).__name__} of {len(value)}"
    if not found:
        return f"{kind} without any named tensors. {save}"
    most = max(counts, key=lambda index: counts[index])
    return (
        f"{kind}: {found}. Save the one that is the network: "
        f"torch.save(torch.load(FILE, map_location='cpu')[{most}], OUT)"
    )


def _without_modules(value: Any) -> tuple[Any, dict[str, Stored]]:
    """Replaces pickled modules by their state dicts; also returns them by name."""
    state = module_state(value)
    if state is not None:
        return state, _named("", value)
    if not isinstance(value, Mapping):
        return value, {}
    stored = [key for key, inner in value.items() if isinstance(inner, Stored)]
    networks = {key: module_state(value[key]) for key in stored[:_MOST_NETWORKS]}
    networks = {key: state for key, state in networks.items() if state is not None}
    if not networks:
        return value, {}
    modules: dict[str, Stored] = {}
    for key in networks:
        modules |= _named(f"{key}/", value[key])
    return {key: networks.get(key, inner) for key, inner in value.items()}, modules


def _named(place: str, value: Any) -> dict[str, Stored]:
    """The modules of a network, with names such as :func:`_flat` gives their tensors."""
    modules = modules_in(value).items()
    # Of a wrapper and what it wraps, which get one name, the inner one is last.
    return {place + unwrapped(f"{name}.").removesuffix("."): part for name, part in modules}


def _warn_of_programs(path: Path, names: tuple[str, ...]) -> None:
    """Warns that other readers would have executed code in a file."""
    programs = [name for name in names if name.split(".")[0] in _RUNNING or name in _CALLS]
    if programs:
        warnings.warn(
            f"{path} imports {', '.join(programs[:3])}, as files that execute programs on opening "
            "do. No code in it was executed; do not open it with pickle or torch.load"
        )
