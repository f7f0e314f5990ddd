"""Checks that a state dict is one complete, trained ResNet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

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
_VARIED = 1e-6  # a variance above what underflow in half precision leaves
_COUNTER = "num_batches_tracked"
_SMALL_STEM = torch.Size((64, 3, 3, 3))


def audit(state: Mapping[str, Tensor], small_stem: bool = False) -> str:
    """Checks that a state dict is one complete, valid ResNet.

    Args:
        state: torchvision names, without ``fc``.
        small_stem: also accept a 3x3 stem, for small images, which Detectron2 does not have.

    Returns:
        Its architecture, ``resnet18`` to ``resnet152`` or ``wide_resnet50_2``, read from names
        and shapes.

    Raises:
        UserError: naming a tensor that is missing, unexpected, of a wrong shape or type, not
            finite, or a variance that is not positive; for a type of ResNet that Detectron2 does
            not have; or for batch norms in their initial state.
    """
    check_whole(state)
    small = small_stem and has_small_stem(state)
    if not small:
        _check_stem(state)
    architecture = _architecture(state)
    expected = dict(_shapes(architecture))
    if small:
        expected["conv1.weight"] = _SMALL_STEM
    for key, tensor in state.items():
        if tensor.shape != expected[key]:
            raise UserError(
                f"{key}: expected shape {tuple(expected[key])} in a {architecture}, found "
                f"{tuple(tensor.shape)}{_order(tensor, expected[key])}"
            )
    check_numbers(state)
    for key, tensor in state.items():
        if not key.endswith(_COUNTER):
            _check_values(key, tensor)
    _check_trained(state)
    _check_statistics(state)
    return architecture


def blank_filters(state: Mapping[str, Tensor]) -> str | None:
    """What is odd about filters of zeros whose batch norm saw them vary, in words; None for none.

    A filter that died in training has a variance of 0, too. Files without checksums can be
    damaged so.

    Args:
        state: torchvision names, audited.
    """
    found: dict[str, int] = {}
    for key, tensor in state.items():
        if tensor.ndim != 4:
            continue
        name = key.removesuffix(".weight")
        head, _, last = name.rpartition(".")
        norm = "bn1" if name == "conv1" else f"{head}.{last.replace('conv', 'bn')}"
        norm = f"{head}.1" if head.endswith("downsample") else norm
        blank = ~tensor.flatten(1).any(1) & (state[f"{norm}.running_var"] > _VARIED)
        if count := int(blank.sum()):
            found[name] = count
    if not found:
        return None
    first, count = next(iter(found.items()))
    more = f", and others of {len(found) - 1} more layers" if len(found) > 1 else ""
    return (
        f"{count} filters of {first} are all zero{more}, though their batch norms saw them vary: "
        "pruned, or lost in a damaged copy. Compare the file with its source"
    )


def has_small_stem(state: Mapping[str, Tensor]) -> bool:
    """Whether a ResNet has a 3x3 stem, as networks for CIFAR do."""
    return state["conv1.weight"].shape == _SMALL_STEM


def check_whole(state: Mapping[str, Tensor]) -> str:
    """The part of the audit that needs only names: none missing, none unexpected.

    Accepts backbones for small images, which Detectron2 cannot use.

    Returns:
        The architecture.

    Raises:
        UserError: naming the first tensor that is missing or unknown, or has no numbers.
    """
    empty = next((key for key, tensor in state.items() if tensor.numel() == 0), None)
    if empty is not None:
        raise UserError(
            f"'{empty}' has no numbers, its shape is {tuple(state[empty].shape)}: DeepSpeed's ZeRO "
            "leaves the parts of each rank elsewhere. Gather them with its zero_to_fp32.py"
        )
    _check_kind(state)
    architecture = _architecture(state)
    _check_names(state, _shapes(architecture), architecture)
    return architecture


def check_numbers(state: Mapping[str, Tensor]) -> None:
    """The part of the audit that any use of a backbone needs: numbers that can be computed with.

    Args:
        state: torchvision names.

    Raises:
        UserError: naming the first tensor that is not finite, or the first negative variance.
    """
    for key, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{key} contains NaN or infinite values")
        if key.endswith("running_var") and (tensor < 0).any():
            raise UserError(f"{key} contains a negative variance, {float(tensor.min()):.3g}")


def _check_kind(state: Mapping[str, Tensor]) -> None:
    """Refuses other types of ResNet, with their name."""
    if any(re.match(r"(?:conv1|stem)\.\d+\.", key) for key in state):
        raise UserError(
            "a ResNet-D or another ResNet with a deep stem (its first layer is several "
            "convolutions, such as 'conv1.0.weight'); Detectron2's ResNet has one of 7x7"
        )
    gates = [key for key in state if re.match(r"layer\d\.\d+\.(?:se|eca|attn|cbam)\b", key)]
    if gates:
        raise UserError(
            f"a ResNet with attention inside its blocks (such as '{gates[0]}', as in SE- and "
            "ECA-ResNets), which Detectron2's ResNet does not have"
        )
    norms = [key for key in state if re.search(r"bn\d\.weight$", key)]
    if norms and not any(key.endswith("running_mean") for key in state):
        raise UserError(
            "no statistics of batch norms in it (no 'running_mean' at all): group norm or another "
            "norm was trained, or they are not in the file. Expected a ResNet with batch norm"
        )


def _check_stem(state: Mapping[str, Tensor]) -> None:
    first, inner = state["conv1.weight"], state["layer1.0.conv2.weight"]
    if first.ndim != 4 or inner.ndim != 4:
        return  # the shapes are compared later
    if inner.shape[1] * 4 <= inner.shape[0]:
        raise UserError(
            f"a ResNeXt: its convolutions are grouped (layer1.0.conv2.weight is "
            f"{tuple(inner.shape)}). Known: ResNet-18, 34, 50, 101, 152 and wide ResNet-50-2"
        )
    if first.shape[-1] != 7:
        size = "x".join(map(str, first.shape[-2:]))
        raise UserError(
            f"conv1 is {size}: a stem for small images (CIFAR). Detectron2's ResNet has a 7x7 "
            "stem; pretrain with model.stem=imagenet to transfer to detection. `intl-transfer "
            "evaluate` accepts the file, and .safetensors can store it"
        )
    if first.shape[0] in (128, 192, 256, 320):
        raise UserError(
            f"conv1 has {first.shape[0]} filters: a ResNet of {first.shape[0] // 64} times the "
            "width (as the 2x and 4x models of SimCLR, BYOL and SwAV). Expected 64; of wider ones "
            "only wide ResNet-50-2 is known, whose stem has 64"
        )
    if first.shape[1] != 3:
        raise UserError(f"conv1 takes {first.shape[1]} channels; expected 3, an RGB image")


def _architecture(state: Mapping[str, Tensor]) -> str:
    blocks = tuple(
        len({k.split(".")[1] for k in state if k.startswith(f"layer{s}.")}) for s in range(1, 5)
    )
    if not any(blocks):
        raise UserError(
            "not a ResNet under torchvision's names: nothing begins with 'layer1.' to 'layer4.' "
            f"(first keys: {', '.join(list(state)[:5]) or 'none'})"
        )
    bottleneck = any(re.match(r"layer\d\.\d+\.conv3\.weight", key) for key in state)
    if (blocks, bottleneck) not in _DEPTHS:
        kind = "bottleneck" if bottleneck else "basic"
        raise UserError(
            f"no known ResNet has {blocks} {kind} blocks in its four stages; tensors are missing, "
            "or it is another network. Known: ResNet-18, 34, 50, 101, 152 and wide ResNet-50-2"
        )
    name = _DEPTHS[blocks, bottleneck]
    inner = state.get("layer1.0.conv1.weight")
    wide = name == "resnet50" and inner is not None and inner.shape[:1] == (128,)
    return "wide_resnet50_2" if wide else name


@lru_cache
def _shapes(architecture: str) -> dict[str, torch.Size]:
    import torchvision

    with torch.device("meta"):
        network = torchvision.models.get_model(architecture, weights=None)
    return {k: v.shape for k, v in network.state_dict().items() if not k.startswith("fc.")}


def _check_names(
    state: Mapping[str, Tensor], expected: Mapping[str, torch.Size], architecture: str
) -> None:
    missing = [key for key in sorted(expected.keys() - state.keys()) if not key.endswith(_COUNTER)]
    extra = sorted(state.keys() - expected.keys())
    if missing or extra:
        raise UserError(
            f"not a complete {architecture}: {len(missing)} tensors missing"
            f"{' (first: ' + missing[0] + ')' if missing else ''}, {len(extra)} unknown"
            f"{' (first: ' + extra[0] + ')' if extra else ''}"
        )


def _order(tensor: Tensor, expected: torch.Size) -> str:
    if tensor.ndim == len(expected) and sorted(tensor.shape) == sorted(expected):
        return ": transposed, its axes are in another order"
    return ""


def _check_values(key: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise UserError(f"{key}: expected floating-point numbers, found {tensor.dtype}")
    if (tensor.ndim == 4 or key.endswith("running_var")) and not tensor.any():
        raise UserError(f"{key} is zero throughout: it was never trained, or never loaded")


def _check_statistics(state: Mapping[str, Tensor]) -> None:
    """Statistics of single layers in their initial state, while others were updated."""
    untouched = [
        key.removesuffix("running_mean")
        for key, mean in state.items()
        if key.endswith("running_mean") and not mean.any()
    ]
    never = [norm for norm in untouched if (state[f"{norm}running_var"] == 1).all()]
    if never:
        raise UserError(
            f"the statistics of {never[0].rstrip('.')} are in their initial state (mean 0, "
            "variance 1)"
            f"{f', and of {len(never) - 1} more layers' if len(never) > 1 else ''}: they were "
            "never updated, or were lost, so features would be wrong"
        )


def _check_trained(state: Mapping[str, Tensor]) -> None:
    """Batch norms in their initial state: an untrained network, or statistics never updated."""
    weights = [v for k, v in state.items() if re.search(r"(?:bn\d|downsample\.1)\.weight$", k)]
    biases = [v for k, v in state.items() if k.endswith("bias")]
    means = [v for k, v in state.items() if k.endswith("running_mean")]
    variances = [v for k, v in state.items() if k.endswith("running_var")]
    if any(mean.any() for mean in means) or not all((v == 1).all() for v in variances):
        return
    # The last norm of a block may be initialized with zeros.
    untouched = all(bool((w == 1).all() or not w.any()) for w in weights)
    if untouched and all(not bias.any() for bias in biases):
        raise UserError(
            "all its batch norms are in their initial state (weight 1, bias 0, mean 0, variance "
            "1): this network was never trained. Random initialization needs no file: train_net.py "
            "--weights random"
        )
    raise UserError(
        "its batch norms were trained, but all their statistics are in their initial state (mean "
        "0, variance 1): they were never updated, so features would be wrong"
    )
