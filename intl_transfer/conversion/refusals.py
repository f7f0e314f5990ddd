"""Errors for files without a usable ResNet: their content, and what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from intl_transfer.conversion.adapters.prefixed import PREFIXED
from intl_transfer.conversion.identify import (
    architecture_in_words,
    is_optimizer_alone,
    listing,
    shard,
)
from intl_transfer.conversion.namings import NAMINGS
from intl_transfer.conversion.reading import Content, first_keys
from intl_transfer.errors import UserError


def unknown(content: Content) -> str:
    """The message for a file without a ResNet: its content, and what to do.

    Args:
        content: of the file.

    Raises:
        UserError: if it contains tensors without plain numbers, which may be a ResNet's.
    """
    keys = f"of no known format ({first_keys(_inner(content))})"
    refuse_odd(content, "")
    if is_optimizer_alone(content.values, content.tensors):
        return (
            f"{keys}: an optimizer's state alone. Give the file of the network's weights, which "
            "its training saved beside it"
        )
    part = shard(content.path)
    if part is not None:
        return f"{keys}: {part}"
    if not content.tensors:
        return f"{keys}: no tensor in it. Give the file of the network's weights"
    if any(name.endswith("_flat_param") for name in content.tensors):
        return (
            f"{keys}: parameters that FSDP has made one. Gather them where they are saved: "
            "FSDP.state_dict_type(model, StateDictType.FULL_STATE_DICT)"
        )
    other = architecture_in_words(content.tensors)
    if other is not None:
        return f"{keys}: {other}. Known: ResNet-18, 34, 50, 101, 152 and wide ResNet-50-2"
    return (
        f"{keys}. Expected a ResNet's tensors ('layer1.0.conv1.weight' …) behind any prefix, or "
        f"Detectron2's or Caffe2's names; found {listing(content.tensors)}. If one of these is a "
        "ResNet, save it under torchvision's names: torch.save(resnet.state_dict(), FILE); "
        "docs/conversion.md lists the formats"
    )


def refuse_odd(content: Content, prefix: str) -> None:
    """Refuses a network with tensors without plain numbers.

    Args:
        content: of the file.
        prefix: of the network's names.

    Raises:
        UserError: naming the tensor, its kind, and what to save instead.
    """
    for name, (kind, instead) in content.odd.items():
        if name.startswith(prefix) and _is_of_backbone(name[len(prefix) :]):
            raise UserError(
                f"{content.path}: '{name}' is a tensor that is {kind}; expected numbers, dense and "
                f"whole. Save them where you can open it: {instead}"
            )


def _is_of_backbone(name: str) -> bool:
    """Whether a tensor behind a network's prefix belongs to its ResNet, and not to a head."""
    return any(naming.to_torchvision(name) is not None for naming in NAMINGS)


def _inner(content: Content) -> Mapping[str, Any]:
    """The dictionary of tensors, for messages."""
    for wrapper in ("state_dict", "model"):
        if isinstance(content.values.get(wrapper), Mapping):
            # The line above has looked.
            return content.values[wrapper]  # type: ignore[no-any-return]
    return content.values


def count(content: Content, prefix: str) -> int:
    """The number of a ResNet's tensors with a prefix.

    Args:
        content: of the file.
        prefix: from the list of networks.
    """
    with contextlib.suppress(
        UserError
    ):  # for a tensor that is not a ResNet's: reported when it is converted
        return len(PREFIXED.to_torchvision(content, prefix)[0])
    return sum(key.startswith(prefix) for key in content.tensors)
