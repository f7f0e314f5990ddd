"""Finds the network's file in folders of Hugging Face, timm and accelerate."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from intl_transfer.conversion.reading import Content, read_content, small_json, unwrapped
from intl_transfer.errors import UserError
from intl_transfer.runs import sha256_file

_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin", "pytorch_model.safetensors")
# Of accelerate, the second and further networks of a training.
_NUMBERED = re.compile(r"(?:pytorch_)?model_\d+\.(?:safetensors|bin)")
_CONFIG = "config.json"


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
