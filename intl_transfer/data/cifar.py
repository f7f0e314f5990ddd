"""CIFAR-10 and CIFAR-100 from the files that their authors distribute.

Reads the Python version (pickles, by a reader that only creates arrays) and the binary version.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intl_transfer.data.augment import Pixels
from intl_transfer.data.source import ImageSource
from intl_transfer.errors import UserError
from intl_transfer.files.pickles import PickleError
from intl_transfer.files.torch_files import loads

_PIXELS = 3 * 32 * 32
_MOST_CLASSES = 1000
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
    """The folder with CIFAR's files, ``root`` or in it; None if there is none.

    Raises:
        UserError: if both CIFAR-10 and CIFAR-100 are in it, as in a folder of torchvision.
    """
    names = (*_PYTHON, *_BINARY)
    root = Path(root)
    if root.name in names and root.is_dir():
        return root
    found = [root / name for name in names if (root / name).is_dir()]
    other = [one for one in found if one.name.split("-")[1] != found[0].name.split("-")[1]]
    if other:
        raise UserError(
            f"{root} holds two data sets, {found[0].name} and {other[0].name}; give the folder of "
            f"one of them: {found[0]} or {other[0]}"
        )
    return found[0] if found else None


class CifarSource(ImageSource):
    """CIFAR-10 or CIFAR-100 (its 100 fine classes), in memory.

    Args:
        root: ``cifar-10-batches-py``, ``cifar-100-python``, ``cifar-10-batches-bin`` or
            ``cifar-100-binary``, or the folder that contains one of them.
        part: ``"train"`` or ``"test"``.

    Raises:
        UserError: if a file is missing or invalid.
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
        data = batch.get("data")
        if (
            not isinstance(data, np.ndarray)
            or data.dtype != np.uint8
            or data.shape[1:] != (_PIXELS,)
        ):
            raise UserError(f"{folder / name}: expected 'data' of uint8, (images, {_PIXELS})")
        images.append(data)
        labels.append(_labels(folder / name, key, batch.get(key), len(data)))
    classes = _unpickle(folder / meta).get(names_key)
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{folder / meta}: expected '{names_key}', a list of class names")
    return np.concatenate(images).reshape(-1, 3, 32, 32), np.concatenate(labels), classes


def _read_binary(folder: Path, part: str) -> _Set:
    train, test, label_bytes, names = _BINARY[folder.name]
    records = []
    for name in train if part == "train" else test:
        data = np.frombuffer(_read(folder / name), np.uint8)
        if len(data) % (label_bytes + _PIXELS):
            raise UserError(
                f"{folder / name} has {len(data)} bytes, not a multiple of "
                f"{label_bytes + _PIXELS}; it is cut off"
            )
        records.append(data.reshape(-1, label_bytes + _PIXELS))
    table = np.concatenate(records)
    text = _read(folder / names).decode("utf-8", "replace")
    classes = [line for line in text.splitlines() if line]
    pixels = np.ascontiguousarray(table[:, label_bytes:]).reshape(-1, 3, 32, 32)
    return pixels, table[:, label_bytes - 1].astype(np.int64), classes


def _unpickle(file: Path) -> dict[Any, Any]:
    try:
        found = loads(_read(file))
    except PickleError as error:
        raise UserError(f"{file} is not a CIFAR file, or damaged ({error})") from None
    if found.names:
        raise UserError(f"{file} is not a CIFAR file: it imports {found.names[0]}")
    value = found.value
    if not isinstance(value, dict):
        raise UserError(f"{file}: expected a dictionary, found {type(value).__name__}")
    # Written by Python 3, keys and names may be bytes.
    return {
        _as_text(key): [_as_text(x) for x in item] if isinstance(item, list) else item
        for key, item in value.items()
    }


def _as_text(value: Any) -> Any:
    return value.decode("latin1") if isinstance(value, bytes) else value


def _labels(file: Path, key: str, values: Any, images: int) -> NDArray[np.int64]:
    """Class indices, one per image."""
    numbers = values.tolist() if isinstance(values, np.ndarray) else values
    good = isinstance(numbers, list) and len(numbers) == images
    if not good or not all(type(n) is int and 0 <= n < _MOST_CLASSES for n in numbers):
        raise UserError(
            f"{file}: expected '{key}' to hold {images} class numbers, one for each image; the "
            "file is damaged, or not a CIFAR file"
        )
    return np.array(numbers, np.int64)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error})") from None
