"""Between torchvision's names of a ResNet's tensors and Detectron2's, both ways."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from intl_transfer.errors import UserError

# Numbers of residual blocks, and whether they are bottlenecks.
_DEPTHS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}


def to_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames a torchvision ResNet's tensors for Detectron2.

    Args:
        state: torchvision names, without ``fc``.

    Returns:
        Detectron2's backbone names (``stem.*``, ``res2`` to ``res5``), with the same tensors.
        Counters of batches are left out: Detectron2 keeps none in a file.

    Raises:
        UserError: for a name that no ResNet has.
    """
    return {
        _to_name(key): tensor
        for key, tensor in state.items()
        if not key.endswith("num_batches_tracked")
    }


def _to_name(key: str) -> str:
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
_STATISTICS = r"(weight|bias|running_mean|running_var|num_batches_tracked)"


def is_detectron2(keys: Iterable[str]) -> bool:
    """Whether names are Detectron2's, of a backbone alone or of a whole detector."""
    stems = (prefix + "stem.conv1.weight" for prefix in ("", "backbone.", "backbone.bottom_up."))
    return not set(stems).isdisjoint(keys)


def torchvision_name(key: str) -> str | None:
    """Torchvision's name of a Detectron2 tensor.

    Args:
        key: a name from a backbone file or a whole detector.

    Returns:
        The name, or None for a part of a detector that is not of the ResNet.

    Raises:
        UserError: for a tensor inside the ResNet that torchvision's has not, such as the offsets
            of a deformable convolution: without it the features would be others.
    """
    match = _DETECTRON2.fullmatch(key)
    if match is None:
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
    """Renames Detectron2's tensors back; parts of a detector that are no backbone are left out.

    Args:
        state: names of a backbone file, or of a fine-tuned detector (``backbone.*``,
            ``backbone.bottom_up.*``, ``roi_heads.res5.*``).

    Returns:
        torchvision's names, without ``fc``.

    Raises:
        UserError: for a tensor of the ResNet that torchvision's has not, or that is there twice.
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


def audit(state: Mapping[str, Tensor]) -> str:
    """Makes sure that a state dict is one whole ResNet, and sound.

    Args:
        state: torchvision names, without ``fc``.

    Returns:
        Its architecture, ``resnet18`` to ``resnet152`` or ``wide_resnet50_2``, read from names
        and shapes.

    Raises:
        UserError: naming the tensor that is missing, left over, of a wrong shape or type, not
            finite, or a variance below zero; or a stem that Detectron2 has not.
    """
    architecture = _architecture(state)
    if state["conv1.weight"].ndim == 4 and state["conv1.weight"].shape[-1] != 7:
        size = "x".join(map(str, state["conv1.weight"].shape[-2:]))
        raise UserError(
            f"conv1 is {size}: a stem for small images (CIFAR). Detectron2's ResNet has a 7x7 "
            "stem; pretrain with model.stem=imagenet to transfer to detection"
        )
    expected = _shapes(architecture)
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or extra:
        raise UserError(
            f"not a whole {architecture}: {len(missing)} tensors missing"
            f"{' (first: ' + missing[0] + ')' if missing else ''}, {len(extra)} unknown"
            f"{' (first: ' + extra[0] + ')' if extra else ''}"
        )
    for key, tensor in state.items():
        if tensor.shape != expected[key]:
            raise UserError(
                f"{key}: expected shape {tuple(expected[key])} in a {architecture}, found "
                f"{tuple(tensor.shape)}"
            )
        if key.endswith("num_batches_tracked"):
            continue
        if not tensor.is_floating_point():
            raise UserError(f"{key}: expected floating-point numbers, found {tensor.dtype}")
        if not torch.isfinite(tensor).all():
            raise UserError(f"{key} holds NaN or infinite values")
        if key.endswith("running_var") and (tensor < 0).any():
            raise UserError(f"{key} holds a negative variance, {float(tensor.min()):.3g}")
    return architecture


def _architecture(state: Mapping[str, Tensor]) -> str:
    if "conv1.weight" not in state or "layer1.0.conv1.weight" not in state:
        raise UserError(
            "not a ResNet under torchvision's names: 'conv1.weight' or 'layer1.0.conv1.weight' is "
            f"missing (first keys: {', '.join(list(state)[:5]) or 'none'})"
        )
    blocks = tuple(
        len({k.split(".")[1] for k in state if k.startswith(f"layer{s}.")}) for s in range(1, 5)
    )
    bottleneck = any(key.endswith("conv3.weight") for key in state)
    if (blocks, bottleneck) not in _DEPTHS:
        kind = "bottleneck" if bottleneck else "basic"
        raise UserError(
            f"no known ResNet has {blocks} {kind} blocks in its four stages; tensors are missing, "
            "or it is another network"
        )
    name = _DEPTHS[blocks, bottleneck]
    width = state["layer1.0.conv1.weight"].shape[:1]
    return "wide_resnet50_2" if name == "resnet50" and width == (128,) else name


def _shapes(architecture: str) -> dict[str, torch.Size]:
    import torchvision

    with torch.device("meta"):
        network = torchvision.models.get_model(architecture, weights=None)
    return {k: v.shape for k, v in network.state_dict().items() if not k.startswith("fc.")}
