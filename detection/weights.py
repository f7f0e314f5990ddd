"""Checks weights before training, so that no run silently starts from scratch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detection.config import CONFIGS
from intl_transfer.conversion.adapters.caffe2 import CAFFE2
from intl_transfer.conversion.adapters.detectron2 import DETECTRON2
from intl_transfer.conversion.configurations import with_configurations
from intl_transfer.conversion.reading import Content, read_content, unchanged
from intl_transfer.conversion.settings import config_values
from intl_transfer.conversion.stated import was_assumed
from intl_transfer.errors import UserError
from intl_transfer.files.yaml_bases import files_of
from intl_transfer.files.yamls import read_yaml
from intl_transfer.runs import MANIFEST, read_manifest, sha256_file
from intl_transfer.runs.config import resolve_config
from intl_transfer.runs.controls import permuted
from intl_transfer.runs.settings import flatten

# The parts of a detector that a backbone checkpoint fills.
_BACKBONE = ("backbone.", "roi_heads.res5.")
# The protocol's norm after res5, which backbone checkpoints do not have.
_EXTRA = "roi_heads.res5.norm."
# Settings of weights, for any architecture, since only the names are used here.
_SETTINGS = tuple(config_values("resnet50"))
_DEPTH = "MODEL.RESNETS.DEPTH"
_IMAGES = {"INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"}
# Index of a block; names in files may have any digits.
_NUMBERS = {str(number) for number in range(100)}


def read_weights(path: str) -> dict[str, Any]:
    """Reads weights or a checkpoint, without executing code in it.

    Args:
        path: a ``.pth`` or ``.pkl`` file of `intl-transfer convert` or Detectron2 (``{"model":
            ...}``), or Caffe2's blobs.

    Returns:
        The file's content, of one moment; ``model`` maps Detectron2's names to tensors, ``sha256``
        is the file's hash. If image preprocessing is known or recorded, it is in ``settings``:
        ``values`` by key, ``source``, and ``is_assumed``.

    Raises:
        UserError: if the file is missing, damaged, not a Detectron2 checkpoint, or replaced while
            it is read.
    """
    if path == "":
        raise UserError(
            "no weights given: MODEL.WEIGHTS is empty. Give --weights FILE, or --weights random to "
            "train from scratch"
        )
    file = Path(path)
    if file.is_dir():
        raise UserError(
            f"--weights {file} is {_folder(file)}; expected a converted file. Make one: "
            f"`intl-transfer convert {file} weights/{file.resolve().name}.pth`, then --weights "
            f"weights/{file.resolve().name}.pth"
        )
    if not file.is_file():
        raise UserError(
            f"weights not found: looked for {file} ({file.resolve()}). Create them with "
            f"`intl-transfer convert RUN {file}`, use others with --weights FILE, or train from "
            "scratch with --weights random"
        )
    try:
        with unchanged(file):
            read = read_content(file, mmap=False, verified=True)
            sha256 = sha256_file(file)
    except UserError as error:
        raise UserError(f"weights cannot be read: {error}") from None
    content = dict(read.values)
    if CAFFE2.branches(read):
        state, _ = CAFFE2.to_torchvision(read, CAFFE2.branches(read)[0])
        content = DETECTRON2.from_torchvision(state)
    elif isinstance(content.get("model"), Mapping):
        names = {key for key in read.tensors if key.startswith("model/")}
        content["model"] = {key[len("model/") :]: read.tensors[key] for key in names}
    else:
        content = {"model": {key: v for key, v in read.tensors.items() if "/" not in key}}
    if "stem.conv1.weight" in content["model"]:  # a backbone: matched by the ends of its names
        content["matching_heuristics"] = True
    settings = _settings_of(read)
    return {**content, "sha256": sha256, **({"settings": settings} if settings else {})}


def _folder(folder: Path) -> str:
    """What a folder is, for messages."""
    if not (folder / MANIFEST).exists():
        return "a folder"
    return f"the directory of a '{read_manifest(folder).stage}' run"


def _settings_of(read: Content) -> dict[str, Any] | None:
    """The known image preprocessing of a file's weights."""
    own = read.values.get("config")
    fragment = read.path.with_suffix(".yaml")
    values = {key: own[key] for key in _SETTINGS if key in own} if isinstance(own, Mapping) else {}
    beside = _fragment(fragment)
    for key in values.keys() & beside.keys():
        if not _same(values[key], beside[key]):
            raise UserError(
                f"{fragment} says {key} {beside[key]}, but {read.path} was converted with "
                f"{values[key]}. Remove the one of other weights, or convert again"
            )
    if values:
        return {
            "values": {**beside, **values},
            "source": "the file",
            "is_assumed": was_assumed(read),
        }
    if beside:
        return {"values": beside, "source": str(fragment)}
    adapter = CAFFE2 if CAFFE2.branches(read) else DETECTRON2
    known = with_configurations(adapter.settings(read), read)
    if known.source is None:
        return None
    values = config_values("resnet50", known)  # those independent of the architecture
    by = known.source if known.pixels_source.is_known else str(known.pixels_source)
    keys = ["INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"]
    if not known.strides_source.is_assumed:
        keys.append("MODEL.RESNETS.STRIDE_IN_1X1")
    return {"values": {key: values[key] for key in keys}, "source": by}


