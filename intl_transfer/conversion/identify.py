"""Identifies files that are not checkpoints by their first bytes, with advice.

Lists only files that no reader of this project supports.
"""

from __future__ import annotations

import codecs
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from intl_transfer.files.placeholders import Stored

#: Number of bytes that :func:`what_it_is` needs; the signature of a tar is at 257.
HEAD = 512
_RESAVE = "torch.save(model.state_dict(), FILE)"
_DOWNLOAD = (
    "the download returned a web page instead of the file; download it again, logged in if "
    "necessary"
)
_UNPACK = "unpack it and give the file inside"
_ARRAY = f"load it there and save the arrays under torchvision's names: {_RESAVE}"
# By the first bytes of a file.
_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a git-lfs pointer", "fetch the file itself: git lfs pull"),
    (b"<!doctype html", "an HTML page", _DOWNLOAD),
    (b"<html", "an HTML page", _DOWNLOAD),
    (b"<?xml", "an XML document", _DOWNLOAD),
    (b"\x1f\x8b", "packed by gzip", f"{_UNPACK}: gunzip, or tar -xzf"),
    (b"BZh", "packed by bzip2", f"{_UNPACK}: bunzip2, or tar -xjf"),
    (b"\xfd7zXZ\x00", "packed by xz", f"{_UNPACK}: unxz, or tar -xJf"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd", f"{_UNPACK}: unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (
        b"\x93NUMPY",
        "one array of numpy (.npy)",
        "a checkpoint names its tensors: save a dictionary of them with torch.save",
    ),
    (
        b"\x89HDF\r\n\x1a\n",
        "HDF5, as Keras saves weights",
        _ARRAY,
    ),
    (b"GGUF", "a GGUF file of a language model", "give a ResNet's checkpoint"),
    (b"%PDF", "a PDF document", _DOWNLOAD),
    (b"\x04\x22\x4d\x18", "packed by lz4", f"{_UNPACK}: unlz4"),
    (b"\xff\xd8\xff", "an image", "give the checkpoint"),
    (b"\x89PNG", "an image", "give the checkpoint"),
)
_ONNX = (
    "an ONNX model",
    "export keeps no batch norms apart; give the checkpoint that it was exported from",
)
_SCRIPTED = (
    "TorchScript (torch.jit.save)",
    "where you trust its author, take its weights: torch.save(torch.jit.load(FILE, "
    "map_location='cpu').state_dict(), 'weights.pth')",
)
_EXPORTED = (
    "an exported program (torch.export)",
    "take its weights: torch.save(torch.export.load(FILE).state_dict, 'weights.pth')",
)
_ARRAYS = (
    "numpy's archive of arrays (.npz)",
    "save them as tensors: torch.save({k: torch.from_numpy(v) for k, v in "
    "numpy.load(FILE).items()}, 'weights.pth')",
)
_ENCRYPTED = ("an encrypted zip archive", "unpack it with its password and give the file inside")
_ZIPPED = ("a zip archive of files", f"{_UNPACK}: unzip")
_INDEX = (
    "the index of a checkpoint in several files",
    "give the folder that holds it with all of them",
)
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.(?:safetensors|bin)$")
_TENSORFLOW = re.compile(r"\.data-\d{5}-of-\d{5}$|^saved_model\.pb$|\.ckpt(?:-\d+)?\.index$")
# Constructors of tensors without plain numbers, by common name.
_NO_NUMBERS = {
    "_rebuild_sparse_tensor": ("sparse", "{k: v.to_dense() for k, v in state.items()}"),
    "_rebuild_sparse_csr_tensor": ("sparse", "{k: v.to_dense() for k, v in state.items()}"),
    "_rebuild_meta_tensor_no_storage": (
        "on the meta device, without numbers",
        "the state_dict() of a model whose weights are loaded",
    ),
    "_rebuild_qtensor": ("quantized", "{k: v.dequantize() for k, v in state.items()}"),
    "_rebuild_nested_tensor": ("nested", "plain tensors"),
    "_rebuild_wrapper_subclass": (
        "distributed (DTensor), each process with a part of it",
        "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))",
    ),
}
# Names that other architectures have.
_ARCHITECTURES: tuple[tuple[str, str], ...] = (
    (r"cls_token$", "a Vision Transformer"),
    (r"relative_position_bias_table$", "a Swin Transformer or another with windows"),
    (r"blocks\.\d+\.attn\.qkv\.|layers?\.\d+\.attention\.|encoder_layer_\d+\.self_att",
     "a Vision Transformer"),
    (r"stages\.\d+\.(?:blocks\.|layers\.)?\d+\.(?:conv_dw|dwconv)|downsample_layers\.\d",
     "a ConvNeXt"),
    (r"denseblock\d", "a DenseNet"),
    (r"trunk_output\.|\bs1\.b1\.conv", "a RegNet"),
    (r"blocks\.\d+\.\d+\.(?:conv_pw|conv_dw|conv_pwl)\.|inverted_?residual",
     "an EfficientNet or MobileNet"),
    (r"stages\.\d+\.blocks\.\d+\.norm1\.", "a pre-activation ResNet (ResNet v2)"),
    (r"features\.\d+\.squeeze\.", "a SqueezeNet"),
    (r"^(?:.*[./])?features\.\d+\.weight$", "a VGG or AlexNet"),
    (r"transformer\.|\.self_attn\.", "a Transformer"),
)  # fmt: skip


