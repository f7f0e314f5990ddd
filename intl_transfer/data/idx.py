"""MNIST's format, IDX, in which Fashion-MNIST comes (Debian's ``dataset-fashion-mnist``)."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from intl_transfer.data.augment import Pixels
from intl_transfer.data.source import ImageSource
from intl_transfer.errors import UserError

_PARTS = {"train": "train", "test": "t10k"}
_IMAGES, _LABELS = 0x803, 0x801  # unsigned bytes in three dimensions, and in one
_LARGEST = 1 << 30  # bytes, unpacked


def find(root: str | Path) -> Path | None:
    """The folder with IDX files, ``root`` or in it; None if there is none."""
    for folder in (Path(root), Path(root) / "fashion-mnist"):
        if _file(folder, "train-images-idx3-ubyte") is not None:
            return folder
    return None


def _file(folder: Path, name: str) -> Path | None:
    return next((f for f in (folder / f"{name}.gz", folder / name) if f.is_file()), None)


class IdxSource(ImageSource):
    """Grayscale images of MNIST's layout, in memory, as RGB.

    Args:
        root: folder of ``train-images-idx3-ubyte[.gz]`` and the other three, or its parent.
        part: ``"train"`` or ``"test"``.

    Raises:
        UserError: if a file is missing, truncated or not IDX.
    """

    def __init__(self, root: str | Path, part: str = "train") -> None:
        folder = find(root)
        if folder is None:
            raise UserError(f"no IDX files in {root}; expected train-images-idx3-ubyte[.gz]")
        self._folder, self._part = folder, part
        self._images = _read(folder, f"{_PARTS[part]}-images-idx3-ubyte", _IMAGES)
        labels = _read(folder, f"{_PARTS[part]}-labels-idx1-ubyte", _LABELS)
        if len(labels) != len(self._images):
            raise UserError(
                f"{folder}: {len(self._images)} {part} images and {len(labels)} labels; expected "
                "as many"
            )
        self.labels = labels.astype(np.int64)
        self.classes = [str(number) for number in range(int(self.labels.max(initial=-1)) + 1)]

    def name(self, index: int) -> str:
        """``FOLDER:PART/INDEX``."""
        return f"{self._folder}:{self._part}/{index}"

    def image(self, index: int) -> Pixels:
        """The image in three equal channels, (H, W, 3)."""
        return np.repeat(self._images[index][..., None], 3, axis=2)

    def content(self, index: int) -> bytes:
        """The pixels."""
        return bytes(self._images[index].tobytes())


def _read(folder: Path, name: str, magic: int) -> NDArray[np.uint8]:
    """The array of an IDX file: its magic number, its sizes (big-endian), its bytes."""
    file = _file(folder, name)
    if file is None:
        raise UserError(f"{folder}: no {name}[.gz]; all four files are needed")
    try:
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as opened:
            data = opened.read(_LARGEST)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file} cannot be read ({error})") from None
    dimensions = magic & 0xFF
    head = np.frombuffer(data[: 4 * (1 + dimensions)], ">u4")
    if len(head) != 1 + dimensions or head[0] != magic:
        raise UserError(f"{file} is no IDX file of bytes in {dimensions} dimension(s)")
    shape = tuple(int(size) for size in head[1:])
    content = np.frombuffer(data, np.uint8, offset=4 * (1 + dimensions))
    if len(content) != int(np.prod(shape, dtype=np.int64)):
        raise UserError(f"{file}: {len(content)} bytes, its head says {shape}; it is damaged")
    return content.reshape(shape)
