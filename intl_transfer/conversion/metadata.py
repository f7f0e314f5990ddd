"""Metadata given by the user for a checkpoint that does not contain it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from intl_transfer.conversion.audit import has_small_stem
from intl_transfer.conversion.backbone import Backbone
from intl_transfer.conversion.evidence import given_by_user
from intl_transfer.conversion.settings import PIXELS
from intl_transfer.errors import UserError
from intl_transfer.models import Stem


@dataclass(frozen=True)
class CheckpointMetadata:
    """Metadata given by the user for a checkpoint that does not contain it.

    Attributes:
        method: the pretraining method, for tables.
        name: of the pretraining, instead of a configuration's name.
        epochs: of pretraining.
        dataset: used for pretraining.
        pixels: image preprocessing, a name in :data:`intl_transfer.conversion.settings.PIXELS`.
        label: name that tables use if nothing else distinguishes rows.
        stem: for a network for small images, ``cifar`` or ``cifar_published``.
    """

    method: str | None = None
    name: str | None = None
    epochs: int | None = None
    dataset: str | None = None
    pixels: str | None = None
    label: str | None = None
    stem: Stem | None = None


def with_metadata(backbone: Backbone, metadata: CheckpointMetadata) -> Backbone:
    """Adds the user's metadata to a backbone; facts from a run of this project are kept.

    Raises:
        UserError: if the file states the same fact itself.
    """
    changes: dict[str, Any] = {}
    sources = dict(backbone.sources)
    if metadata.method is not None:
        changes["method"] = metadata.method
        sources["method"] = given_by_user("--method")
    if metadata.label is not None:
        changes["label"] = metadata.label
    if metadata.pixels is not None:
        told = PIXELS[metadata.pixels].known_by(given_by_user(f"--pixels {metadata.pixels}"))
        before = backbone.settings
        if before.strides_source.is_known:  # a name of pixels does not contradict the network
            told = replace(
                told, stride_in_1x1=before.stride_in_1x1, strides_source=before.strides_source
            )
        changes["settings"] = told
    if metadata.stem is not None:
        _check_stem(backbone, metadata.stem)
        changes["stem"] = metadata.stem
        sources["stem"] = given_by_user(f"--stem {metadata.stem}")
    if metadata.name is not None or metadata.epochs is not None or metadata.dataset is not None:
        if backbone.pretrain_run is not None and backbone.pretrain_run.get("id") is not None:
            raise UserError(
                f"{backbone.source_path} already states that it is from run "
                f"'{backbone.pretrain_run.get('name')}'; leave --name, --epochs and "
                "--pretraining-dataset away"
            )
        name = metadata.name or Path(backbone.source_path).stem
        epochs = metadata.epochs if metadata.epochs is not None else backbone.epochs
        changes["pretrain_run"] = {
            "id": None,
            "name": name,
            "config_name": name,
            "epochs": "?" if epochs is None else epochs,
            "dataset": metadata.dataset or "unknown data",
            "seed": None,
        }
        if metadata.epochs is not None:
            sources["epochs"] = given_by_user("--epochs")
        if metadata.dataset is not None:
            sources["dataset"] = given_by_user("--pretraining-dataset")
    return replace(backbone, **changes, sources=sources)


def _check_stem(backbone: Backbone, stem: Stem) -> None:
    """Refuses a stem that contradicts the file."""
    if not has_small_stem(backbone.state):
        raise UserError(
            f"--stem {stem}: the first convolution of {backbone.place} is not 3x3; omit --stem"
        )
    if backbone.sources["stem"].is_known and backbone.stem != stem:
        raise UserError(
            f"--stem {stem}: {backbone.source_path} already states that its stem is "
            f"'{backbone.stem}'; omit --stem"
        )
