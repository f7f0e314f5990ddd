"""Converts between torchvision's and Detectron2's names of a ResNet's tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from intl_transfer.errors import UserError


def to_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames a torchvision ResNet's tensors for Detectron2.

    Args:
        state: torchvision names, without ``fc``.

    Returns:
        Detectron2's backbone names (``stem.*``, ``res2`` to ``res5``), with the same tensors.
        Batch counters are omitted, as in Detectron2's files.

    Raises:
        UserError: for a name that is not in a ResNet.
    """
    return {
        detectron2_name(key): tensor
        for key, tensor in state.items()
        if not key.endswith("num_batches_tracked")
    }


def detectron2_name(key: str) -> str:
    """Detectron2's name of a torchvision tensor.

    Args:
        key: a name without ``fc``.

    Raises:
        UserError: for a name that is not in a ResNet.
    """
    match = re.fullmatch(r"(?:layer(\d)\.(\d+)\.)?(.+)", key)
    assert match is not None
    stage, block, rest = match.groups()
    prefix = f"res{int(stage) + 1}.{block}." if stage else "stem."
    rules = (
        (r"conv(\d)\.weight", r"conv\1.weight"),
        (r"bn(\d)\.(weight|bias|running_mean|running_var)", r"conv\1.norm.\2"),
        (r"downsample\.0\.weight", r"shortcut.weight"),
        (r"downsample\.1\.(weight|bias|running_mean|running_var)", r"shortcut.norm.\1"),
    )
    for pattern, replacement in rules:
        if re.fullmatch(pattern, rest) and (stage or pattern[0] in "cb"):
            return prefix + re.sub(pattern, replacement, rest)
    raise UserError(f"'{key}' is not the name of a ResNet's tensor")


_DETECTRON2 = re.compile(
    r"(?:backbone\.bottom_up\.|backbone\.|roi_heads\.)?(?:stem|res(\d)\.(\d+))\.(.+)"
)
_BLOCK = re.compile(
    r"(?:backbone\.bottom_up\.|backbone\.|roi_heads\.)?res[2-5]\.\d+\.(?:conv\d|shortcut)\."
)
_STATISTICS = r"(weight|bias|running_mean|running_var|num_batches_tracked)"


def is_detectron2(keys: Iterable[str]) -> bool:
    """Whether names are Detectron2's, of a backbone or of a detector."""
    return any(_BLOCK.match(key) for key in keys)


def torchvision_name(key: str) -> str | None:
    """Torchvision's name of a Detectron2 tensor.

    Args:
        key: a name from a backbone file or a detector.

    Returns:
        The name, or None for a tensor outside the ResNet.

    Raises:
        UserError: for a tensor that torchvision's ResNet does not have, such as the offsets of a
            deformable convolution: without it the features would differ.
    """
    match = _DETECTRON2.fullmatch(key)
    # The classifier, as Detectron2's tools/convert-torchvision-to-d2.py names it.
    if match is None or match.group(3).startswith("fc."):
        return None
    stage, block, rest = match.groups()
    prefix = f"layer{int(stage) - 1}.{block}." if stage else ""
    rules = (
        (r"conv(\d)\.weight", r"conv\1.weight"),
        (rf"conv(\d)\.norm\.{_STATISTICS}", r"bn\1.\2"),
        (r"shortcut\.weight", "downsample.0.weight"),
        (rf"shortcut\.norm\.{_STATISTICS}", r"downsample.1.\1"),
    )
    for pattern, replacement in rules:
        if re.fullmatch(pattern, rest):
            return prefix + re.sub(pattern, replacement, rest)
    raise UserError(f"'{key}' has no place in torchvision's ResNet; this backbone is another one")


def from_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames Detectron2's tensors back; other parts of a detector are omitted.

    Args:
        state: names of a backbone file, or of a fine-tuned detector (``backbone.*``,
            ``backbone.bottom_up.*``, ``roi_heads.res5.*``).

    Returns:
        torchvision's names, without ``fc``.

    Raises:
        UserError: for a tensor that torchvision's ResNet does not have, or that occurs twice.
    """
    origins: dict[str, str] = {}
    for key in state:
        name = torchvision_name(key)
        if name is None:
            continue
        if name in origins:
            raise UserError(
                f"'{origins[name]}' and '{key}' are the same tensor of two ResNets; expected one"
            )
        origins[name] = key
    return {name: state[key] for name, key in origins.items()}
