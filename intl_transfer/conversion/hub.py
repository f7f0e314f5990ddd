"""Writes folders that timm and transformers load: the files next to the weights.

``timm.create_model("local-dir:FOLDER", pretrained=True)`` and ``AutoModel.from_pretrained(FOLDER)``
read ``config.json``; the card begins with the front matter that model hubs read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from intl_transfer.conversion.settings import Settings
from intl_transfer.errors import UserError
from intl_transfer.runs.wording import epochs_in_words

#: Formats written as a folder.
HUB = ("timm", "transformers")
#: File name of the weights in it.
WEIGHTS = "model.safetensors"
_DEPTHS = {
    "resnet18": [2, 2, 2, 2],
    "resnet34": [3, 4, 6, 3],
    "resnet50": [3, 4, 6, 3],
    "resnet101": [3, 4, 23, 3],
    "resnet152": [3, 8, 36, 3],
}
_BASIC = ("resnet18", "resnet34")


def names_beside(to: str) -> tuple[str, ...]:
    """Names of the files next to the weights.

    Args:
        to: one of :data:`HUB`.
    """
    more = ("preprocessor_config.json",) if to == "transformers" else ()
    return ("config.json", *more, "README.md")


def files_beside(
    to: str, architecture: str, settings: Settings, provenance: Mapping[str, Any]
) -> dict[str, bytes]:
    """The files next to the weights: name to content.

    Args:
        to: one of :data:`HUB`.
        architecture: ``resnet18`` to ``resnet152`` or ``wide_resnet50_2``.
        settings: image preprocessing.
        provenance: of the conversion.

    Raises:
        UserError: for a network that the library does not have.
    """
    if settings.channels != "RGB":
        raise UserError(f"{to} loads images as RGB, this network takes BGR; write it as .pth")
    if to == "timm" and settings.stride_in_1x1:
        raise UserError("timm's ResNets stride in 3x3 convolutions, this network in 1x1")
    if to == "transformers" and architecture not in _DEPTHS:
        raise UserError(f"transformers has no {architecture}; --to timm has")
    mean, std = (
        [round(value / 255, 8) for value in values]
        for values in (settings.pixel_mean, settings.pixel_std)
    )
    config = _of_timm if to == "timm" else _of_transformers
    found = {"config.json": config(architecture, settings, mean, std)}
    if to == "transformers":
        found["preprocessor_config.json"] = {
            "image_processor_type": "ConvNextImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": 224},
            "crop_pct": 0.875,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": mean,
            "image_std": std,
        }
    files = {name: (json.dumps(v, indent=2) + "\n").encode() for name, v in found.items()}
    return {**files, "README.md": _card(to, architecture, mean, std, provenance).encode()}


def _of_timm(
    architecture: str, settings: Settings, mean: list[float], std: list[float]
) -> dict[str, Any]:
    width = 512 if architecture in _BASIC else 2048
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": width,
        "pretrained_cfg": {
            "architecture": architecture,
            "num_classes": 0,
            "input_size": [3, 224, 224],
            "pool_size": [7, 7],
            "mean": mean,
            "std": std,
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }


def _of_transformers(
    architecture: str, settings: Settings, mean: list[float], std: list[float]
) -> dict[str, Any]:
    basic = architecture in _BASIC
    return {
        "model_type": "resnet",
        "architectures": ["ResNetModel"],
        "num_channels": 3,
        "embedding_size": 64,
        "hidden_sizes": [64, 128, 256, 512] if basic else [256, 512, 1024, 2048],
        "depths": _DEPTHS[architecture],
        "layer_type": "basic" if basic else "bottleneck",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": settings.stride_in_1x1,
    }


def _card(
    to: str, architecture: str, mean: list[float], std: list[float], provenance: Mapping[str, Any]
) -> str:
    """The model card, without paths of the machine that made it."""
    run = provenance.get("pretrain_run") or {}
    front = {"library_name": to, "pipeline_tag": "image-feature-extraction"}
    matter: dict[str, Any] = {**front, "tags": ["resnet", "self-supervised-learning"]}
    evidence = provenance.get("evidence") or {}
    facts = {
        "method": provenance.get("method"),
        "epochs": epochs_in_words(run) if run.get("epochs") is not None else None,
        "dataset": run.get("dataset"),
        "branch": provenance.get("branch"),
        "stem": provenance.get("stem"),
        "pixels": f"mean {mean}, standard deviation {std}, of RGB from 0 to 1",
    }
    rows = []
    for fact, value in facts.items():
        source = evidence.get(fact)
        if value is not None and source is not None:
            detail = f" ({source['detail']})" if source["detail"] else ""
            rows.append(f"| {fact} | {value} | {source['level']}{detail} |".replace("\n", " "))
    load = (
        'timm.create_model("local-dir:FOLDER", pretrained=True, num_classes=0)'
        if to == "timm"
        else 'transformers.AutoModel.from_pretrained("FOLDER")'
    )
    return "\n".join(
        [
            "---",
            yaml.safe_dump(matter, sort_keys=False).rstrip(),
            "---",
            "",
            f"# {provenance.get('method') or 'Pretrained'} {architecture}",
            "",
            "| fact | value | evidence |",
            "|---|---|---|",
            *rows,
            "",
            f"SHA-256 of the source: `{provenance.get('source_sha256')}`.",
            "",
            "```python",
            load,
            "```",
            "",
        ]
    )
