"""The layers of a network that was pickled whole, against those that its tensors are loaded into.

Such a file states each layer's class and settings. A network of the same tensors with another
epsilon, padding, stride or activation computes something else, which no tensor shows. What a class
of the file's own does with its layers is not stated, as it is not by tensors alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from intl_transfer.conversion.audit import check_whole, has_small_stem
from intl_transfer.conversion.evidence import stated
from intl_transfer.conversion.reading import Content
from intl_transfer.conversion.settings import Settings
from intl_transfer.conversion.verify import stride_in_1x1
from intl_transfer.errors import UserError
from intl_transfer.files.placeholders import Stored
from intl_transfer.models import Stem, build_backbone

# What a layer computes in evaluation, by its settings beside tensors.
_SETTINGS = {
    "Conv2d": ("stride", "padding", "padding_mode", "dilation", "groups"),
    "BatchNorm2d": ("eps",),
    "ReLU": (),
    "MaxPool2d": ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "Identity": (),
}
# Classes that compute the same as torch's.
_CLASSES = {
    "torch.nn.modules.conv.Conv2d": "Conv2d",
    "detectron2.layers.wrappers.Conv2d": "Conv2d",
    "mmcv.cnn.bricks.wrappers.Conv2d": "Conv2d",
    "torch.nn.modules.batchnorm.BatchNorm2d": "BatchNorm2d",
    "torch.nn.modules.batchnorm.SyncBatchNorm": "BatchNorm2d",
    "torchvision.ops.misc.FrozenBatchNorm2d": "BatchNorm2d",
    "detectron2.layers.batch_norm.FrozenBatchNorm2d": "BatchNorm2d",
    "detectron2.layers.batch_norm.NaiveSyncBatchNorm": "BatchNorm2d",
    "mmengine.utils.dl_utils.parrots_wrapper.SyncBatchNorm": "BatchNorm2d",
    "apex.parallel.sync_batchnorm.SyncBatchNorm": "BatchNorm2d",
    "apex.parallel.optimized_sync_batchnorm.SyncBatchNorm": "BatchNorm2d",
    "intl_transfer.models.sync_batchnorm.CollectiveBatchNorm": "BatchNorm2d",
    "torch.nn.modules.activation.ReLU": "ReLU",
    "torch.nn.modules.pooling.MaxPool2d": "MaxPool2d",
    "mmcv.cnn.bricks.wrappers.MaxPool2d": "MaxPool2d",
    "torch.nn.modules.linear.Identity": "Identity",
}
# Active in training only.
_DROPPING = re.compile(r"(?:torch\.nn\.modules\.dropout|timm\.layers\.drop|mmcv.*\.drop)\.")
# An activation may be a function, beside such a branch of nothing.
_SHORTCUT = re.compile(r"\b(?:downsample|shortcut)\b")
_PADDING = re.compile(r"torch\.nn\.modules\.padding\.(?:ZeroPad2d|ConstantPad2d)")
# Of the names that TorchScript gives to classes.
_SCRIPTED = re.compile(r"^__torch__\.|___torch_mangle_\d+\.")
_ELSE = ". The network computes something else than a ResNet of its tensors"
_ALONE = (
    "; where it computes the same, save its weights alone: torch.save(model.state_dict(), FILE)"
)


@dataclass(frozen=True)
class Layers:
    """What the layers state that tensors do not.

    Attributes:
        stem: the stem.
        stride_in_1x1: whether a bottleneck strides in its first 1x1 convolution.
    """

    stem: Stem
    stride_in_1x1: bool

    def applied(self, settings: Settings) -> Settings:
        """Settings with the strides of these layers."""
        return replace(
            settings, stride_in_1x1=self.stride_in_1x1, strides_source=stated("its layers")
        )


def checked_layers(content: Content, state: Mapping[str, Tensor], prefix: str) -> Layers | None:
    """Checks the layers of a network that was pickled whole.

    Args:
        content: of the file.
        state: the network under torchvision's names, its tensors as in the content.
        prefix: of its tensors in the content.

    Returns:
        What they state; None for tensors alone.

    Raises:
        UserError: for a layer that computes something else than torchvision's, or a class of which
            that is not known.
    """
    places = _places(content, state, prefix)
    if not places:
        return None
    try:
        architecture = check_whole(state)
    except UserError:
        return None  # reported with the file's other faults
    tree = _Tree(content, places)
    strides = _setting(content.modules[places["layer2.0.conv1"]], "stride")
    is_caffes = "layer2.0.conv3" in places and strides == (2, 2)
    stem: Stem = "imagenet"
    if has_small_stem(state):
        padding = _setting(content.modules[places["conv1"]], "padding")
        wide = padding == (2 - tree.padding, 2 - tree.padding)
        stem = "cifar_published" if wide else "cifar"
    network = _network(architecture, stem, is_caffes)
    for name, place in places.items():
        more = tree.padding if name == "conv1" else 0
        tree.compare(place, network.get_submodule(name), more)
    tree.check_between(stem)
    return Layers(stem, is_caffes)


@lru_cache
def _network(architecture: str, stem: Stem, is_caffes: bool) -> nn.Module:
    """The network that the tensors are loaded into, without numbers."""
    with torch.device("meta"):
        network, _ = build_backbone(architecture, stem)
    if is_caffes:
        stride_in_1x1(network)
    return network


def _places(content: Content, state: Mapping[str, Tensor], prefix: str) -> dict[str, str]:
    """Torchvision's name of each layer with tensors to that in the file; all of them, or none."""
    if not content.modules:
        return {}
    names: dict[int, str] = {}
    for name, tensor in content.tensors.items():
        if name.startswith(prefix):
            names.setdefault(id(tensor), name)
    found = {}
    for name, tensor in state.items():
        place = _parent(names.get(id(tensor), ""))
        if id(tensor) not in names or place not in content.modules:
            return {}
        found[name.rpartition(".")[0]] = place
    return found


