"""Metadata given by the user for a checkpoint that does not contain it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from intl_transfer.conversion.audit import has_small_stem
from intl_transfer.conversion.backbone import Backbone
from intl_transfer.conversion.evidence import given_by_user
from intl_transfer.conversion.settings import PIXELS, Settings
from intl_transfer.errors import UserError
from intl_transfer.files.names import without_endings
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
    """Adds the user's metadata to a backbone; what its file states itself is kept.

    Raises:
        UserError: if the file states another value of the same fact, or is from a run of this
            project, which states all of them; or if a value is none (no epoch, an empty name).
    """
    _check_given(metadata)
    changes: dict[str, Any] = {}
    sources = dict(backbone.sources)
    if metadata.method is not None:
        _check_fact(backbone, "method", "--method", metadata.method, backbone.method)
        if not _is_known(backbone, "method"):
            changes["method"] = metadata.method
            sources["method"] = given_by_user("--method")
    if metadata.label is not None:
        changes["label"] = metadata.label
    if metadata.pixels is not None:
        changes["settings"] = _with_pixels(backbone, metadata.pixels)
    if metadata.stem is not None:
        _check_stem(backbone, metadata.stem)
        if not _is_known(backbone, "stem"):
            changes["stem"] = metadata.stem
            sources["stem"] = given_by_user(f"--stem {metadata.stem}")
    if metadata.name is not None or metadata.epochs is not None or metadata.dataset is not None:
        run = backbone.pretrain_run
        if run is not None and run.get("id") is not None:
            named = f" '{run['name']}'" if run.get("name") is not None else f" {run['id']}"
            raise UserError(
                f"{backbone.source_path} already states that it is from run{named}; leave --name, "
                "--epochs and --pretraining-dataset away"
            )
        stated = run or {}  # by an earlier conversion
        name = metadata.name or stated.get("name") or without_endings(backbone.source_path)
        if metadata.epochs is not None:
            _check_fact(backbone, "epochs", "--epochs", metadata.epochs, backbone.epochs)
            if not _is_known(backbone, "epochs"):
                sources["epochs"] = given_by_user("--epochs")
        epochs = metadata.epochs if metadata.epochs is not None else backbone.epochs
        changes["pretrain_run"] = {
            "id": None,
            "name": name,
            "config_name": name,
            "epochs": "?" if epochs is None else epochs,
            "dataset": metadata.dataset or stated.get("dataset") or "unknown data",
            "seed": stated.get("seed"),
        }
        if metadata.dataset is not None:
            sources["dataset"] = given_by_user("--pretraining-dataset")
    return replace(backbone, **changes, sources=sources)


def _check_given(metadata: CheckpointMetadata) -> None:
    """Refuses values that say nothing."""
    if metadata.epochs is not None and metadata.epochs < 1:
        raise UserError(
            f"--epochs {metadata.epochs}: expected the number of pretraining epochs, 1 or more"
        )
    options = {"method": "--method", "name": "--name", "label": "--label"}
    for key, option in {**options, "dataset": "--pretraining-dataset"}.items():
        value = getattr(metadata, key)
        if value is not None and not value.strip():
            raise UserError(f"{option} '{value}': expected a name; omit {option} if there is none")


def _is_known(backbone: Backbone, fact: str) -> bool:
    """Whether the file or its configuration states a fact."""
    source = backbone.evidence().get(fact)
    return source is not None and source.is_known


def _check_fact(backbone: Backbone, fact: str, option: str, told: Any, stated: Any) -> None:
    """Refuses an option that contradicts what is known from the file."""
    if _is_known(backbone, fact) and told != stated:
        value = f" '{told}'" if isinstance(told, str) else f" {told}"
        raise UserError(
            f"{option}{value}: {backbone.source_path} already states {stated}, "
            f"{backbone.evidence()[fact]}; omit {option}"
        )


def _with_pixels(backbone: Backbone, pixels: str) -> Settings:
    """The settings of a name in :data:`PIXELS`, where the file does not state its own."""
    option = f"--pixels {pixels}"
    told, before = PIXELS[pixels].known_by(given_by_user(option)), backbone.settings
    has_known = {fact: source.is_known for fact, source in before.sources().items()}
    contradicting = [
        *(["pixels"] if has_known["pixels"] and not _have_equal_pixels(told, before) else []),
        *(["channels"] if has_known["channels"] and told.channels != before.channels else []),
    ]
    if contradicting:
        raise UserError(
            f"{option}: {backbone.source_path} already states {before.channels}, mean "
            f"{list(before.pixel_mean)}, deviation {list(before.pixel_std)}, "
            f"{before.sources()[contradicting[0]]}; omit --pixels"
        )
    if has_known["pixels"]:
        told = replace(
            told,
            pixel_mean=before.pixel_mean,
            pixel_std=before.pixel_std,
            pixels_source=before.pixels_source,
        )
    if has_known["channels"]:
        told = replace(told, channels_source=before.channels_source)
    if has_known["strides"]:  # a name of pixels does not contradict the network
        told = replace(
            told, stride_in_1x1=before.stride_in_1x1, strides_source=before.strides_source
        )
    return told


def _have_equal_pixels(one: Settings, other: Settings) -> bool:
    """Whether mean and deviation are the same up to rounding, as files and papers write them."""
    pairs = zip(
        (*one.pixel_mean, *one.pixel_std), (*other.pixel_mean, *other.pixel_std), strict=True
    )
    return all(math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6) for a, b in pairs)


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
