"""Finds the network's file in folders of Hugging Face, timm and accelerate.

Further facts are in ``config.json`` and, for transformers, ``preprocessor_config.json``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from intl_transfer.conversion.arguments import TIMM, refuse_arguments
from intl_transfer.conversion.evidence import ASSUMED, configured, inferred
from intl_transfer.conversion.reading import Content, read_content, small_json, unwrapped
from intl_transfer.conversion.settings import IMAGENET, Settings, from_statistics
from intl_transfer.data.statistics import STATISTICS, Statistics
from intl_transfer.errors import UserError
from intl_transfer.files.placeholders import plain
from intl_transfer.runs import sha256_file

_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin", "pytorch_model.safetensors")
# Of accelerate, the second and further networks of a training.
_NUMBERED = re.compile(r"(?:pytorch_)?model_\d+\.(?:safetensors|bin)")
_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
# timm's networks that compute the same as torchvision's of the same names and shapes.
_TIMM = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2")
# Of timm, with low-pass filters in place of strides.
_ONLY_ALIKE = re.compile(r"resnet(?:aa|blur)\d")
_EPSILON = 1e-5  # of torch's batch norm


def network_file(folder: Path) -> Path:
    """The file, or the index of the files, with a folder's network.

    Args:
        folder: as `save_pretrained`, timm's hub or accelerate writes it.

    Raises:
        UserError: if there is none; names the folder's content and what to do.
    """
    several = sorted(file.name for file in folder.iterdir() if _NUMBERED.fullmatch(file.name))
    for name in (*_WHOLE, *_INDEX):
        if (folder / name).is_file() and several:
            raise UserError(
                f"{folder} holds several networks: {', '.join([name, *several][:5])}. Give the "
                "file of one of them"
            )
        if (folder / name).is_file():
            return folder / name
    if (folder / ".metadata").is_file():
        raise UserError(
            f"{folder} is a distributed checkpoint of torch (DCP). Next: python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pth"
        )
    suffixes = (".pth", ".pt", ".ckpt", ".tar", ".safetensors", ".bin", ".pkl")
    files = [file for file in folder.iterdir() if file.name.endswith(suffixes)]
    # DeepSpeed's and others' are one folder deeper.
    files = files or [file for file in folder.glob("*/*") if file.name.endswith(suffixes)]
    names = sorted(str(file.relative_to(folder)) for file in files)
    hint = f" It holds {', '.join(names[:5])}: give one of them." if names else ""
    if not names:
        others = sorted(file.name + "/" * file.is_dir() for file in folder.iterdir())
        hint = f" It holds {', '.join(others[:5]) or 'nothing'}."
    raise UserError(
        f"{folder} is a folder without manifest.json; expected a pretraining run, or a folder of "
        f"Hugging Face or timm with {_CONFIG} and {_WHOLE[0]}.{hint}"
    )


def read_sharded(index: Path) -> tuple[Content, str]:
    """Reads a checkpoint split over several files.

    Args:
        index: the JSON file whose ``weight_map`` maps tensors to files.

    Returns:
        Its content, and the SHA-256 of the list of its files' SHA-256.

    Raises:
        UserError: if a file or a tensor is missing.
    """
    parts = small_json(index).get("weight_map")
    if not isinstance(parts, Mapping) or not parts:
        raise UserError(f"{index}: expected a 'weight_map' from tensors to files")
    names = sorted({str(name) for name in parts.values()})
    owner = {unwrapped(str(tensor)): str(name) for tensor, name in parts.items()}
    owner |= {str(tensor): str(name) for tensor, name in parts.items()}
    tensors: dict[str, Tensor] = {}
    hashes = []
    for name in names:
        file = index.parent / name
        if Path(name).name != name or not file.is_file():
            raise UserError(f"{index}: its file '{name[:80]}' is not in {index.parent}")
        content = read_content(file, verified=True)
        # Of a tensor in two files, as of a model that was split anew, the index says which counts.
        tensors |= {key: t for key, t in content.tensors.items() if owner.get(key, name) == name}
        hashes.append(f"{sha256_file(file)}  {name}\n")
    missing = sorted(n for n in map(str, parts) if not {n, unwrapped(n)} & tensors.keys())
    if missing:
        raise UserError(
            f"{index}: {len(missing)} tensors are not in the files that it says: {missing[0]}"
        )
    digest = hashlib.sha256("".join(hashes).encode()).hexdigest()
    files = [index.parent / name for name in names]
    return Content(index, dict(tensors), tensors, files=files), digest


def timm_settings(content: Content) -> Settings:
    """From a training's arguments or timm's ``config.json`` next to a file, otherwise assumed.

    Raises:
        UserError: if it, or a training's checkpoint itself, names an architecture that only looks
            like torchvision's, or arguments that make it another.
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
        if isinstance(given, str) and _ONLY_ALIKE.search(given):
            raise UserError(
                f"{content.path} says that its network is '{given}', which has a ResNet's names "
                f"and computes something else. Known: {', '.join(_TIMM)}"
            )
    config = small_json(content.beside(_CONFIG))
    name = config.get("architecture")
    trained = _trained(arguments)
    if not isinstance(name, str):
        return trained or IMAGENET
    if _ONLY_ALIKE.search(name):
        raise UserError(
            f"{content.path.parent / _CONFIG} says that the network is timm's '{name}', which has "
            f"a ResNet's names and computes something else. Known: {', '.join(_TIMM)}"
        )
    where = f"{content.path.parent / _CONFIG}: model_args"
    refuse_arguments(config.get("model_args"), where, TIMM)
    is_timms = name.removeprefix("tv_") in _TIMM
    strides = configured(f"{_CONFIG}: architecture={name}") if is_timms else ASSUMED
    kept = config.get("pretrained_cfg")
    kept = kept if isinstance(kept, Mapping) else config
    found = trained or _from_mean(kept.get("mean"), kept.get("std"), f"{_CONFIG}: mean, std")
    if found is None:
        return IMAGENET.known_by(IMAGENET.pixels_source, strides)
    return replace(
        found,
        channels_source=inferred("timm loads images as RGB"),
        strides_source=strides,
    )


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
    return replace(
        found, pixels_source=source, channels_source=loaded, strides_source=IMAGENET.strides_source
    )


def transformers_settings(content: Content) -> Settings:
    """From ``config.json`` and ``preprocessor_config.json`` next to a file, otherwise assumed.

    Raises:
        UserError: if they specify anything that Detectron2's ResNet does not have.
    """
    config = small_json(content.beside(_CONFIG))
    where = content.path.parent / _CONFIG
    if config.get("hidden_act", "relu") != "relu":
        raise UserError(f"{where}: hidden_act={config['hidden_act']}; expected relu")
    if config.get("downsample_in_first_stage"):
        raise UserError(f"{where}: downsample_in_first_stage; a ResNet does not stride there")
    settings = IMAGENET
    found = _prepared(small_json(content.beside(_PREPROCESSOR)))
    if found is not None:
        settings = replace(found, channels_source=inferred("transformers loads images as RGB"))
    stride = config.get("downsample_in_bottleneck")
    if isinstance(stride, bool):
        source = configured(f"{_CONFIG}: downsample_in_bottleneck={json.dumps(stride)}")
        settings = replace(settings, stride_in_1x1=stride, strides_source=source)
    elif config.get("model_type") == "resnet":  # the class's own default
        source = configured(f"{_CONFIG}: model_type=resnet")
        settings = replace(settings, strides_source=source)
    else:
        settings = replace(settings, strides_source=IMAGENET.strides_source)
    return settings


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
    return from_statistics(Statistics(*values), configured(where))
