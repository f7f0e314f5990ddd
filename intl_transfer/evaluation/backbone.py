"""The backbone that is evaluated: any checkpoint, a pretraining run, or random weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from intl_transfer.conversion.audit import audit
from intl_transfer.conversion.evidence import configured
from intl_transfer.conversion.formats import Backbone, read_backbone
from intl_transfer.conversion.pipeline import (
    CheckpointMetadata,
    initialization,
    provenance_of,
    with_metadata,
)
from intl_transfer.conversion.settings import IMAGENET, Settings, from_statistics
from intl_transfer.conversion.verify import torchvision_network
from intl_transfer.data.statistics import STATISTICS, Statistics
from intl_transfer.data.views import normalize
from intl_transfer.errors import UserError
from intl_transfer.evaluation.config import ModelConfig
from intl_transfer.models import build_backbone
from intl_transfer.runs.records import Initialization

#: What ``--weights`` says for a backbone that has learned nothing.
RANDOM = "random"


@dataclass(frozen=True)
class EvaluatedBackbone:
    """A backbone, how it takes its images, and where it comes from.

    Attributes:
        network: images (B, 3, H, W) to features (B, width).
        width: of the features.
        architecture: ``resnet18`` to ``resnet152``, ``wide_resnet50_2``.
        stem: ``imagenet``, ``cifar`` or ``cifar_published``.
        settings: how it was trained to see images.
        initialization: for the results.
        inputs: the file that was read, for the manifest.
        stem_source: where the stem is known from; None where it is assumed.
    """

    network: nn.Module
    width: int
    architecture: str
    stem: str = "imagenet"
    settings: Settings = IMAGENET
    initialization: Initialization = field(default_factory=initialization)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    stem_source: str | None = "the configuration"

    def images(self, pixels: Tensor, device: torch.device) -> Tensor:
        """A uint8 RGB batch (B, H, W, 3) as the network takes it, float32 (B, 3, H, W)."""
        if self.settings.channels == "BGR":
            pixels = pixels.flip(-1)
        mean, std = (
            [value / 255 for value in values]
            for values in (self.settings.pixel_mean, self.settings.pixel_std)
        )
        return normalize(pixels, device, mean, std)

    def assumptions(self) -> list[str]:
        """What is not known of the backbone and was assumed, for the user to read."""
        found = []
        if self.settings.source is None:
            mean, std = (
                [round(value / 255, 4) for value in values]
                for values in (self.settings.pixel_mean, self.settings.pixel_std)
            )
            found.append(
                f"images normalized by mean {mean} and standard deviation {std} (--pixels says it)"
            )
        if self.stem_source is None:
            found.append(f"a 3x3 stem padded as '{self.stem}' (--stem says it)")
        return found


def load_evaluated_backbone(
    weights: str,
    model: ModelConfig,
    branch: str | None = None,
    told: CheckpointMetadata | None = None,
    statistics: Statistics | None = None,
) -> EvaluatedBackbone:
    """Reads a backbone and makes sure that it is a whole, trained ResNet.

    Args:
        weights: a pretraining run's directory, a checkpoint of any known format, a converted file,
            or ``random``.
        model: what ``random`` makes.
        branch: ``online`` or ``target`` where a file holds both.
        told: what the file does not say.
        statistics: of the data set, by which images are normalized for random weights, and for a
            network for small images that does not say by which it was trained.

    Raises:
        UserError: if it is none of these.
    """
    own = from_statistics(statistics or STATISTICS["imagenet"])
    if weights == RANDOM:
        network, width = build_backbone(model.backbone, cast(Any, model.stem))
        known = own.known_by(configured("the data set"))
        return EvaluatedBackbone(network, width, model.backbone, model.stem, settings=known)
    if not Path(weights).exists():
        raise UserError(
            f"--weights {weights}: no such run or file; expected a pretraining run, a checkpoint, "
            f"or '{RANDOM}'"
        )
    backbone = with_metadata(read_backbone(weights, branch), told or CheckpointMetadata())
    try:
        architecture = audit(backbone.state, small_stem=True)
    except UserError as error:
        raise UserError(f"{backbone.place}: {error}") from None
    if backbone.stem != "imagenet":
        network, _ = build_backbone(architecture, backbone.stem)
        network.load_state_dict(backbone.state, strict=False)  # counters may be missing
        if backbone.settings.source is None:  # assumed: a network of this data's kind
            backbone = replace(backbone, settings=own)
    else:
        network = torchvision_network(backbone.state, architecture, backbone.settings)
    provenance = _provenance(backbone, architecture)
    pixels = backbone.settings.described()
    start = initialization(backbone.source_sha256, provenance)
    start.pixels = pixels
    return EvaluatedBackbone(
        network,
        width=512 if architecture in ("resnet18", "resnet34") else 2048,
        architecture=architecture,
        stem=backbone.stem,
        stem_source=backbone.stem_source,
        settings=backbone.settings,
        initialization=start,
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


def _provenance(backbone: Backbone, architecture: str) -> dict[str, Any]:
    """Where a backbone comes from; a converted file leads back to what it was made from."""
    found = provenance_of(backbone, architecture)
    if backbone.provenance is None:
        return found
    # What is known now, by the user or for want of better, is of now.
    now = ("method", "pretrain_run", "stem", "stem_source", "pixels", "evidence")
    return {**found, **backbone.provenance, **{key: found[key] for key in now}}