def assumption(cfg: Any, content: Mapping[str, Any], given: set[str] | None = None) -> str | None:
    """What is assumed of the weights' image preprocessing, for the user; None if it is known.

    Args:
        cfg: the configuration, after :func:`follow_settings`.
        content: of the weights, from :func:`read_weights`.
        given: from :func:`set_by_user`; what the user says is not assumed.
    """
    settings = content.get("settings")
    if (settings is not None and not settings.get("is_assumed")) or (given or set()) >= _IMAGES:
        return None
    return (
        f"assumed: {cfg.MODEL.WEIGHTS} does not state its image preprocessing; {cfg.INPUT.FORMAT}, "
        f"mean {list(cfg.MODEL.PIXEL_MEAN)}, deviation {list(cfg.MODEL.PIXEL_STD)}"
    )


def _fragment(file: Path) -> dict[str, Any]:
    """The settings in the ``.yaml`` file next to converted weights; empty if there is none."""
    if not file.is_file():
        return {}
    try:
        flat = flatten(read_yaml(file))
    except UserError as error:
        raise UserError(f"settings file of the weights: {error}") from None
    return {key: value for key, value in flat.items() if key in _SETTINGS}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-6)
    return bool(one == other)


def set_by_user(
    config: str,
    overrides: Sequence[str] = (),
    is_asked: Callable[[str], bool] = _SETTINGS.__contains__,
) -> set[str]:
    """The settings that the user set, on the command line or in their own file.

    Those in this project's configurations do not count, except the network's depth: they are
    written for weights trained with ImageNet's statistics, and are adapted to others.

    Args:
        config: the configuration's name or path.
        overrides: ``KEY VALUE KEY VALUE ...``.
        is_asked: which settings; those of weights if not given.
    """
    given = {key for key in overrides[::2] if is_asked(key)}
    for file, values in files_of(resolve_config(config, CONFIGS)):
        shipped = CONFIGS / file.name
        ours = shipped.is_file() and shipped.read_bytes() == file.read_bytes()
        keys = set(filter(is_asked, flatten(values)))
        given |= keys & {_DEPTH} if ours else keys
    return given


def follow_settings(cfg: Any, content: Mapping[str, Any], given: set[str]) -> list[str]:
    """Applies the weights' settings to a configuration, and refuses contradictions.

    Args:
        cfg: the configuration, not frozen.
        content: of the weights, from :func:`read_weights`.
        given: from :func:`set_by_user`.

    Returns:
        The changed settings, for the user.

    Raises:
        UserError: if the configuration contradicts the weights, in channel order, normalization,
            stride or depth.
    """
    settings = content.get("settings")
    changed, contradicting = [], []
    for key, value in settings["values"].items() if settings else ():
        *folders, leaf = key.split(".")
        node = cfg
        for folder in folders:
            node = node[folder]
        if _same(node[leaf], value):
            continue
        if key in given:
            text = f"{key} is {_shown(node[leaf])}, the weights need {_shown(value)}"
            if key == _DEPTH:
                raise UserError(
                    f"weights {cfg.MODEL.WEIGHTS} have another depth: {text}. Use another "
                    f"configuration, or add {_DEPTH} {value}"
                )
            contradicting.append(text)
        else:
            node[leaf] = _as(node[leaf], value, key, content)
            changed.append(f"{key} {_shown(value)}")
    if contradicting:
        raise UserError(
            f"the configuration contradicts {cfg.MODEL.WEIGHTS}: {'; '.join(contradicting)} ("
            f"{_known_by(settings)}). Training would run with image preprocessing that the network "
            "was not trained with, and its results would be worse. Remove these settings from the "
            "configuration, or use matching weights"
        )
    return changed


def _as(example: Any, value: Any, key: str, content: Mapping[str, Any]) -> Any:
    """A value of the type that a setting has."""
    try:
        if isinstance(example, (list, tuple)) != isinstance(value, (list, tuple)):
            raise TypeError
        return type(example)(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"{content['settings']['source']}, which states the weights' image preprocessing: "
            f"{key} "
            f"is {str(value)[:60]!r}; expected {_shown(example)} or another of its kind"
        ) from None


def _known_by(settings: Mapping[str, Any] | None) -> str:
    """The evidence for the settings of weights."""
    by = str(settings["source"]) if settings else "nothing"
    return by if by.startswith("inferred") else f"known from {by}"


def _shown(value: Any) -> str:
    return str(list(value) if isinstance(value, tuple) else value)


