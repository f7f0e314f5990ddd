"""CIFAR-10 and CIFAR-100 from the files that their authors distribute.

Either kind is read: the Python version (pickles, by a reader that makes arrays and nothing else)
and the binary version.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intl_transfer.data.augment import Pixels
from intl_transfer.data.source import ImageSource
from intl_transfer.errors import UserError

_PIXELS = 3 * 32 * 32
# folder: name, files of the training and of the test part, key of the labels, file and key of the
# class names
_PYTHON = {
    "cifar-10-batches-py": (
        [f"data_batch_{i}" for i in range(1, 6)],
        ["test_batch"],
        "labels",
        ("batches.meta", "label_names"),
    ),
    "cifar-100-python": (["train"], ["test"], "fine_labels", ("meta", "fine_label_names")),
}
# folder: files of both parts, bytes of labels before each image, file of the class names
_BINARY = {
    "cifar-10-batches-bin": (
        [f"data_batch_{i}.bin" for i in range(1, 6)],
        ["test_batch.bin"],
        1,
        "batches.meta.txt",
    ),
    "cifar-100-binary": (["train.bin"], ["test.bin"], 2, "fine_label_names.txt"),
}


def find(root: str | Path) -> Path | None:
    """The folder of CIFAR's files that ``root`` is or holds; None if there is none."""
    for folder in (Path(root), *(Path(root) / name for name in (*_PYTHON, *_BINARY))):
        if folder.name in (*_PYTHON, *_BINARY) and folder.is_dir():
            return folder
    return None


class CifarSource(ImageSource):
    """CIFAR-10 or CIFAR-100 (its 100 fine classes), in memory.

    Args:
        root: ``cifar-10-batches-py``, ``cifar-100-python``, ``cifar-10-batches-bin`` or
            ``cifar-100-binary``, or the folder that holds one of them.
        part: ``"train"`` or ``"test"``.

    Raises:
        UserError: if a file is missing or is not what it should be.
    """

    def __init__(self, root: str | Path, part: str = "train") -> None:
        folder = find(root)
        if folder is None:
            raise UserError(f"no CIFAR files in {root}; expected {', '.join((*_PYTHON, *_BINARY))}")
        self._folder, self._part = folder, part
        read = _read_python if folder.name in _PYTHON else _read_binary
        self._images, self.labels, self.classes = read(folder, part)
        if self.labels.size and self.labels.max() >= len(self.classes):
            raise UserError(
                f"{folder}: a label of {self.labels.max()} with {len(self.classes)} class names"
            )

    def name(self, index: int) -> str:
        """``FOLDER:PART/INDEX``."""
        return f"{self._folder}:{self._part}/{index}"

    def image(self, index: int) -> Pixels:
        """A copy of the image, (32, 32, 3)."""
        return np.ascontiguousarray(self._images[index].transpose(1, 2, 0))

    def content(self, index: int) -> bytes:
        """The pixels."""
        return bytes(self._images[index].tobytes())


_Set = tuple[Pixels, NDArray[np.int64], list[str]]


def _read_python(folder: Path, part: str) -> _Set:
    train, test, key, (meta, names_key) = _PYTHON[folder.name]
    images, labels = [], []
    for name in train if part == "train" else test:
        batch = _unpickle(folder / name)
        data, numbers = batch.get("data"), batch.get(key)
        if (
            not isinstance(data, np.ndarray)
            or data.dtype != np.uint8
            or data.shape[1:] != (_PIXELS,)
        ):
            raise UserError(f"{folder / name}: expected 'data' of uint8, (images, {_PIXELS})")
        if numbers is None or len(numbers) != len(data):
            raise UserError(f"{folder / name}: expected as many '{key}' as images")
        images.append(data)
        labels.append(np.array(numbers, np.int64))
    classes = [str(name) for name in _unpickle(folder / meta).get(names_key, [])]
    return np.concatenate(images).reshape(-1, 3, 32, 32), np.concatenate(labels), classes


def _read_binary(folder: Path, part: str) -> _Set:
    train, test, label_bytes, names = _BINARY[folder.name]
    records = []
    for name in train if part == "train" else test:
        data = np.frombuffer(_read(folder / name), np.uint8)
        if len(data) % (label_bytes + _PIXELS):
            raise UserError(
                f"{folder / name} has {len(data)} bytes, no multiple of {label_bytes + _PIXELS}; "
                "it is cut off"
            )
        records.append(data.reshape(-1, label_bytes + _PIXELS))
    table = np.concatenate(records)
    classes = [line for line in _read(folder / names).decode().splitlines() if line]
    pixels = np.ascontiguousarray(table[:, label_bytes:]).reshape(-1, 3, 32, 32)
    return pixels, table[:, label_bytes - 1].astype(np.int64), classes


class _ArraysOnly(pickle.Unpickler):
    """Makes NumPy arrays and plain values; refuses to look anything else up."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            from numpy._core.multiarray import _reconstruct

            return _reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            import _codecs

            return _codecs.encode
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file does")


def _unpickle(file: Path) -> dict[str, Any]:
    try:
        value = _ArraysOnly(io.BytesIO(_read(file)), encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{file} is not a CIFAR file, or damaged ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: expected a dictionary, found {type(value).__name__}")

    def plain(x: Any) -> Any:
        return x.decode() if isinstance(x, bytes) else x

    return {
        plain(key): [plain(x) for x in item] if isinstance(item, list) else item
        for key, item in value.items()
    }


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error})") from None
