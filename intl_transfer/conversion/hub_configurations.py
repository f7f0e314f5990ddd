"""What Hugging Face's and timm's configurations beside a file say of its network.

``config.json`` names the architecture and its arguments, also those of a part
(``backbone_config``), and ``preprocessor_config.json`` the image preprocessing; timm's train.py
keeps its arguments in the file.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from intl_transfer.conversion.arguments import (
    TIMM,
    TRANSFORMERS,
    TRANSFORMERS_BACKBONE,
    refuse_arguments,
)
from intl_transfer.conversion.evidence import ASSUMED, Source, configured, inferred
from intl_transfer.conversion.reading import Content, small_json
from intl_transfer.conversion.settings import IMAGENET, Settings, from_statistics
from intl_transfer.data.statistics import STATISTICS, Statistics
from intl_transfer.errors import UserError
from intl_transfer.files.placeholders import plain

_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
# timm's networks that compute the same as torchvision's of the same names and shapes.
_TIMM = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2")
# Of timm, with low-pass filters in place of strides.
_ONLY_ALIKE = re.compile(r"resnet(?:aa|blur)\d")
_EPSILON = 1e-5  # of torch's batch norm
# Configurations of transformers for the network with images in another model.
_PARTS = ("backbone_config", "vision_config")


def arguments_settings(content: Content) -> Settings | None:
    """From the arguments that timm's train.py and others keep in a checkpoint.

    Raises:
        UserError: if they name an architecture that only looks like torchvision's, or arguments
            that make it another.
    """
    arguments = plain(content.values.get("args"))
    arguments = arguments if isinstance(arguments, dict) else {}
    where = f"{content.path}: args.model_kwargs"
    refuse_arguments(arguments.get("model_kwargs"), where, TIMM)
    if arguments.get("bn_eps") not in (None, _EPSILON):
        raise UserError(
            f"{content.path}: args.bn_eps={arguments['bn_eps']}; expected batch norms' {_EPSILON}"
        )
    for given in (content.values.get("arch"), arguments.get("model"), arguments.get("arch")):
        _refuse_alike(given, str(content.path))
    return _trained(arguments)


def preprocessor_settings(content: Content) -> Settings | None:
    """From transformers' ``preprocessor_config.json`` next to a file."""
    config = _beside(content, _PREPROCESSOR)
    found = _prepared(config)
    if found is None and config:
        warnings.warn(
            f"{content.path.parent / _PREPROCESSOR}: its steps are not understood, and the image "
            "preprocessing is not read from it; set it with --pixels"
        )
    loaded = inferred("transformers loads images as RGB")
    return None if found is None else replace(found, channels_source=loaded)


def config_settings(content: Content) -> Settings | None:
    """From ``config.json`` of transformers or timm next to a file.

    Raises:
        UserError: if it names an architecture that only looks like torchvision's, or arguments
            that make it another.
    """
    found = None
    for place, config in _sections(_beside(content, _CONFIG)):
        where = f"{content.path.parent / _CONFIG}{place and f': {place}'}"
        strides = _strides(config, where)
        kept = config.get("pretrained_cfg")
        kept = kept if isinstance(kept, Mapping) else config
        settings = _from_mean(kept.get("mean"), kept.get("std"), f"{_CONFIG}: mean, std")
        if settings is not None:
            loaded = inferred("timm loads images as RGB")
            settings = replace(settings, channels_source=loaded)
        elif strides is not None:
            settings = IMAGENET
        if settings is not None and strides is not None:
            settings = replace(settings, stride_in_1x1=strides[0], strides_source=strides[1])
        if settings is not None:
            found = settings if found is None else found.completed_by(settings)
    return found


