"""Weights are looked at before training: no run starts from scratch without saying so."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intl_transfer.errors import UserError

# The parts of a detector that a backbone checkpoint fills.
_BACKBONE = ("backbone.", "roi_heads.res5.")
# Built after res5 by the protocol, in no backbone checkpoint.
_EXTRA = "roi_heads.res5.norm."


def read_weights(path: str) -> dict[str, Any]:
    """Reads converted weights.

    Args:
        path: a ``.pth`` file as `intl-transfer convert` writes it: ``{"model": ...}``.

    Returns:
        The file's content; ``model`` maps names to tensors.

    Raises:
        UserError: if the file is absent, damaged, or not a Detectron2 checkpoint.
    """
    if path == "":
        raise UserError(
            "no weights given: MODEL.WEIGHTS is empty. Give --weights FILE, or --weights random to "
            "train from scratch"
        )
    file = Path(path)
    if not file.is_file():
        raise UserError(
            f"weights not found: looked for {file} ({file.resolve()}). Make them with "
            f"`intl-transfer convert RUN {file}`, give others with --weights FILE, or train from "
            "scratch with --weights random"
        )
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"weights {file} cannot be read: damaged or unsafe ({reason})") from None
    if not isinstance(content, dict):
        raise UserError(f"weights {file}: expected a dictionary, found {type(content).__name__}")
    if not isinstance(content.get("model"), dict):
        content = {"model": content}
    content["model"] = {k: v for k, v in content["model"].items() if isinstance(v, Tensor)}
    return content


def check_backbone(model: nn.Module, weights: dict[str, Tensor], path: str) -> None:
    """Refuses weights that would leave any part of the backbone at its random start.

    Args:
        model: the detector.
        weights: names to tensors, from :func:`read_weights`.
        path: of the file, for messages.

    Raises:
        UserError: if nothing matches, a tensor is missing, or a shape differs.
    """
    wanted = _backbone_tensors(model)
    found = {name: match(name, weights) for name in wanted}
    missing = [name for name, tensor in found.items() if tensor is None]
    if len(missing) == len(wanted):
        first = ", ".join(list(weights)[:3]) or "none"
        raise UserError(
            f"weights {path}: nothing in it matches the detector's backbone (its first keys: "
            f"{first}). Convert it first: `intl-transfer convert CHECKPOINT OUT.pth`"
        )
    depths = (_blocks(wanted), _blocks(weights))
    if depths[0] != depths[1]:
        raise UserError(
            f"weights {path}: a backbone of another depth; blocks in res2 to res5 are "
            f"{depths[1]} in the file, {depths[0]} in the configuration (MODEL.RESNETS.DEPTH)"
        )
    if missing:
        raise UserError(
            f"weights {path}: {len(missing)} of the backbone's {len(wanted)} tensors are missing, "
            f"the first: {missing[0]}"
        )
    for name, tensor in wanted.items():
        other = found[name]
        assert other is not None
        if other.shape != tensor.shape:
            raise UserError(
                f"weights {path}: {name} has shape {tuple(other.shape)}, the configuration wants "
                f"{tuple(tensor.shape)}; is MODEL.RESNETS.DEPTH right?"
            )
        if not torch.isfinite(other).all():
            raise UserError(f"weights {path}: {name} holds NaN or infinite values")


def check_loaded(model: nn.Module, weights: dict[str, Tensor], path: str) -> None:
    """Makes sure, after Detectron2 has loaded them, that the weights are the model's.

    Raises:
        UserError: naming the first backbone tensor that differs from the file.
    """
    for name, tensor in _backbone_tensors(model).items():
        expected = match(name, weights)
        if expected is None or not torch.equal(tensor.cpu(), expected.to(tensor.dtype)):
            raise UserError(f"weights {path}: {name} was not loaded as it is in the file")


def match(name: str, weights: dict[str, Tensor]) -> Tensor | None:
    """The tensor of a file that belongs to a name of the detector, or None.

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
        # FPN's own layers are made for the detector.
        and ".fpn_" not in name
    }


def _blocks(names: Any) -> list[int]:
    """Number of residual blocks in res2 to res5, with the kind of block as a sign."""
    counts = []
    for stage in range(2, 6):
        blocks = set()
        deep = False
        for name in names:
            words = name.split(".")
            if f"res{stage}" in words:
                index = words.index(f"res{stage}") + 1
                if index < len(words) and words[index].isdigit():
                    blocks.add(int(words[index]))
                    deep |= "conv3" in words
        counts.append(len(blocks) * (3 if deep else 2))
    return counts
