"""A conversion is right if Detectron2's backbone, loaded from the written file, gives the features.

Both networks get the same random RGB images, each normalised by ImageNet's statistics; features
are compared after the stem and after every stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intl_transfer.errors import UserError

TOLERANCE = 1e-4
STAGES = ("stem", "res2", "res3", "res4", "res5")

# What Detectron2 has to be told, for RGB weights trained with ImageNet's statistics.
PIXEL_MEAN = [123.675, 116.28, 103.53]
PIXEL_STD = [58.395, 57.12, 57.375]


def config_values(architecture: str) -> dict[str, Any]:
    """The settings of a Detectron2 configuration that belong to converted weights."""
    depth = 50 if architecture == "wide_resnet50_2" else int(architecture.removeprefix("resnet"))
    values: dict[str, Any] = {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": PIXEL_MEAN,
        "MODEL.PIXEL_STD": PIXEL_STD,
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.BACKBONE.FREEZE_AT": 0,
    }
    if depth < 50:
        values["MODEL.RESNETS.RES2_OUT_CHANNELS"] = 64
    if architecture == "wide_resnet50_2":
        values["MODEL.RESNETS.WIDTH_PER_GROUP"] = 128
    return values


def detectron2_backbone(architecture: str, file: str | Path) -> nn.Module:
    """Detectron2's ResNet with all stages, filled from a file by Detectron2's own checkpointer.

    Raises:
        UserError: if Detectron2 is not installed, leaves a tensor unfilled, or holds another
            than the file.
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
    for key, value in config_values(architecture).items():
        cfg.merge_from_list([key, value])
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = list(STAGES)
    backbone: nn.Module = build_backbone(cfg)
    # A tensor that the checkpointer leaves alone stays NaN and is found below.
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
    """Holds every tensor against the file: a dead channel's would not show in the features."""
    written = torch.load(file, map_location="cpu", weights_only=True)["model"]
    loaded = backbone.state_dict()
    leftover = sorted(written.keys() - loaded.keys())
    if leftover:
        raise UserError(f"{file}: Detectron2 has no place for {len(leftover)}, e.g. {leftover[0]}")
    for key, tensor in written.items():
        if not torch.equal(loaded[key], tensor):
            raise UserError(f"{file}: after loading by Detectron2, {key} is not as in the file")


def parity(
    state: Mapping[str, Tensor], architecture: str, file: str | Path, seed: int = 0
) -> dict[str, float]:
    """Compares torchvision's features with those of Detectron2's backbone from the written file.

    Args:
        state: torchvision names, the source.
        architecture: as :func:`intl_transfer.conversion.detectron2.audit` names it.
        file: the converted file.
        seed: of the random images.

    Returns:
        For the stem and res2 to res5, the largest difference relative to the largest feature.

    Raises:
        UserError: if Detectron2 does not load the whole file.
    """
    import torchvision

    network = torchvision.models.get_model(architecture, weights=None)
    network.fc = nn.Identity()
    network.load_state_dict(dict(state), strict=False)
    network.eval()
    theirs = detectron2_backbone(architecture, file)
    errors = dict.fromkeys(STAGES, 0.0)
    generator = torch.Generator().manual_seed(seed)
    # An odd size as well: paddings and strides differ there first.
    for height, width in ((64, 96), (75, 61)):
        images = torch.randint(0, 256, (2, 3, height, width), generator=generator).float()
        mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
        images = (images - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
        with torch.no_grad():
            ours = _torchvision_features(network, images)
            found = theirs(images)
        for stage in STAGES:
            if ours[stage].shape != found[stage].shape:
                raise UserError(
                    f"{stage}: features of shape {tuple(found[stage].shape)} in Detectron2, "
                    f"{tuple(ours[stage].shape)} in torchvision"
                )
            scale = ours[stage].abs().max().clamp_min(1e-12)
            error = float((ours[stage] - found[stage]).abs().max() / scale)
            errors[stage] = max(errors[stage], error if error == error else float("inf"))
    return errors


def _torchvision_features(network: Any, images: Tensor) -> dict[str, Tensor]:
    x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    features = {"stem": x}
    for index in range(1, 5):
        x = getattr(network, f"layer{index}")(x)
        features[f"res{index + 1}"] = x
    return features
