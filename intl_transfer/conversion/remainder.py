"""What lies beside a ResNet's tensors and may belong to the network: named, or read.

Heads are left out, as every format has them. A layer between stages would be left out as well, and
a layer that normalizes images says how the network takes them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import Tensor

from intl_transfer.conversion.adapters.base import is_averaged, places_in
from intl_transfer.conversion.evidence import inferred
from intl_transfer.conversion.reading import Content
from intl_transfer.conversion.settings import Settings, from_statistics
from intl_transfer.data.statistics import Statistics

# By the name of the outermost module. Behind the stages of nn.Sequential come numbers from 8.
_HEAD = re.compile(
    r"fc|head|class|logit|linear|^lin|^out|proj|pred|prototyp|mlp|neck|queue|bank|memory|cent(?:er|re)|"
    r"loss|criterion|decod|temperature|logit_scale|^(?:[89]|\d\d+)$",
    re.I,
)
_NORMALIZATION = re.compile(
    r"(?P<layer>(?:.*[./])?)(?P<kind>(?:new_|pixel_|image_|img_|norm_)?(?:mean|mu|std|sigma))"
)
_DEVIATIONS = ("std", "sigma")


def name_remainder(content: Content, prefix: str) -> None:
    """Warns of tensors behind a network's prefix that are neither the ResNet's nor a head's.

    Args:
        content: of the file.
        prefix: of the network.
    """
    places = places_in(content.tensors)
    place = next((place for place in places if place.prefix == prefix), None)
    if place is None:
        return
    inner = tuple(p.prefix for p in places if p.prefix != prefix and p.prefix.startswith(prefix))
    found = []
    for name in content.tensors:
        last = name[len(prefix) :]
        if not name.startswith(prefix) or name.startswith(inner) or "/" in last:
            continue
        outermost = last.partition(".")[0]
        is_head = _HEAD.search(outermost) or is_averaged(outermost)
        if place.naming.to_torchvision(last) is None and not is_head:
            found.append(name)
    found = [name for name in found if not _NORMALIZATION.fullmatch(name)]
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        warnings.warn(
            f"{content.path}: '{found[0]}'{more} left out; no layer of a ResNet. If the network "
            "has it between its stages, its features are others than these"
        )


def name_unseen(content: Content, prefix: str) -> None:
    """Warns of what torchvision's own detectors and segmenters do that no tensor shows.

    Args:
        content: of the file.
        prefix: of the network.
    """
    outer = prefix.removesuffix("backbone.body.")
    parts = [f"{outer}{part}" for part in ("backbone.fpn.", "rpn.", "roi_heads.", "head.")]
    counters = any(n.startswith(prefix) and n.endswith("_tracked") for n in content.tensors)
    if (
        outer != prefix
        and not counters
        and any(n.startswith(tuple(parts)) for n in content.tensors)
    ):
        warnings.warn(
            f"{content.path}: batch norms behind '{prefix}' without counters, as torchvision's "
            "detectors have frozen ones, whose epsilon no tensor shows. 1e-05 is assumed, as of "
            "one that you trained; those with torchvision's COCO_V1 weights have 0 and other "
            "features. docs/conversion.md says how to write these exactly"
        )
    outer = prefix.removesuffix("backbone.")
    last = content.tensors.get(f"{outer}classifier.4.weight")
    if outer != prefix and last is not None and last.ndim == 4:  # FCNHead, DeepLabHead
        warnings.warn(
            f"{content.path}: a head as torchvision's FCN and DeepLab have beside '{prefix}'. "
            "Their ResNets have dilations in place of the strides of layer3 and layer4, which no "
            "tensor shows, and other features than these"
        )


def with_normalization(
    settings: Settings, content: Content, state: Mapping[str, Tensor]
) -> Settings:
    """Image preprocessing by a layer of the network, unless its settings are known.

    Args:
        settings: by the format.
        content: of the file.
        state: the network, its tensors as in the content.

    Returns:
        Inferred from two buffers, such as ``0.mean`` and ``0.std``. What cannot be read so is named
        in a warning.
    """
    if settings.pixels_source.is_known:
        return settings
    first = state.get("conv1.weight")
    names = [name for name, tensor in content.tensors.items() if tensor is first]
    folder = names[0].rpartition("/")[0] if names else ""
    layers: dict[str, dict[bool, tuple[str, tuple[float, ...]]]] = {}
    for name, layer, kind, values in _triples(content.tensors, folder):
        layers.setdefault(layer, {})[kind.endswith(_DEVIATIONS)] = (name, values)
    if not layers:
        return settings
    pairs = {
        (parts[False][1], parts[True][1]) for parts in layers.values() if parts.keys() == {0, 1}
    }
    names = [name for parts in layers.values() for name, _ in parts.values()]
    if len(pairs) == 1 and all(parts.keys() == {0, 1} for parts in layers.values()):
        (mean, std) = next(iter(pairs))
        if all(0 <= value <= 1 for value in mean) and all(0 < value <= 1 for value in std):
            statistics = Statistics((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
            source = inferred(f"{names[0]}, {names[1]}, as of a layer that normalizes images")
            found = from_statistics(statistics).known_by(source, settings.strides_source)
            return replace(found, stride_in_1x1=settings.stride_in_1x1)
    warnings.warn(
        f"{content.path}: '{names[0]}' looks like a normalization of images by the network itself, "
        "which was not read; set it with --pixels"
    )
    return settings


def _triples(
    tensors: Mapping[str, Tensor], folder: str
) -> Iterator[tuple[str, str, str, tuple[float, ...]]]:
    """Name, layer, kind and values of tensors with a number for each color."""
    for name, tensor in tensors.items():
        found = _NORMALIZATION.fullmatch(name)
        if found is None or name.rpartition("/")[0] != folder or tensor.numel() != 3:
            continue
        values = tuple(round(float(value), 6) for value in tensor.flatten())
        yield name, found["layer"], found["kind"], values
