"""A data set: images in one folder, with their classes in a table beside them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from intl_transfer.data.augment import Pixels
from intl_transfer.data.images import read_image
from intl_transfer.data.source import ImageSource
from intl_transfer.data.sources import SourceKind
from intl_transfer.errors import UserError

TABLE = "labels.csv"


class TableSource(ImageSource):
    """The images that ``labels.csv`` lists, in its order: lines of ``FILE,CLASS``.

    Args:
        root: the folder that holds the table and the images.
        upright: turn images as their orientation tags say.

    Raises:
        UserError: if a line is not of this form.
    """

    def __init__(self, root: str | Path, upright: bool = True) -> None:
        self._root, self._upright = Path(root), upright
        with open(self._root / TABLE, newline="") as opened:
            lines = list(csv.reader(opened))
        for number, line in enumerate(lines, 1):
            if len(line) != 2:
                found = ",".join(line)
                raise UserError(
                    f"{self._root / TABLE}, line {number}: expected FILE,CLASS, found '{found}'"
                )
        self._files = [file for file, _ in lines]
        self.classes = sorted({label for _, label in lines})
        self.labels = np.array([self.classes.index(label) for _, label in lines], np.int64)

    def name(self, index: int) -> str:
        """The image's path."""
        return str(self._root / self._files[index])

    def image(self, index: int) -> Pixels:
        """Decodes an image as uint8 RGB, (H, W, 3)."""
        return read_image(self.name(index), self._upright)

    def content(self, index: int) -> bytes:
        """An image as it is stored."""
        return Path(self.name(index)).read_bytes()


SOURCE = SourceKind(
    lambda place: (Path(place) / TABLE).is_file(),
    lambda place, part, upright: TableSource(place, upright),
)
