"""Adapters: recognize a format by its keys, and convert from and to it.

Most checkpoints hold torchvision's ResNet behind a prefix, once for the network that is trained and
once for its moving average. Such a format is a :class:`Layout`: a table of prefixes. Names have
the form that :attr:`intl_transfer.conversion.reading.Content.tensors` gives them, dictionaries in
the file divided by ``/``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from intl_transfer.conversion.evidence import Fact, inferred
from intl_transfer.conversion.namings import (
    NAMINGS,
    SEQUENTIAL,
    SMALL_SEQUENTIAL,
    TORCHVISION,
    Naming,
    sequential,
)
from intl_transfer.conversion.reading import Content
from intl_transfer.conversion.settings import IMAGENET, Settings
from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.models import Stem

ONLINE, TARGET = "online", "target"
#: Other words for the two networks of a method with a moving average.
ALIASES = {
    **dict.fromkeys(("student", "query", "base"), ONLINE),
    **dict.fromkeys(("teacher", "key", "momentum", "ema"), TARGET),
}
# Dictionaries and wrappers around a network: DistributedDataParallel's, torch.compile's.
ANY = r"(?:(?:state_dict|model|model_state_dict|state|net)/)?(?:module\.|model\.)*"


@dataclass(frozen=True)
class Place:
    """The location of one ResNet in a file.

    Attributes:
        prefix: of the names of its tensors.
        naming: naming scheme of its tensors.
    """

    prefix: str
    naming: Naming

    def read(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """The ResNet under torchvision's names, and the other names with this prefix.

        Raises:
            UserError: if its modules are numbered as without max-pooling, but not its stem.
        """
        state, rest = self.sort(tensors)
        first = state.get("conv1.weight")
        if self.naming in SMALL_SEQUENTIAL.values() and first is not None and first.shape[-1] > 3:
            raise UserError(
                f"{self.prefix}0.weight is {'x'.join(map(str, first.shape[-2:]))}, but the stages "
                "are numbered as in a ResNet for small images, without a module for max-pooling or "
                "ReLU: expected 3x3. Save it under torchvision's names: "
                "torch.save(resnet.state_dict(), FILE)"
            )
        return state, rest

    def sort(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """As :meth:`read`, unchecked."""
        state: dict[str, Tensor] = {}
        rest: list[str] = []
        folder = self.prefix.rpartition("/")[0]
        for key, tensor in tensors.items():
            name = None
            if key.startswith(self.prefix) and "/" not in key[len(self.prefix) :]:
                name = self.naming.to_torchvision(key[len(self.prefix) :])
            if name is not None:
                state[name] = tensor
            elif key.rpartition("/")[0] == folder:
                rest.append(key.rpartition("/")[2])
        return state, rest


_TENSOR = re.compile(r"\.(?:weight|bias|running_mean|running_var|num_batches_tracked)$")
# Dictionaries with a tensor for each of a network's, which are none of its own.
_OPTIMIZER = re.compile(
    r"(?:^|[./])(?:(?:optim|\w*optimizers?)(?:_states?)?(?:_dict)?|grad(?:ient)?s?|"
    r"(?:max_)?exp_avg(?:_sq)?|momentum_buffers?)[./]"
)


def is_of_optimizer(name: str) -> bool:
    """Whether a tensor is in an optimizer's state, or a gradient, by its name."""
    return _OPTIMIZER.search(name) is not None


def places_in(names: Iterable[str]) -> list[Place]:
    """All ResNets in a file, complete or partial, in the file's order."""
    found: dict[str, Place] = {}
    numbers: dict[str, set[int]] = {}
    for name in names:
        if not _TENSOR.search(name) or is_of_optimizer(name):
            continue
        for naming in NAMINGS:
            match = naming.block.match(name)
            if match:
                prefix = match.group("prefix")
                found.setdefault(prefix, Place(prefix, naming))
                if naming is SEQUENTIAL:
                    numbers.setdefault(prefix, set()).add(int(match["number"]))
                break
    for prefix, its in numbers.items():
        if found[prefix].naming is SEQUENTIAL:
            known = sequential(its)
            if known is None:
                del found[prefix]
            else:
                found[prefix] = Place(prefix, known)
    return list(found.values())


# Common names of moving-average networks.
_AVERAGED = re.compile(
    r"ema(?![a-z])|teacher|momentum|averag|swa(?![a-z])|shadow|target|encoder_k\b|key_encoder", re.I
)


def is_averaged(name: str) -> bool:
    """Whether the name of a prefix or dictionary suggests a moving average."""
    return _AVERAGED.search(name) is not None