def check_backbone(model: nn.Module, weights: dict[str, Tensor], path: str) -> None:
    """Refuses weights that would leave any part of the backbone randomly initialized.

    Args:
        model: the detector.
        weights: names to tensors, from :func:`read_weights`.
        path: of the file, for messages.

    Raises:
        UserError: if nothing matches, a tensor is missing, or a shape differs.
    """
    needed = _backbone_tensors(model)
    found = {name: match(name, weights) for name in needed}
    missing = [name for name, tensor in found.items() if tensor is None]
    if len(missing) == len(needed):
        first = ", ".join(list(weights)[:3]) or "none"
        raise UserError(
            f"weights {path}: nothing in it matches the detector's backbone (its first keys: "
            f"{first}). Convert it first: `intl-transfer convert CHECKPOINT OUT.pth`"
        )
    depths = (_blocks(needed), _blocks(weights))
    if depths[0] != depths[1]:
        raise UserError(
            f"weights {path}: a backbone of another depth; blocks in res2 to res5 are "
            f"{depths[1]} in the file, {depths[0]} in the configuration (MODEL.RESNETS.DEPTH)"
        )
    if missing:
        raise UserError(
            f"weights {path}: {len(missing)} of the backbone's {len(needed)} tensors are missing, "
            f"the first: {missing[0]}"
        )
    for name, tensor in needed.items():
        other = found[name]
        assert other is not None
        if other.shape != tensor.shape:
            raise UserError(
                f"weights {path}: {name} has shape {tuple(other.shape)}, the configuration needs "
                f"{tuple(tensor.shape)}; is MODEL.RESNETS.DEPTH right?"
            )
        if not torch.isfinite(other).all():
            raise UserError(f"weights {path}: {name} contains NaN or infinite values")


def check_loaded(model: nn.Module, weights: dict[str, Tensor], path: str) -> None:
    """Checks, after loading by Detectron2, that the model has the weights.

    Raises:
        UserError: naming the first backbone tensor that differs from the file.
    """
    for name, tensor in _backbone_tensors(model).items():
        expected = match(name, weights)
        if expected is None or not torch.equal(tensor.cpu(), expected.to(tensor.dtype)):
            raise UserError(f"weights {path}: {name} differs from the file after loading")


def permute_backbone(model: nn.Module, seed: int) -> None:
    """Permutes the elements of each layer of a backbone, for a control."""
    own = _backbone_tensors(model)
    with torch.no_grad():
        for name, tensor in permuted(own, seed).items():
            own[name].copy_(tensor)


def check_whole(weights: Mapping[str, Tensor], path: str) -> None:
    """Refuses a file with only a backbone, before a data set is opened.

    Raises:
        UserError: if it has no tensors of a detector's heads.
    """
    if not any(name.startswith(("roi_heads.", "proposal_generator.", "head.")) for name in weights):
        raise UserError(
            f"weights {path} are not a detector, but a backbone: fine-tune it first (without "
            "--eval-only), or give the run directory of a fine-tuned one"
        )


def load_detector(model: nn.Module, weights: dict[str, Tensor], path: str) -> None:
    """Loads a fine-tuned detector.

    Args:
        model: the detector.
        weights: names to tensors, from :func:`read_weights`.
        path: of the file, for messages.

    Raises:
        UserError: if a tensor is missing or has another shape.
    """
    counters = "num_batches_tracked"  # not in every file, and not needed for evaluation
    missing = [
        key for key in model.state_dict() if key not in weights and not key.endswith(counters)
    ]
    if missing:
        raise UserError(
            f"weights {path} are not a complete detector of this configuration: {len(missing)} "
            f"tensors are missing, the first: {missing[0]}"
        )
    try:
        model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise UserError(f"weights {path} do not fit: {error}") from None


def match(name: str, weights: dict[str, Tensor]) -> Tensor | None:
    """The tensor of a file for a name of the detector, or None.

    Detectron2 matches ``res5.0.conv1.weight`` of a backbone file with
    ``roi_heads.res5.0.conv1.weight`` of a C4 detector by the end of the name.
    """
    for prefix in ("", "backbone.bottom_up.", "backbone.", "roi_heads."):
        if name.startswith(prefix) and name[len(prefix) :] in weights:
            return weights[name[len(prefix) :]]
    return None


def _backbone_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(_BACKBONE)
        and not name.startswith(_EXTRA)
        and not name.endswith("num_batches_tracked")
        # A pyramid's own layers belong to the detector.
        and ".fpn_" not in name
        and ".top_block." not in name
    }


def _blocks(names: Any) -> list[int]:
    """Number of residual blocks in res2 to res5, with the type of block as a sign."""
    counts = []
    for stage in range(2, 6):
        blocks = set()
        deep = False
        for name in names:
            words = name.split(".")
            if f"res{stage}" in words:
                index = words.index(f"res{stage}") + 1
                if index < len(words) and words[index] in _NUMBERS:
                    blocks.add(int(words[index]))
                    deep |= "conv3" in words
        counts.append(len(blocks) * (3 if deep else 2))
    return counts
