"""Verifies that Detectron2's backbone, loaded from the written file, computes the same features.

Both networks get the same random RGB images, with the weights' channel order and normalization;
features are compared after the stem and after every stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intl_transfer.conversion.reading import read_content
from intl_transfer.conversion.settings import IMAGENET, Settings, config_values
from intl_transfer.errors import UserError

TOLERANCE = 1e-5
STAGES = ("stem", "res2", "res3", "res4", "res5")


def detectron2_backbone(
    architecture: str, file: str | Path, settings: Settings = IMAGENET
) -> nn.Module:
    """Detectron2's ResNet with all stages, filled from a file by Detectron2's own checkpointer.

    Args:
        architecture: from :func:`intl_transfer.conversion.audit`.
        file: the converted file.
        settings: image preprocessing.

    Raises:
        UserError: if Detectron2 is not installed, does not load a tensor, or changes one.
    """
    from intl_transfer import detectron2_compat

    detectron2_compat.install()
    try:
        from detectron2.checkpoint import DetectionCheckpointer
        from detectron2.config import get_cfg
        from detectron2.modeling import build_backbone
    except ImportError as error:
        raise UserError(f"Detectron2 cannot be imported ({error}); run `make setup`") from None
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    for key, value in config_values(architecture, settings).items():
        cfg.merge_from_list([key, value])
    cfg.MODEL.BACKBONE.FREEZE_AT = 0  # frozen norms have other classes
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = list(STAGES)
    backbone: nn.Module = build_backbone(cfg)
    # Tensors that the checkpointer does not load stay NaN and are detected below.
    with torch.no_grad():
        for tensor in backbone.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
    DetectionCheckpointer(backbone).load(str(file))
    unfilled = [k for k, v in backbone.state_dict().items() if not torch.isfinite(v).all()]
    if unfilled:
        raise UserError(
            f"Detectron2 left {len(unfilled)} of the backbone's tensors unfilled from {file}, the "
            f"first: {unfilled[0]}"
        )
    _check_loaded(backbone, Path(file))
    return backbone.eval()


def _check_loaded(backbone: nn.Module, file: Path) -> None:
    """Compares every tensor with the file: a dead channel would not affect the features."""
    content = read_content(Path(file))
    written = {k[6:]: v for k, v in content.tensors.items() if k.startswith("model/")}
    loaded = backbone.state_dict()
    leftover = sorted(written.keys() - loaded.keys())
    if leftover:
        raise UserError(f"{file}: Detectron2 has no place for {len(leftover)}, e.g. {leftover[0]}")
    for key, tensor in written.items():
        if not torch.equal(loaded[key], tensor):
            raise UserError(f"{file}: after loading by Detectron2, {key} differs from the file")


def parity(
    state: Mapping[str, Tensor],
    architecture: str,
    file: str | Path,
    seed: int = 0,
    settings: Settings = IMAGENET,
) -> dict[str, float]:
    """Compares torchvision's features with those of Detectron2's backbone from the written file.

    Args:
        state: torchvision names, the source.
        architecture: from :func:`intl_transfer.conversion.audit`.
        file: the converted file.
        seed: of the random images.
        settings: image preprocessing.

    Returns:
        For the stem and res2 to res5, the largest difference relative to the largest feature.

    Raises:
        UserError: if Detectron2 does not load the file completely.
    """
    network = torchvision_network(state, architecture, settings)
    theirs = detectron2_backbone(architecture, file, settings)
    errors = dict.fromkeys(STAGES, 0.0)
    generator = torch.Generator().manual_seed(seed)
    # Also an odd size, where differences in padding and stride show first.
    for height, width in ((64, 96), (75, 61)):
        images = torch.randint(0, 256, (2, 3, height, width), generator=generator).float()
        images = normalized(images, settings)
        with torch.no_grad():
            ours = torchvision_features(network, images)
            found = theirs(images)
        for stage in STAGES:
            if ours[stage].shape != found[stage].shape:
                raise UserError(
                    f"{stage}: features of shape {tuple(found[stage].shape)} in Detectron2, "
                    f"{tuple(ours[stage].shape)} in torchvision"
                )
            errors[stage] = max(errors[stage], relative_error(ours[stage], found[stage]))
    return errors


def relative_error(expected: Tensor, found: Tensor) -> float:
    """The largest difference, relative to the largest expected value; infinite for NaN."""
    error = float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-12))
    return error if error == error else float("inf")


def normalized(images: Tensor, settings: Settings) -> Tensor:
    """Preprocesses RGB images of 0 to 255, (N, 3, H, W), for the network."""
    if settings.channels == "BGR":
        images = images.flip(1)
    mean, std = torch.tensor(settings.pixel_mean), torch.tensor(settings.pixel_std)
    return (images - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


def torchvision_network(
    state: Mapping[str, Tensor], architecture: str, settings: Settings = IMAGENET
) -> Any:
    """Torchvision's ResNet with these weights, without classifier, in evaluation mode."""
    import torchvision

    network: Any = torchvision.models.get_model(architecture, weights=None)
    network.fc = nn.Identity()
    network.load_state_dict(dict(state), strict=False)
    if settings.stride_in_1x1:
        stride_in_1x1(network)
    return network.eval()


def stride_in_1x1(network: Any) -> None:
    """Moves the strides of bottlenecks to their first 1x1 convolutions, as Caffe's have them.

    Args:
        network: torchvision's ResNet.
    """
    for layer in (network.layer2, network.layer3, network.layer4):
        if hasattr(layer[0], "conv3"):
            layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)


def torchvision_features(network: Any, images: Tensor) -> dict[str, Tensor]:
    """Features after the stem and after each stage, by Detectron2's names."""
    x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    features = {"stem": x}
    for index in range(1, 5):
        x = getattr(network, f"layer{index}")(x)
        features[f"res{index + 1}"] = x
    return features
