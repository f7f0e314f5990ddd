"""The backbone that is evaluated: any checkpoint, a pretraining run, or random weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from intl_transfer.conversion.audit import audit, has_small_stem
from intl_transfer.conversion.formats import read_backbone
from intl_transfer.conversion.pipeline import Told, initialisation, provenance_of, with_told
from intl_transfer.conversion.settings import IMAGENET, Settings
from intl_transfer.conversion.verify import torchvision_network
from intl_transfer.data.views import normalise
from intl_transfer.errors import UserError
from intl_transfer.evaluation.config import ModelConfig
from intl_transfer.models import build_backbone
from intl_transfer.runs.records import Initialisation

#: What ``--weights`` says for a backbone that has learned nothing.
RANDOM = "random"


@dataclass(frozen=True)
class Subject:
    """A backbone, how it takes its images, and where it comes from.

    Attributes:
        network: images (B, 3, H, W) to features (B, width).
        width: of the features.
        architecture: ``resnet18`` to ``resnet152``, ``wide_resnet50_2``.
        stem: ``imagenet`` or ``cifar``.
        settings: how it was trained to see images.
        initialisation: for the results.
        inputs: the file that was read, for the manifest.
    """

    network: nn.Module
    width: int
    architecture: str
    stem: str = "imagenet"
    settings: Settings = IMAGENET
    initialisation: Initialisation = field(default_factory=initialisation)
    inputs: list[dict[str, Any]] = field(default_factory=list)

    def images(self, pixels: Tensor, device: torch.device) -> Tensor:
        """A uint8 RGB batch (B, H, W, 3) as the network takes it, float32 (B, 3, H, W)."""
        if self.settings.channels == "BGR":
            pixels = pixels.flip(-1)
        mean, std = (
            [value / 255 for value in values]
            for values in (self.settings.pixel_mean, self.settings.pixel_std)
        )
        return normalise(pixels, device, mean, std)


def load_subject(
    weights: str, model: ModelConfig, branch: str | None = None, told: Told | None = None
) -> Subject:
    """Reads a backbone and makes sure that it is a whole, trained ResNet.

    Args:
        weights: a pretraining run's directory, a checkpoint of any known format, a converted file,
            or ``random``.
        model: what ``random`` makes.
        branch: ``online`` or ``target`` where a file holds both.
        told: what the file does not say.

    Raises:
        UserError: if it is none of these.
    """
    if weights == RANDOM:
        network, width = build_backbone(model.backbone, cast(Any, model.stem))
        return Subject(network, width, model.backbone, model.stem)
    if not Path(weights).exists():
        raise UserError(
            f"--weights {weights}: no such run or file; expected a pretraining run, a checkpoint, "
            f"or '{RANDOM}'"
        )
    backbone = with_told(read_backbone(weights, branch), told or Told())
    try:
        architecture = audit(backbone.state, small_stem=True)
    except UserError as error:
        raise UserError(f"{backbone.place}: {error}") from None
    is_small = has_small_stem(backbone.state)
    if is_small:
        network, _ = build_backbone(architecture, "cifar")
        network.load_state_dict(backbone.state, strict=False)  # counters may be missing
    else:
        network = torchvision_network(backbone.state, architecture, backbone.settings)
    provenance = provenance_of(backbone, architecture)
    if backbone.provenance is not None:  # a converted file leads back to what it was made from
        said = {key: provenance[key] for key in ("method", "pretrain_run")}
        provenance = {**backbone.provenance, **said}
    pixels = backbone.settings.described()
    start = initialisation(backbone.source_sha256, provenance)
    start.pixels = pixels
    return Subject(
        network,
        width=512 if architecture in ("resnet18", "resnet34") else 2048,
        architecture=architecture,
        stem="cifar" if is_small else "imagenet",
        settings=backbone.settings,
        initialisation=start,
        inputs=[
            {
                "role": "weights",
                "path": backbone.source_path,
                "sha256": backbone.source_sha256,
                "provenance": provenance,
                "pixels": pixels,
            }
        ],
    )
