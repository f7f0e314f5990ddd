"""Naming schemes of a ResNet's tensors, each with conversion from and to torchvision's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from intl_transfer.conversion.detectron2 import detectron2_name, torchvision_name


@dataclass(frozen=True)
class Naming:
    """One naming scheme of a ResNet's tensors, behind any prefix.

    Attributes:
        block: matches a tensor inside a residual block; its group ``prefix`` is the prefix.
        to_torchvision: from a name without prefix; None for a part outside the backbone, such as a
            head.
        from_torchvision: the other direction.
    """

    block: re.Pattern[str]
    to_torchvision: Callable[[str], str | None]
    from_torchvision: Callable[[str], str]


_INSIDE = r"\.\d+\.(?:conv[123]|bn[123]|downsample)\."


# Of networks for CIFAR (kuangliu/pytorch-cifar, SupContrast, lightly), which name the branch so.
_SHORTCUT = re.compile(r"(?<=\d)\.shortcut(?=\.[01]\.)")


def _same(name: str) -> str | None:
    # Passes on top-level names of other types of ResNet (a second convolution in the stem) to the
    # audit.
    return _usual(name) if re.match(r"(?:conv\d|bn\d|layer\d|stem)\.", name) else None


def _usual(name: str) -> str:
    """A name with torchvision's for the branch that changes a block's size."""
    return _SHORTCUT.sub(".downsample", name)


TORCHVISION = Naming(re.compile(rf"(?P<prefix>(?:.*?[./])?)layer[1-4]{_INSIDE}"), _same, str)
# `nn.Sequential(*list(resnet.children())[:-1])`: modules by number, in torchvision's order.
# Numbers are ambiguous: other networks also number their stages, and have norms called bn1.
_NUMBERED = re.compile(r"(?P<prefix>(?:.*?[./])?)(?P<number>[2-7])\.\d+\.conv[123]\.")


def _sequential(start: int) -> Naming:
    """Modules by number, the first stage's being ``start``."""
    modules = {0: "conv1", 1: "bn1", **{start + stage: f"layer{stage + 1}" for stage in range(4)}}
    names = {str(number): module for number, module in modules.items()}
    numbers = {module: number for number, module in names.items()}

    def to_torchvision(name: str) -> str | None:
        first, _, rest = name.partition(".")
        return _usual(f"{names[first]}.{rest}") if first in names else None

    def from_torchvision(name: str) -> str:
        first, _, rest = name.partition(".")
        return f"{numbers[first]}.{rest}"

    return Naming(_NUMBERED, to_torchvision, from_torchvision)


SEQUENTIAL = _sequential(4)
#: For small images, without max-pooling, and where the ReLU is a function: from 3 or 2.
SMALL_SEQUENTIAL = {start: _sequential(start) for start in (2, 3)}


def sequential(numbers: Iterable[int]) -> Naming | None:
    """The naming of a network whose modules have numbers; None if it is no ResNet's.

    Args:
        numbers: of the modules with residual blocks, from 2 to 7.
    """
    found = sorted(set(numbers))
    small = SMALL_SEQUENTIAL.get(found[0])
    if small is not None and found == list(range(found[0], found[0] + 4)):
        return small
    return SEQUENTIAL if found[-1] >= 4 else None  # stages may be missing: refused in words


def _from_detectron2(name: str) -> str | None:
    return torchvision_name(name) if re.match(r"stem\.|res[2-5]\.\d", name) else None


_DETECTRON2 = re.compile(
    r"(?P<prefix>(?:.*?[./])?)res[2-5]\.\d+\.(?:conv[123]|shortcut)\.(?:weight|norm\.)"
)
DETECTRON2 = Naming(_DETECTRON2, _from_detectron2, detectron2_name)

_PARTS = {"convolution": ("conv", "downsample.0"), "normalization": ("bn", "downsample.1")}
_HF_BLOCK = r"encoder\.stages\.(\d)\.layers\.(\d+)\."


def _from_transformers(name: str) -> str | None:
    """huggingface/transformers, models/resnet/modeling_resnet.py."""
    stem = re.fullmatch(r"embedder\.embedder\.(convolution|normalization)\.(\w+)", name)
    if stem:
        return f"{_PARTS[stem[1]][0]}1.{stem[2]}"
    part = r"(?:layer\.(\d)|shortcut)\.(convolution|normalization)\.(\w+)"
    block = re.fullmatch(_HF_BLOCK + part, name)
    if block:
        stage, index, layer, module, kind = block.groups()
        own, shortcut = _PARTS[module]
        place = f"{own}{int(layer) + 1}" if layer else shortcut
        return f"layer{int(stage) + 1}.{index}.{place}.{kind}"
    # Passes on anything else inside it, such as attention, to the audit.
    inside = re.match(_HF_BLOCK, name)
    return f"layer{int(inside[1]) + 1}.{inside[2]}.{name[inside.end() :]}" if inside else None


def _to_transformers(name: str) -> str:
    stem = re.fullmatch(r"(conv|bn)1\.(\w+)", name)
    modules = {"conv": "convolution", "bn": "normalization", "0": "convolution"}
    if stem:
        return f"embedder.embedder.{modules[stem[1]]}.{stem[2]}"
    block = re.fullmatch(r"layer(\d)\.(\d+)\.(?:(conv|bn)(\d)|downsample\.(\d))\.(\w+)", name)
    assert block is not None, name
    stage, index, module, number, shortcut, kind = block.groups()
    place = (
        f"layer.{int(number) - 1}.{modules[module]}"
        if module
        else f"shortcut.{modules.get(shortcut, 'normalization')}"
    )
    return f"encoder.stages.{int(stage) - 1}.layers.{index}.{place}.{kind}"


TRANSFORMERS = Naming(
    re.compile(rf"(?P<prefix>(?:.*?[./])?){_HF_BLOCK}(?:layer\.\d|shortcut)\."),
    _from_transformers,
    _to_transformers,
)
NAMINGS = (TORCHVISION, TRANSFORMERS, DETECTRON2, SEQUENTIAL)
