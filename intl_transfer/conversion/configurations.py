"""What the configurations in a file and beside it say of its network.

The names of tensors say where the network is, and configurations how it takes its images and what
it computes. All that are present are asked, whatever the names are.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from intl_transfer.conversion.adapters.base import places_in
from intl_transfer.conversion.adapters.mm_config import (
    configuration,
    dictionaries,
    settings_in,
)
from intl_transfer.conversion.arguments import DETECTRON2, OPENMMLAB, refuse_arguments
from intl_transfer.conversion.evidence import ASSUMED, configured, inferred
from intl_transfer.conversion.hub_configurations import (
    arguments_settings,
    config_settings,
    preprocessor_settings,
)
from intl_transfer.conversion.namings import DETECTRON2 as DETECTRON2_NAMES
from intl_transfer.conversion.reading import Content
from intl_transfer.conversion.settings import CAFFE, IMAGENET, Settings, from_config
from intl_transfer.errors import UserError
from intl_transfer.files.placeholders import plain
from intl_transfer.files.yaml_bases import merged
from intl_transfer.files.yamls import read_yaml

_NUMBER = r"(\d+(?:\.\d*)?)"
# Keys of Detectron2 about one fact each.
_PIXELS = ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD")
_CHANNELS, _STRIDES = "INPUT.FORMAT", "MODEL.RESNETS.STRIDE_IN_1X1"
_DETECTRON2S = "config.yaml"


def with_configurations(settings: Settings, content: Content) -> Settings:
    """Image preprocessing and strides, with what configurations know better.

    Args:
        settings: by the names of the format.
        content: of the file.

    Raises:
        UserError: if one states that the network computes something else than torchvision's.
    """
    for read in (
        _openmmlab,
        _detectron,
        _detectron2,
        arguments_settings,
        preprocessor_settings,
        config_settings,
    ):
        found = read(content)
        if found is not None:
            settings = settings.completed_by(found)
    return settings


def _openmmlab(content: Content) -> Settings | None:
    """From the configuration in ``meta``; all backbones in it, such as a teacher's, are checked."""
    meta = content.values.get("meta")
    config = configuration(meta)
    if not config:
        meta = plain(meta)
        if isinstance(meta, Mapping) and any(meta.get(key) for key in ("cfg", "config")):
            warnings.warn(f"{content.path}: the configuration in its 'meta' is not understood")
        return None
    backbones = [entry for entry in dictionaries(config) if re.search(r"\bbackbone$", entry[0])]
    named = [entry for entry in backbones if "ResNe" in str(entry[1].get("type"))]
    for place, inner in named or backbones:  # of one's own class, its name may be any
        refuse_arguments(inner, f"{content.path}: {place}", OPENMMLAB)
    return settings_in(config)


def _detectron(content: Content) -> Settings | None:
    """From the text that Detectron writes as ``cfg`` beside its ``blobs``.

    The text is YAML with Python's objects in it, so keys are looked for, and nothing is built.
    """
    text = content.values.get("cfg")
    if not isinstance(text, str) or "blobs" not in content.values:
        return None
    found = CAFFE.known_by(ASSUMED)
    dilation = re.search(r"\bRES5_DILATION:\s*(\d+)", text)
    given = {"RES5_DILATION": int(dilation[1]) if dilation else None}
    refuse_arguments(given, f"{content.path}: cfg", DETECTRON2)
    mean = re.search(rf"\bPIXEL_MEANS:[-\[\s]*{_NUMBER}[-,\s]+{_NUMBER}[-,\s]+{_NUMBER}", text)
    if mean is not None:
        blue, green, red = (float(value) for value in mean.groups())
        found = replace(
            found,
            pixel_mean=(blue, green, red),
            pixels_source=configured("cfg: PIXEL_MEANS"),
            channels_source=inferred("Detectron loads images as BGR"),
        )
    stride = re.search(r"\bSTRIDE_1X1:\s*(true|false)\b", text, re.I)
    if stride is not None:
        source = configured(f"cfg: STRIDE_1X1={stride[1]}")
        found = replace(found, stride_in_1x1=stride[1].lower() == "true", strides_source=source)
    for key, match in (("PIXEL_MEANS", mean), ("STRIDE_1X1", stride)):
        if match is None and key in text:
            warnings.warn(f"{content.path}: {key} in its 'cfg' is not understood, and not read")
    return found


def _detectron2(content: Content) -> Settings | None:
    """From the ``config.yaml`` that Detectron2 writes beside a detector, and its bases.

    A key in none of them has Detectron2's default.
    """
    if all(place.naming is not DETECTRON2_NAMES for place in places_in(content.tensors)):
        return None
    file = content.beside(_DETECTRON2S)
    if not file.is_file():
        return None
    try:
        values, is_whole = merged(file), True
    except UserError as error:
        warnings.warn(f"{error}. What {file} does not state itself is assumed")
        values, is_whole = _alone(content), False
    return _of_keys(values, is_whole, file)


def _of_keys(values: Mapping[str, Any], is_whole: bool, file: Path) -> Settings | None:
    """The settings in Detectron2's keys, each with its evidence.

    Args:
        values: of a configuration.
        is_whole: with its bases.
        file: the configuration, for messages.
    """
    model, images = (_part(values, key) for key in ("MODEL", "INPUT"))
    refuse_arguments(model.get("RESNETS"), f"{file}: MODEL.RESNETS", DETECTRON2)
    stated = {
        _CHANNELS: images.get("FORMAT"),
        **{key: model.get(key.rpartition(".")[2]) for key in _PIXELS},
        _STRIDES: _part(model, "RESNETS").get("STRIDE_IN_1X1"),
    }
    stated = {key: value for key, value in stated.items() if value is not None}
    if not stated:
        return None
    # Detectron2's own defaults are those of Caffe's networks; of torchvision's is what is assumed.
    rest = CAFFE if is_whole or stated.get(_CHANNELS) == "BGR" else IMAGENET
    unread = inferred(f"Detectron2's default, without a key in {_DETECTRON2S}")
    found = from_config(
        {
            _CHANNELS: rest.channels,
            "MODEL.PIXEL_MEAN": rest.pixel_mean,
            "MODEL.PIXEL_STD": rest.pixel_std,
            _STRIDES: rest.stride_in_1x1,
            **stated,
        },
        unread if is_whole else ASSUMED,
    )
    if found is None:
        warnings.warn(f"{file}: one of {', '.join(stated)} is not understood; none is read")
        return None
    source = configured(f"{_DETECTRON2S} beside the file")
    return replace(
        found,
        pixels_source=source if stated.keys() >= set(_PIXELS) else found.pixels_source,
        channels_source=source if _CHANNELS in stated else found.channels_source,
        strides_source=source if _STRIDES in stated else found.strides_source,
    )


def _alone(content: Content) -> dict[str, Any]:
    """What a configuration states without its bases; nothing if it cannot be read."""
    try:
        return read_yaml(content.path.parent / _DETECTRON2S)
    except UserError:
        return {}


def _part(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    inner = values.get(key)
    return inner if isinstance(inner, Mapping) else {}
