"""Images for pretraining and classification, from folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from intl_transfer.data.views import View
from intl_transfer.errors import UserError


def image_folder(root: str | Path) -> list[tuple[str, int]]:
    """Lists a folder of ``CLASS/IMAGE`` files.

    Args:
        root: the folder, for example ``imagenet/train``.

    Returns:
        (file, class index) pairs, in the order of :class:`torchvision.datasets.ImageFolder`.

    Raises:
        UserError: if the folder is absent or holds no image in any class folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(
            f"no image folder {root} (looked for {root.resolve()}); expected CLASS/IMAGE files in "
            "it. Give another with data.root=DIR"
        )
    try:
        return list(ImageFolder(str(root)).samples)
    except FileNotFoundError as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{root}: no images in class folders ({first})") from None


def decode(path: str) -> Tensor:
    """Reads an image file as uint8 RGB, (3, H, W).

    Raises:
        UserError: if the file cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))  # a copy: torch wants writable memory
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise UserError(f"{path} cannot be read as an image ({error})") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


class ViewsDataset(Dataset[list[Tensor]]):
    """Views of images, each drawn from a random stream of its own.

    Items are asked for by ``(epoch, index)``. The views depend on the seed, the epoch and the
    index alone, not on which worker or rank draws them nor on what was drawn before, so that a
    resumed run and a run on another number of ranks see the same images.

    Args:
        files: image files.
        views: one transformation per view.
        seed: of the run.
        cache: keep all decoded images in memory (for small sets).
    """

    def __init__(
        self, files: Sequence[str], views: Sequence[View], seed: int, cache: bool = False
    ) -> None:
        self._files = list(files)
        self._views = list(views)
        self._seed = seed
        self._cached = [decode(file) for file in self._files] if cache else None

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, key: tuple[int, int]) -> list[Tensor]:
        """The views of image ``index`` in ``epoch``: uint8 tensors (3, size, size)."""
        epoch, index = key
        image = self._cached[index] if self._cached else decode(self._files[index])
        words = np.random.SeedSequence((self._seed, epoch, index)).generate_state(2, np.uint32)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(words[0]) << 32 | int(words[1]))
            return [view(image) for view in self._views]
