"""Who wrote this checkpoint? Formats are told by their keys, never by a file's name.

Everything is brought to one form: a ResNet's state dict under torchvision's names, without the
classifier.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from intl_transfer.conversion.detectron2 import from_detectron2, is_detectron2
from intl_transfer.errors import UserError
from intl_transfer.runs import MANIFEST, read_manifest, sha256_file
from intl_transfer.runs.checkpoint import FORMAT, list_checkpoints
from intl_transfer.runs.checkpoint import read_checkpoint as read_own_checkpoint

Branch = Literal["online", "target"]


@dataclass(frozen=True)
class Backbone:
    """A backbone and where it comes from.

    Attributes:
        state: torchvision-named tensors, float32 (counters int64), without ``fc``.
        source_path: the file that was read.
        source_sha256: its hash.
        source_format: who wrote it.
        method: pretraining method, where the file says.
        pretrain_run: the pretraining run, where the file says.
        dropped: keys of the file that are not of the backbone.
    """

    state: dict[str, Tensor]
    source_path: str
    source_sha256: str
    source_format: str
    method: str | None = None
    pretrain_run: dict[str, Any] | None = None
    dropped: list[str] = field(default_factory=list)


def load_backbone(path: str | Path, branch: Branch = "online") -> dict[str, Tensor]:
    """Reads any known checkpoint as a torchvision-named ResNet state dict.

    Args:
        path: a pretraining run's directory or a checkpoint file.
        branch: ``"online"`` or ``"target"`` (the moving-average copy) where a file holds both.

    Returns:
        Name to tensor, float32, without the classifier.

    Raises:
        UserError: if the file is absent, damaged, unsafe or of no known format.
    """
    return read_backbone(path, branch).state


def read_backbone(path: str | Path, branch: Branch = "online") -> Backbone:
    """As :func:`load_backbone`, with the backbone's origin.

    In a run directory the exported backbone is read (``target`` and unfinished runs: the newest
    whole checkpoint).
    """
    path = Path(path)
    if path.is_dir():
        return _from_run(path, branch)
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a checkpoint or a run directory")
    return _from_file(path, branch)


def _from_run(folder: Path, branch: Branch) -> Backbone:
    if not (folder / MANIFEST).exists():
        raise UserError(f"{folder} is a folder without {MANIFEST}; expected a pretraining run")
    manifest = read_manifest(folder)
    if manifest["stage"] != "pretrain":
        raise UserError(f"{folder} holds a '{manifest['stage']}' run; expected a pretraining run")
    exported = folder / "backbone.safetensors"
    if exported.exists() and branch == "online":
        return _from_file(exported, branch)
    damaged = []
    for file in list_checkpoints(folder / "checkpoints"):
        try:
            return _from_file(file, branch)
        except UserError as error:
            if "damaged" not in str(error):
                raise
            damaged.append(file.name)
            warnings.warn(f"passed over: {error}", stacklevel=2)
    hint = f" ({', '.join(damaged)} damaged)" if damaged else ""
    raise UserError(
        f"{folder} has no backbone.safetensors and no checkpoint that can be read{hint}; "
        f"its status is '{manifest['status']}'"
    )


def _from_file(path: Path, branch: Branch) -> Backbone:
    content, metadata = _read(path)
    method: str | None = metadata.get("method")
    run: dict[str, Any] | None = json.loads(metadata.get("pretrain_run", "null"))
    if content.get("format") == FORMAT:
        content = read_own_checkpoint(path)  # again, with every record's checksum verified
        kind = "intl-transfer checkpoint"
        state, run = _own(content, path, branch), content.get("run")
        method = run.get("method") if run else None
    else:
        if branch != "online":
            raise UserError(f"{path} holds one network; --branch {branch} needs a run's checkpoint")
        state, kind = _foreign(content, path)
        kind = "intl-transfer backbone" if run else kind
        if isinstance(provenance := content.get("provenance"), dict):
            method, run = provenance.get("method"), provenance.get("pretrain_run")
    dropped = [key for key in state if key.startswith("fc.")]
    state = {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in state.items()
        if key not in dropped
    }
    return Backbone(state, str(path.resolve()), sha256_file(path), kind, method, run, dropped)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A file's dictionary, without running any code in it, and its string metadata."""
    with open(path, "rb") as file:
        head = file.read(9)
    if len(head) < 9:
        raise UserError(f"{path} is damaged: only {path.stat().st_size} bytes long")
    if head[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
        try:
            with safe_open(path, "pt") as opened:
                return {key: opened.get_tensor(key) for key in opened.keys()}, (  # noqa: SIM118
                    opened.metadata() or {}
                )
        except SafetensorError as error:
            raise UserError(f"{path} is damaged: {error}") from None
    try:
        zipped = head[:2] == b"PK"
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        reason = next(
            (s for s in str(error).splitlines() if "GLOBAL" in s or "nsupported" in s), ""
        )
        raise UserError(
            f"{path} wants more than tensors and plain values, so it was not read: "
            f"{reason.strip() or str(error).splitlines()[0]}"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged or not a checkpoint ({reason})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a dictionary, found {type(value).__name__}")
    return value, {}


def _own(content: Mapping[str, Any], path: Path, branch: Branch) -> dict[str, Tensor]:
    source = content["model"] if branch == "online" else content["target"]
    if source is None:
        raise UserError(f"{path} has no moving-average copy (trained with loss.method=intl)")
    prefix = "backbone."
    return {k[len(prefix) :]: v for k, v in source.items() if k.startswith(prefix)}


def _foreign(content: Mapping[str, Any], path: Path) -> tuple[dict[str, Tensor], str]:
    """Plain, wrapped or prefixed torchvision state dicts, and Detectron2's own."""
    state = content
    for wrapper in ("state_dict", "model"):
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)}
    if tensors and all(key.startswith("module.") for key in tensors):
        tensors = {key[len("module.") :]: v for key, v in tensors.items()}
    if is_detectron2(tensors):
        return from_detectron2(tensors), "Detectron2"
    if "conv1.weight" in tensors and any(key.startswith("layer1.0.") for key in tensors):
        return tensors, "torchvision"
    first = ", ".join(list(map(str, state))[:5]) or "none"
    raise UserError(
        f"{path}: of no known format (its first keys: {first}). Known: runs and checkpoints of "
        "this project, ResNet state dicts under torchvision's names (also inside 'state_dict' or "
        "'model', and behind 'module.'), Detectron2 weights"
    )
