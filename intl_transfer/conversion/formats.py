"""Who wrote this checkpoint? Formats are told by their keys, never by a file's name.

Everything is brought to one form: a ResNet's state dict under torchvision's names, without the
classifier.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from intl_transfer.conversion.detectron2 import from_detectron2, is_detectron2, torchvision_name
from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.runs import MANIFEST, RESULTS, read_manifest, read_results, sha256_file
from intl_transfer.runs.checkpoint import FORMAT, load_newest
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
    if branch not in get_args(Branch):
        hint = did_you_mean(branch, get_args(Branch))
        raise UserError(f"no branch '{branch}'; expected online or target.{hint}")
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
        found = _from_file(exported, branch)
        # A safetensors file has no checksums of its own; the run's results hold its hash.
        expected = (read_results(folder) or {}).get("backbone_sha256")
        if expected not in (None, found.source_sha256):
            raise UserError(
                f"{exported} is damaged or not this run's: its sha256 is {found.source_sha256}, "
                f"{RESULTS} says {expected}. Restore it, or convert a file in {folder}/checkpoints"
            )
        return found
    newest = load_newest(folder / "checkpoints")
    if newest is None:
        raise UserError(
            f"{folder} has no {'backbone.safetensors and no ' if branch == 'online' else ''}"
            f"checkpoint that can be read; its status is '{manifest['status']}'"
        )
    path, content = newest
    return _from_own(path, content, branch)


def _from_file(path: Path, branch: Branch) -> Backbone:
    content, metadata = _read(path)
    if content.get("format") == FORMAT:
        # Read again, with every record's checksum verified.
        return _from_own(path, read_own_checkpoint(path), branch)
    if branch != "online":
        raise UserError(f"{path} holds one network; --branch {branch} needs a run's checkpoint")
    state, kind, dropped = _foreign(content, path)
    origin: Mapping[str, Any] = metadata
    if isinstance(content.get("provenance"), dict):
        origin = content["provenance"]
    if "pretrain_run" in metadata:
        kind = "intl-transfer backbone"
    method, run = _origin(origin.get("method"), origin.get("pretrain_run"), path)
    return _backbone(path, state, kind, method, run, dropped)


def _from_own(path: Path, content: Mapping[str, Any], branch: Branch) -> Backbone:
    key = "model" if branch == "online" else "target"
    source = content.get(key)
    if branch == "target" and source is None:
        raise UserError(f"{path} has no moving-average copy (trained with loss.method=intl)")
    if not isinstance(source, dict):
        raise UserError(f"{path} is not a whole checkpoint: expected a state dict as '{key}'")
    prefix = "backbone."
    state = {
        key[len(prefix) :]: value
        for key, value in source.items()
        if isinstance(value, Tensor) and key.startswith(prefix)
    }
    if not state:
        raise UserError(f"{path}: no key of '{key}' begins with '{prefix}' ({_first(source)})")
    run = content.get("run")
    method = run.get("method") if isinstance(run, dict) else None
    method, run = _origin(method, run, path)
    return _backbone(path, state, "intl-transfer checkpoint", method, run, [])


def _backbone(
    path: Path,
    state: Mapping[str, Tensor],
    kind: str,
    method: str | None,
    run: dict[str, Any] | None,
    dropped: list[str],
) -> Backbone:
    dropped = [*dropped, *(key for key in state if key.startswith("fc."))]
    state = {
        key: tensor.detach().float() if tensor.is_floating_point() else tensor
        for key, tensor in state.items()
        if not key.startswith("fc.")
    }
    return Backbone(state, str(path.resolve()), sha256_file(path), kind, method, run, dropped)


def _origin(method: Any, run: Any, path: Path) -> tuple[str | None, dict[str, Any] | None]:
    """What a file says of its pretraining, if it is such that a report can hold it."""
    try:
        run = json.loads(run) if isinstance(run, str) else run
        json.dumps(run, allow_nan=False)
        if isinstance(run, dict | None) and isinstance(method, str | None):
            return method, run
    except (TypeError, ValueError):
        pass  # neither JSON nor what JSON can hold
    warnings.warn(f"{path}: what it says of its pretraining is not readable; left out")
    return None, None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A file's dictionary, without running any code in it, and its string metadata."""
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if len(head) < 9:
        raise UserError(f"{path} is damaged: only {path.stat().st_size} bytes long")
    if head[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
        try:
            with safe_open(path, "pt") as opened:
                names = opened.keys()
                return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}
        except SafetensorError as error:
            raise UserError(f"{path} is damaged: {error}") from None
    try:
        zipped = head[:2] == b"PK"
        with warnings.catch_warnings():
            # Said of plain pickles, which are then refused in better words.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a damaged pickle can make its reader raise anything
        raise _unreadable(path, head, error) from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a dictionary, found {type(value).__name__}")
    return value, {}


def _unreadable(path: Path, head: bytes, error: Exception) -> UserError:
    """Tells a file that wants to run code from a plain pickle and from one that is damaged."""
    text = str(error)
    reason = text.splitlines()[0] if text else type(error).__name__
    if isinstance(error, pickle.UnpicklingError):
        # torch's own text is left out: it tells how to switch the protection off.
        wanted = re.search(r"GLOBAL (\S+)|but got (<class .*?>)|class (\S+)", text)
        if wanted:
            name = next(group for group in wanted.groups() if group)
            return UserError(
                f"{path} wants more than tensors and plain values, so it was not read: it holds "
                f"{name}. Where the file is trusted, save its state dict alone in a file of its own"
            )
        if head[:1] == b"\x80" and head[1] > 2:
            return UserError(
                f"{path} is a plain pickle, which could run code, so it was not read; expected "
                "what torch.save or safetensors writes"
            )
        reason = f"it begins with {head!r}" if head[:2] != b"PK" else "its pickle is broken"
    return UserError(
        f"{path} is damaged or not a checkpoint ({reason}); expected what torch.save or "
        "safetensors writes"
    )


def _first(state: Mapping[Any, Any]) -> str:
    return f"its first keys: {', '.join(list(map(str, state))[:5]) or 'none'}"


def _foreign(content: Mapping[str, Any], path: Path) -> tuple[dict[str, Tensor], str, list[str]]:
    """Plain, wrapped or prefixed torchvision state dicts, and Detectron2's own.

    Returns:
        The tensors under torchvision's names, the format, and names that were left out.
    """
    state = content
    for wrapper in ("state_dict", "model"):
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    tensors = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors and all(key.startswith("module.") for key in tensors):
        tensors = {key[len("module.") :]: v for key, v in tensors.items()}
    if is_detectron2(tensors):
        try:
            found = from_detectron2(tensors)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        return found, "Detectron2", [key for key in tensors if torchvision_name(key) is None]
    if "conv1.weight" in tensors and any(key.startswith("layer1.0.") for key in tensors):
        return tensors, "torchvision", []
    raise UserError(
        f"{path}: of no known format ({_first(state)}). Known: runs and checkpoints of "
        "this project, ResNet state dicts under torchvision's names (also inside 'state_dict' or "
        "'model', and behind 'module.'), Detectron2 weights"
    )