def what_it_is(path: Path, head: bytes) -> tuple[str, str] | None:
    """The type of a file and what to do with it; None for a possible checkpoint.

    Args:
        path: the file.
        head: its first :data:`HEAD` bytes.
    """
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginning, name, step in _BEGINNINGS:
        if head.startswith(beginning) or (beginning[:1] == b"<" and start.startswith(beginning)):
            return name, step
    if head[257:262] == b"ustar":
        return "a tar archive", f"{_UNPACK}: tar -xf"
    if head[:2] == b"PK":
        return _in_zip(path)
    if head[:1] == b"\x08" and (b"pytorch" in head[:64] or b"onnx" in head[:64].lower()):
        return _ONNX
    if path.suffix == ".onnx":
        return _ONNX
    if re.match(rb"<[a-z!?]", start):
        return "a page of markup", _DOWNLOAD
    if _TENSORFLOW.search(path.name):
        return (
            "a part of TensorFlow's checkpoint",
            _ARRAY,
        )
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model", f"give the checkpoint that it was exported from; {_ARRAY}"
    if path.suffix == ".msgpack":
        return "Flax's or another's msgpack", _ARRAY
    if not head.strip(b"\0"):
        return "zeros, as an unfinished download leaves", "fetch it again"
    if start[:1] == b"{" and head[8:9] != b"{":
        return (
            _INDEX
            if path.name.endswith(".index.json")
            else ("JSON text", "give the checkpoint that it belongs to")
        )
    return None


def first_words(head: bytes) -> str | None:
    """How text begins; None for anything that is none. Old pickles are text, too.

    Args:
        head: a file's first :data:`HEAD` bytes.
    """
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # may be cut in a letter
    except UnicodeDecodeError:
        return None
    lines = text.split("\n")
    is_text = all(c.isprintable() or c in "\r\n\t\ufeff" for c in text)
    return lines[0].strip()[:40] if is_text and lines else None


def _in_zip(path: Path) -> tuple[str, str] | None:
    """Identifies zip archives except torch's; damaged ones are left to their reader."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except Exception:  # a damaged directory can cause any exception
        return None
    names = [record.filename for record in records]
    if any(record.flag_bits & 1 for record in records):
        return _ENCRYPTED
    if any(name.endswith(("/constants.pkl", "/code/")) or "/code/" in name for name in names):
        return _SCRIPTED
    if any(name.endswith(("/archive_format", "/models/model.json")) for name in names):
        return _EXPORTED
    if any(name.count("/") == 1 and name.endswith("/data.pkl") for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return _ARRAYS
    return _ZIPPED if names else None


def shard(path: Path) -> str | None:
    """A message for one file of a split checkpoint; None for a complete one."""
    found = _SHARD.search(path.name)
    if found is None or int(found[1]) < 2:
        return None
    return (
        f"one of {int(found[1])} files of one checkpoint; give the folder that holds all of them "
        "with their index"
    )


def odd_tensor(value: Any, depth: int = 4) -> tuple[str, str] | None:
    """The kind of a tensor without plain numbers, and what to save instead.

    Args:
        value: from a file's reader.
        depth: maximum nesting of wrappers, such as parameters.
    """
    if not isinstance(value, Stored) or depth == 0:
        return None
    known = _NO_NUMBERS.get(value.name.rpartition(".")[2])
    if known is not None:
        return known
    inner = (odd_tensor(part, depth - 1) for part in (value.arguments or ())[:4])
    return next((kind for kind in inner if kind is not None), None)


def architecture_in_words(names: Iterable[str]) -> str | None:
    """The other architecture with such names, with an example; None if unknown."""
    names = list(names)
    for pattern, words in _ARCHITECTURES:
        for name in names:
            if re.search(pattern, name):
                return f"{words} (it has '{name}')"
    return None


def is_optimizer_alone(values: Mapping[Any, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file contains an optimizer's state and no network."""
    if "param_groups" in values:
        return True
    words = ("optim", "scaler", "scheduler")
    return (
        bool(values)
        and any("optim" in str(key).lower() for key in values)
        and all(any(word in key.partition("/")[0].lower() for word in words) for key in tensors)
    )


def listing(tensors: Mapping[str, Tensor]) -> str:
    """The content of a file by prefixes of its names, to help find a network."""
    groups: dict[str, int] = {}
    for name in tensors:
        folder, _, last = name.rpartition("/")
        top = f"{folder}/" * bool(folder) + last.partition(".")[0]
        groups[top] = groups.get(top, 0) + 1
    most = sorted(groups.items(), key=lambda group: -group[1])[:6]
    words = ", ".join(f"'{name}' ({count})" for name, count in most)
    more = len(groups) - len(most)
    return f"{len(tensors)} tensors: {words}" + (f" and {more} more groups" if more > 0 else "")