def _sections(
    config: Mapping[str, Any], place: str = "", depth: int = 0
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A configuration and those of the parts that may be the network, with their places."""
    yield place, config
    for key in _PARTS:
        inner = config.get(key)
        if isinstance(inner, Mapping) and depth < len(_PARTS):
            yield from _sections(inner, f"{place}.{key}" if place else key, depth + 1)


def _strides(config: Mapping[str, Any], where: str) -> tuple[bool, Source] | None:
    """Whether a network strides in its 1x1 convolutions, if its configuration says.

    Raises:
        UserError: if it is another network, as for :func:`config_settings`.
    """
    is_transformers = isinstance(config.get("model_type"), str)
    if config.get("model_type", "resnet") == "resnet":
        refuse_arguments(config, where, TRANSFORMERS)
    if is_transformers:
        refuse_arguments(config, where, TRANSFORMERS_BACKBONE)
    key = "backbone" if is_transformers and "architecture" not in config else "architecture"
    for arguments in ("model_args", "backbone_kwargs"):
        refuse_arguments(config.get(arguments), f"{where}: {arguments}", TIMM)
    name = config.get(key)
    _refuse_alike(name, where)
    stride = config.get("downsample_in_bottleneck")
    if isinstance(stride, bool):
        text = f"{_CONFIG}: downsample_in_bottleneck={json.dumps(stride)}"
        return stride, configured(text)
    if config.get("model_type") == "resnet":  # the class's own default
        return False, configured(f"{_CONFIG}: model_type=resnet")
    # As timm's pretrained weights are called: architecture, then a tag.
    if isinstance(name, str) and name.partition(".")[0].removeprefix("tv_") in _TIMM:
        return False, configured(f"{_CONFIG}: {key}={name}")
    if isinstance(name, str):
        warnings.warn(
            f"{where} says {key}='{name}', which is not known: that it computes the same as "
            f"torchvision's ResNet is assumed. Known: {', '.join(_TIMM)}"
        )
    return None


def _refuse_alike(name: Any, where: str) -> None:
    """Refuses an architecture that has a ResNet's names alone."""
    if isinstance(name, str) and _ONLY_ALIKE.search(name):
        raise UserError(
            f"{where} says that its network is '{name}', which has a ResNet's names and "
            f"computes something else. Known: {', '.join(_TIMM)}"
        )


def _beside(content: Content, name: str) -> dict[str, Any]:
    """A configuration next to a file; one that cannot be read is named."""
    file = content.beside(name)
    config = small_json(file)
    if not config and file.is_file():
        warnings.warn(f"{file} states nothing that is understood, and is ignored")
    return config


def _trained(arguments: Mapping[str, Any]) -> Settings | None:
    """Image preprocessing by ``--mean`` and ``--std`` of timm's train.py; None without them.

    One number is of all channels; without one of the two, timm takes ImageNet's in its place
    (`timm.data.resolve_data_config`), but for networks that say otherwise.
    """
    given = {name: plain(arguments.get(name)) for name in ("mean", "std")}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return None
    usual = {"mean": STATISTICS["imagenet"].mean, "std": STATISTICS["imagenet"].std}
    mean, std = (given.get(name, usual[name]) for name in ("mean", "std"))
    mean, std = (
        list(v) * 3 if isinstance(v, (list, tuple)) and len(v) == 1 else v for v in (mean, std)
    )
    found = _from_mean(mean, std, ", ".join(f"args.{name}" for name in given))
    if found is None:
        return None
    source = found.pixels_source if len(given) == 2 else inferred("args, and timm's default")
    loaded = inferred("timm loads images as RGB")
    return replace(found, pixels_source=source, channels_source=loaded)


def _prepared(config: Mapping[str, Any]) -> Settings | None:
    """Mean and deviation by an image processor's configuration; None where it does not say.

    It computes (factor · pixel - mean) / std, the steps that it is told to.
    """
    steps = [config.get(step) for step in ("do_rescale", "do_normalize")]
    factor = config.get("rescale_factor", 1 / 255) if steps[0] is not False else 1.0
    if type(factor) not in (int, float) or not 0 < factor <= 1:
        return None
    triples: list[Any] = [[0.0] * 3, [1.0] * 3]
    if steps[1] is False and steps[0] is True:
        where = "do_normalize=false"
    elif steps[1] is not False:
        triples = [config.get("image_mean"), config.get("image_std")]
        where = "image_mean, image_std"
    else:
        return None
    if abs(255 * factor - 1) > 1e-6:  # to pixels of 0 to 1
        where += f", {'rescale_factor' if steps[0] is not False else 'do_rescale=false'}"
        triples = [
            [v / (255 * factor) if type(v) in (int, float) else v for v in triple]
            if isinstance(triple, list)
            else triple
            for triple in triples
        ]
    mean, std = triples
    return _from_mean(mean, std, f"{_PREPROCESSOR}: {where}")


def _from_mean(mean: Any, std: Any, where: str) -> Settings | None:
    values = []
    for triple in (mean, std):
        if not isinstance(triple, (list, tuple)) or len(triple) != 3:
            return None
        if not all(type(number) in (int, float) and 0 <= number <= 1 for number in triple):
            return None
        values.append((float(triple[0]), float(triple[1]), float(triple[2])))
    if not all(values[1]):
        return None
    return from_statistics(Statistics(*values)).known_by(configured(where), ASSUMED)