def is_averaged_model(prefix: str, names: Container[str]) -> bool:
    """Whether a network is what torch's ``AveragedModel`` wraps, which counts its updates.

    Args:
        prefix: of the network's tensors.
        names: of all tensors in the file.
    """
    ends = (match.start() for match in re.finditer(r"(?<![^./])module\.", prefix))
    return any(f"{prefix[:end]}n_averaged" in names for end in ends)


class Adapter(Protocol):
    """One format."""

    @property
    def name(self) -> str:
        """As reports name it."""

    def branches(self, content: Content) -> list[str]:
        """The networks in a file, the default first; empty if it has another format."""

    def to_torchvision(self, content: Content, branch: str) -> tuple[dict[str, Tensor], list[str]]:
        """One network under torchvision's names, and the names of omitted tensors."""

    def from_torchvision(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The dictionary of the default branch."""

    def prefix(self, content: Content, branch: str) -> str:
        """The prefix of a network's tensors, for messages."""

    def method(self, content: Content) -> Fact | None:
        """The pretraining method, if anything in the file suggests it, with the evidence."""

    def settings(self, content: Content) -> Settings:
        """The network's image preprocessing, by the format's names."""

    def small_stem(self, content: Content) -> Stem | None:
        """The type of a file's 3x3 stem in this format, if known."""


@dataclass(frozen=True)
class Layout:
    """An adapter for one or two ResNets behind known prefixes.

    Attributes:
        name: as reports name it.
        places: branch to a pattern of its prefix; the default branch comes first.
        export_prefix: the prefix, with ``/`` after dictionaries, for writing.
        required_keys: patterns that distinguish the format from others with these prefixes: each
            must match some tensor's name.
        top: required keys of the file's dictionary.
        duplicate_prefix: pattern of prefixes of a second copy of the same network. Where its
            numbers differ, it is another network, and the file does not have this format.
        method_name: the method: a name, then inferred from tensor names, or a function that finds
            it.
        only: patterns of the method's tensors outside its networks, by the layers of its heads: a
            file with others is of another method that has its names. None: not checked.
        head: the same of the tensors that its networks have beside the ResNet.
        needs: patterns of which each must match a tensor outside the networks, or a file is not
            the method's: networks alone have common names.
        exact: a file that differs in :attr:`only`, :attr:`head` or :attr:`needs` does not have
            this format.
        stated: finds what the producer's own files state of it; where its names are common, a file
            without does not have this format.
        pixels: image preprocessing, or a function that finds it.
        naming: for writing.
        stem: the type of a 3x3 stem in files of the method, if known.
    """

    name: str
    places: Mapping[str, str]
    export_prefix: str
    required_keys: tuple[str, ...] = ()
    top: tuple[str, ...] = ()
    duplicate_prefix: str | None = None
    method_name: str | Callable[[Content], str | Fact | None] | None = None
    only: tuple[str, ...] | None = None
    head: tuple[str, ...] | None = None
    needs: tuple[str, ...] = ()
    exact: bool = False
    stated: Callable[[Content], Fact | None] | None = None
    pixels: Settings | Callable[[Content], Settings] = IMAGENET
    naming: Naming = field(default=TORCHVISION)
    stem: Stem | None = None

    def find(self, content: Content) -> dict[str, Place]:
        """Branch to place; empty if the file has another format."""
        found = self._places(content)
        if found and self.stated is not None and self.stated(content) is None:
            return {}
        return {} if self.exact and not self._is_methods(content, found) else found

    def _places(self, content: Content) -> dict[str, Place]:
        if not all(key in content.values for key in self.top):
            return {}
        required_keys = [re.compile(mark) for mark in self.required_keys]
        if not all(any(mark.search(key) for key in content.tensors) for mark in required_keys):
            return {}
        found: dict[str, Place] = {}
        copies: list[Place] = []
        for place in places_in(content.tensors):
            duplicate_prefix = self.duplicate_prefix is not None and re.fullmatch(
                self.duplicate_prefix, place.prefix
            )
            for branch, pattern in self.places.items():
                if re.fullmatch(pattern, place.prefix) and branch not in found:
                    found[branch] = place
                    break
            else:
                if not duplicate_prefix:
                    return {}  # more ResNets than this format has
                copies.append(place)
        networks = list(found.values())
        if not all(any(_are_equal(content, copy, one) for one in networks) for copy in copies):
            return {}
        if set(found) == {ONLINE} and is_averaged_model(found[ONLINE].prefix, content.tensors):
            return {TARGET: found[ONLINE]}
        return {branch: found[branch] for branch in self.places if branch in found}

    def branches(self, content: Content) -> list[str]:
        """See :class:`Adapter`."""
        return list(self.find(content))

    def to_torchvision(self, content: Content, branch: str) -> tuple[dict[str, Tensor], list[str]]:
        """See :class:`Adapter`."""
        return self.find(content)[branch].read(content.tensors)

    def from_torchvision(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """See :class:`Adapter`."""
        *folders, prefix = self.export_prefix.split("/")
        made: dict[str, Any] = {
            prefix + self.naming.from_torchvision(name): tensor for name, tensor in state.items()
        }
        for folder in reversed(folders):
            made = {folder: made}
        return made

    def prefix(self, content: Content, branch: str) -> str:
        """See :class:`Adapter`."""
        return self.find(content)[branch].prefix

    def method(self, content: Content) -> Fact | None:
        """See :class:`Adapter`."""
        found = self.method_name(content) if callable(self.method_name) else self.method_name
        if not isinstance(found, str):
            return found
        places = self.find(content)
        # A moving average alone may be any method's.
        if (ONLINE in self.places and ONLINE not in places) or not self._is_methods(
            content, places
        ):
            return None
        return Fact(found, inferred(f"as {self.name} has them"))

    def _is_methods(self, content: Content, found: Mapping[str, Place]) -> bool:
        """Whether the file has the method's modules, and no others."""
        if self.only is None and self.head is None and not self.needs:
            return True
        beside = {name for place in found.values() for name in place.sort(content.tensors)[1]}
        # Of a network without a name of its own, nothing beside it is a part.
        networks = {
            place.prefix.rpartition("/")[2]: place.naming
            for place in places_in(content.tensors)
            if not re.fullmatch(ANY, place.prefix)
        }
        inside = [(n[len(p) :], p) for n in beside for p in networks if n.startswith(p)]
        heads = [name for name, p in inside if networks[p].to_torchvision(name) is None]
        names = [re.sub(rf"^{ANY}", "", n) for n in beside if not n.startswith(tuple(networks))]
        return (
            _are_all_of(names, self.only)
            and _are_all_of(heads, self.head)
            and all(any(re.search(need, name) for name in names) for need in self.needs)
        )

    def small_stem(self, content: Content) -> Stem | None:
        """See :class:`Adapter`."""
        return self.stem if self._is_methods(content, self.find(content)) else None

    def settings(self, content: Content) -> Settings:
        """See :class:`Adapter`."""
        return self.pixels(content) if callable(self.pixels) else self.pixels


def _are_all_of(names: Iterable[str], patterns: tuple[str, ...] | None) -> bool:
    """Whether each name begins as one of the patterns; without any, nothing is checked."""
    if patterns is None:
        return True
    known = re.compile("|".join(patterns) or r"\Z")
    return all(known.match(name) for name in names)


def _are_equal(content: Content, one: Place, other: Place) -> bool:
    """Whether two ResNets of a file have the same numbers where both have a tensor."""
    ours, theirs = (place.sort(content.tensors)[0] for place in (one, other))
    return all(_is_equal(ours[name], theirs[name]) for name in ours.keys() & theirs.keys())


def _is_equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    stored_once = one.dtype == other.dtype and one.stride() == other.stride()
    if stored_once and one.data_ptr() == other.data_ptr():
        return True
    # What is no number is refused later.
    return torch.allclose(one.double(), other.double(), rtol=0, atol=0, equal_nan=True)


def chosen(branches: list[str], branch: str | None, where: str) -> str:
    """Chooses the network to read.

    Args:
        branches: those in the file, the default first.
        branch: the user's choice, or None for the default.
        where: the file and its format, for the message.

    Raises:
        UserError: if it does not exist; lists those that do.
    """
    if branch is None:
        return branches[0]
    if branch in branches:
        return branch
    alike = [name for name in branches if name.strip("./'") == branch.strip("./'")]
    if len(alike) == 1:
        return alike[0]
    common = ALIASES.get(branch, branch)  # only where no network is called so
    if common in branches:
        return common
    if common in (ONLINE, TARGET) and len(branches) > 1 and not {ONLINE, TARGET} & set(branches):
        likely = [name for name in branches if is_averaged(name) == (common == TARGET)]
        if len(likely) == 1:
            return likely[0]
    hint = did_you_mean(branch, branches)
    there = " and ".join(quoted(name) for name in branches)
    raise UserError(f"{where} has no branch '{branch}'; it has {there}.{hint}")


def quoted(branch: str) -> str:
    """A branch's name in a message; that of no prefix has its quotes already."""
    return branch if branch == "''" else f"'{branch}'"
