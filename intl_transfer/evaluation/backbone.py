"""The backbone under evaluation: a checkpoint, a pretraining run, or random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from intl_transfer.conversion.audit import audit
from intl_transfer.conversion.evidence import configured
from intl_transfer.conversion.formats import read_backbone
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
from intl_transfer.models import build_backbone, starts_at_zero
from intl_transfer.runs.config import given_keys
from intl_transfer.runs.records import Initialization

#: Value of ``--weights`` for random initialization.
RANDOM = "random"


@dataclass(frozen=True)
class EvaluatedBackbone:
    """A backbone, its image preprocessing, and its origin.

    Attributes:
        network: images (B, 3, H, W) to features (B, width).
        width: of the features.
        architecture: ``resnet18`` to ``resnet152``, ``wide_resnet50_2``.
        stem: ``imagenet``, ``cifar`` or ``cifar_published``.
        settings: image preprocessing.
        initialization: for the results.
        inputs: the file that was read, for the manifest.
        stem_source: evidence for the stem; None if it is assumed.
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
        """Preprocesses a uint8 RGB batch (B, H, W, 3) to float32 (B, 3, H, W)."""
        if self.settings.channels == "BGR":
            pixels = pixels.flip(-1)
        mean, std = (
            [value / 255 for value in values]
            for values in (self.settings.pixel_mean, self.settings.pixel_std)
        )
        return normalize(pixels, device, mean, std)

    def unused(self, statistics: Statistics | None) -> str:
        """What is said of a data set's statistics where the weights state others; "" elsewhere.

        Args:
            statistics: as configured; None if they are not.
        """
        mine = self.settings.described()
        if statistics is None or from_statistics(statistics).described() == mine:
            return ""
        return (
            "data.normalize is not used (it is for random weights, and networks for small images "
            f"that state no statistics): images are normalized by {self._statistics()}"
        )

    def _statistics(self) -> str:
        mean, std = (
            [round(value / 255, 4) for value in values]
            for values in (self.settings.pixel_mean, self.settings.pixel_std)
        )
        return f"mean {mean} and standard deviation {std}"

    def assumptions(self) -> list[str]:
        """Assumptions about the backbone, for the user."""
        found = []
        if self.settings.source is None:
            found.append(f"images normalized by {self._statistics()} (set them with --pixels)")
        if self.stem_source is None:
            found.append(f"a 3x3 stem padded as '{self.stem}' (set it with --stem)")
        return found


def load_evaluated_backbone(
    weights: str,
    model: ModelConfig,
    branch: str | None = None,
    given: CheckpointMetadata | None = None,
    statistics: Statistics | None = None,
) -> EvaluatedBackbone:
    """Reads a backbone and checks that it is a complete, trained ResNet.

    Args:
        weights: a pretraining run's directory, a checkpoint of any known format, a converted file,
            or ``random``.
        model: architecture for ``random``.
        branch: ``online`` or ``target`` if a file contains both.
        given: metadata given by the user.
        statistics: of the data set, for normalizing images for random weights, and for networks for
            small images that do not state theirs.

    Raises:
        UserError: if it is invalid.
    """
    own = from_statistics(statistics or STATISTICS["imagenet"])
    if weights == RANDOM:
        network, width = build_backbone(
            model.backbone, cast(Any, model.stem), model.zero_init_residual
        )
        known = own.known_by(configured("the data set"))
        return EvaluatedBackbone(network, width, model.backbone, model.stem, settings=known)
    if not Path(weights).exists():
        raise UserError(
            f"--weights {weights}: no such run or file; expected a pretraining run, a checkpoint, "
            f"or '{RANDOM}'"
        )
    backbone = with_metadata(read_backbone(weights, branch), given or CheckpointMetadata())
    try:
        architecture = audit(backbone.state, small_stem=True)
    except UserError as error:
        raise UserError(f"{backbone.place}: {error}") from None
    if backbone.stem != "imagenet":
        network, _ = build_backbone(architecture, backbone.stem)
        network.load_state_dict(backbone.state, strict=False)  # counters may be missing
        if backbone.settings.source is None:  # assumed: a network trained on this data
            backbone = replace(backbone, settings=own)
    else:
        network = torchvision_network(backbone.state, architecture, backbone.settings)
    provenance = provenance_of(backbone, architecture)
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


def check_model(subject: EvaluatedBackbone, model: ModelConfig, overrides: Sequence[str]) -> None:
    """Refuses an architecture on the command line that is not the weights'.

    Args:
        subject: the backbone.
        model: as configured.
        overrides: ``key=value``, as given. Those of files are ignored: they are for random weights.

    Raises:
        UserError: naming the first such setting.
    """
    given = given_keys(overrides)
    own = {"backbone": subject.architecture, "stem": subject.stem}
    for name, value in own.items():
        key = f"model.{name}"
        if key in given and getattr(model, name) != value:
            raise UserError(
                f"'{given[key]}' has no effect: {key} is of random weights, and the weights have "
                f"{value}. Leave it away"
            )


def recorded_model(subject: EvaluatedBackbone, model: ModelConfig) -> ModelConfig:
    """What a run records of its backbone: what was evaluated, also for weights from a file.

    Args:
        subject: the backbone.
        model: as configured.
    """
    # Trained weights do not tell how they began: as runs of before this setting imply.
    zero: bool | None = True
    if subject.initialization.kind == "random":
        zero = model.zero_init_residual
        if zero is None:
            zero = starts_at_zero(subject.architecture)
    return ModelConfig(subject.architecture, subject.stem, zero)
