"""ResNet backbones under torchvision's parameter names."""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

import torchvision
from torch import nn

from intl_transfer.errors import UserError, did_you_mean

Stem = Literal["imagenet", "cifar", "cifar_published"]
STEMS: tuple[Stem, ...] = get_args(Stem)
# Padding of the 3x3 convolution, in pixels. INTL's authors pad by one before a stem that pads by
# one, which equals padding by two; both stems have weights of the same shapes.
_SMALL_PADDING: dict[Stem, int] = {"cifar": 1, "cifar_published": 2}
BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2")


def starts_at_zero(name: str) -> bool:
    """Whether residual branches start at zero, as the published recipes do, but for ResNet-18.

    Weights that nobody trains much longer than some hundred steps keep such branches nearly
    silent, so a random or a briefly trained start differs with it.
    """
    return name != "resnet18"


def build_backbone(
    name: str, stem: Stem = "imagenet", zero_init_residual: bool | None = None
) -> tuple[nn.Module, int]:
    """Builds a ResNet without its classifier, randomly initialized.

    Args:
        name: ``resnet18``, ``resnet34``, ``resnet50``, ``resnet101``, ``resnet152`` or
            ``wide_resnet50_2``.
        stem: ``"imagenet"`` (7x7 convolution of stride 2 and max-pooling), ``"cifar"`` (3x3 of
            stride 1, no pooling: 32 px give maps of 32, 32, 16, 8, 4) or ``"cifar_published"``
            (INTL's authors': a further pixel of zero padding, maps of 34, 34, 17, 9, 5, and the
            stem's weights initialized by torch's default instead of Kaiming's fan-out).
        zero_init_residual: start each residual branch's last batch norm weight at zero. None:
            by :func:`starts_at_zero`.

    Returns:
        The network, images (B, 3, H, W) to pooled features (B, width), and ``width``.

    Raises:
        UserError: for an unknown name or stem.
    """
    if name not in BACKBONES:
        raise UserError(
            f"no backbone '{name}'; known: {', '.join(BACKBONES)}.{did_you_mean(name, BACKBONES)}"
        )
    if stem not in STEMS:
        raise UserError(
            f"no stem '{stem}'; expected {', '.join(STEMS)}.{did_you_mean(stem, STEMS)}"
        )
    if zero_init_residual is None:
        zero_init_residual = starts_at_zero(name)
    network: Any = torchvision.models.get_model(
        name, weights=None, zero_init_residual=zero_init_residual
    )
    width = int(network.fc.in_features)
    network.fc = nn.Identity()
    if stem in _SMALL_PADDING:
        network.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=_SMALL_PADDING[stem], bias=False)
        if stem == "cifar":
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return cast(nn.Module, network), width