def _parent(name: str) -> str:
    """The module that holds a module or a tensor; the outermost holds itself."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.rpartition(".")[0]


def _above(name: str) -> list[str]:
    """The modules that hold one, from the innermost."""
    found = [_parent(name)]
    while (outer := _parent(found[-1])) != found[-1]:
        found.append(outer)
    return found


class _Tree:
    """A network's layers by their places in the file.

    Attributes:
        padding: by zeros, in pixels, of layers before the stem's convolution.
    """

    def __init__(self, content: Content, places: Mapping[str, str]) -> None:
        self._path, self._modules = content.path, content.modules
        self._places = places
        self._with_tensors = set(places.values())
        self._holding = {_parent(name) for name in self._modules if name != _parent(name)}
        self.padding = sum(self._padding_of(place) for place in self._stem(before=True))

    def compare(self, place: str, expected: nn.Module, more: int = 0) -> None:
        """Compares a layer with torchvision's.

        Args:
            place: in the file.
            expected: the other one.
            more: pixels of padding by zeros before it.

        Raises:
            UserError: if they differ.
        """
        module = self._modules[place]
        kind = next(kind for kind in _SETTINGS if type(expected) is getattr(nn, kind))
        if _kind(module) != kind:
            raise self._other(place, kind)
        for key in _SETTINGS[kind]:
            found, wanted = _setting(module, key), _of(getattr(expected, key))
            if key == "padding" and found == "same" and expected.stride == (1, 1):
                found = tuple(size // 2 for size in _of(expected.kernel_size))
            if key == "padding":
                wanted = tuple(size - more for size in wanted)
            if found is not None and found != wanted:
                raise UserError(
                    f"{self._path}: its layer '{place}' is a {kind} with {key}={found}; expected "
                    f"{wanted}, as in torchvision's{_ELSE}"
                )

    def check_between(self, stem: Stem) -> None:
        """Checks layers without tensors: activations and pooling.

        Raises:
            UserError: if one is another than torchvision's.
        """
        blocks: dict[str, list[str]] = {}
        for name, place in self._places.items():
            if name.startswith("layer"):
                blocks.setdefault(".".join(name.split(".")[:2]), []).append(place)
        for inner in blocks.values():
            common = next(a for a in _above(inner[0]) if all(a in _above(p) for p in inner))
            leaves = [n for n in self._leaves() if n.startswith(f"{common}.")]
            self._check(leaves, {"ReLU": nn.ReLU()})
        allowed: dict[str, nn.Module] = {"ReLU": nn.ReLU()}
        if stem == "imagenet":
            allowed["MaxPool2d"] = nn.MaxPool2d(3, 2, 1)
        padding = {place for place in self._stem(before=True) if self._padding_of(place)}
        self._check([place for place in self._stem() if place not in padding], allowed)

    def _check(self, leaves: list[str], allowed: Mapping[str, nn.Module]) -> None:
        kinds = {place: _kind(self._modules[place]) for place in leaves}
        for place, kind in kinds.items():
            if kind is not None and kind in allowed:
                self.compare(place, allowed[kind])
            elif kind != "Identity":
                raise self._other(place, " or ".join(allowed))
        nothing = [
            place
            for place in leaves
            if self._modules[place].name.endswith(".Identity") and not _SHORTCUT.search(place)
        ]
        for kind in allowed:
            if nothing and kind not in kinds.values():
                raise self._other(nothing[0], kind)

    def _leaves(self) -> Iterator[str]:
        """Layers without layers and without the ResNet's tensors."""
        for place in self._modules:
            if place not in self._with_tensors and place not in self._holding:
                yield place

    def _stem(self, before: bool = False) -> list[str]:
        """Leaves beside the first convolution and around it, up to the last stage.

        Args:
            before: only those before the convolution.
        """
        places = list(self._places.values())
        first = self._places["conv1"]
        shared = [a for a in _above(first) if all(a in _above(p) for p in places)]
        around = _above(first)[: len(_above(first)) - len(shared) + 1]
        last = next(place for name, place in self._places.items() if name.startswith("layer4."))
        found = []
        leaves = set(self._leaves())
        for name in self._modules:
            if name == (first if before else last):
                break
            if name in leaves and _parent(name) in around:
                found.append(name)
        return found

    def _padding_of(self, place: str) -> int:
        """The pixels of a layer that pads by zeros on every side; otherwise 0."""
        module = self._modules[place]
        sides = _of(module.state.get("padding"))
        is_zeros = _of(module.state.get("value")) in (None, 0, (0, 0))
        if not _PADDING.fullmatch(module.name) or not is_zeros or not isinstance(sides, tuple):
            return 0
        return sides[0] if len(set(sides)) == 1 and type(sides[0]) is int else 0

    def _other(self, place: str, kind: str) -> UserError:
        name = _SCRIPTED.sub("", self._modules[place].name)
        of_torch = name.startswith("torch.nn.")
        words = name.rpartition(".")[2] if of_torch else name
        return UserError(
            f"{self._path}: its layer '{place}' is a {words}; expected {kind}, as in torchvision's"
            f"{_ELSE if of_torch else _ALONE}"
        )


def _kind(module: Stored) -> str | None:
    """The class of torch that computes the same; None if there is none, or it is not known."""
    name = _SCRIPTED.sub("", module.name)
    return "Identity" if _DROPPING.match(name) else _CLASSES.get(name)


def _setting(module: Stored, key: str) -> Any:
    """A layer's setting; None where the file does not state it."""
    value = _of(module.state.get(key))
    return (0, 0) if key == "padding" and value == "valid" else value


def _of(value: Any) -> Any:
    """A setting, numbers for both axes as a pair; of anything but plain values the class."""
    if type(value) is int:
        return value, value
    values = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(one, int | float | str | None) for one in values):
        return type(value).__name__
    return tuple(value) if isinstance(value, (list, tuple)) else value
