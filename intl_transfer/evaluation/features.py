"""Features of labelled images from a frozen backbone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from intl_transfer.data.augment import Pixels, crop_and_resize
from intl_transfer.data.images import UnreadableImageError
from intl_transfer.data.sources import ImageSource
from intl_transfer.data.views import normalise
from intl_transfer.runs.distributed import Ranks


class EvaluationImages(Dataset[tuple[Tensor, int]]):
    """The images of a source as they are looked at without augmentation.

    The centre crop that a resize of the short side to ``size * 256 / 224`` and a crop of ``size``
    give; images that already have that size are left as they are.

    Args:
        source: labelled images.
        size: side of the crop, in pixels.

    Attributes:
        size: side of the crop, in pixels.
    """

    def __init__(self, source: ImageSource, size: int) -> None:
        self._source, self.size = source, size

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """An image (size, size, 3), uint8, and its label; -1 and black for an unreadable one."""
        try:
            image = self._source.image(index)
        except UnreadableImageError:
            return torch.zeros(self.size, self.size, 3, dtype=torch.uint8), -1
        return torch.from_numpy(centre_crop(image, self.size)), int(self._source.labels[index])


def centre_crop(image: Pixels, size: int) -> Pixels:
    """Resizes the short side to ``size * 256 / 224`` and cuts the centre of ``size`` out.

    Args:
        image: uint8 (H, W, 3).
        size: side of the result.
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    # The box whose resize gives the same pixels, without those that would be cut off.
    side = max(1, round(min(height, width) * 224 / 256))
    return crop_and_resize(image, (height - side) // 2, (width - side) // 2, side, side, size)


@torch.no_grad()
def extract_features(
    backbone: nn.Module,
    images: EvaluationImages,
    ranks: Ranks,
    batch_size: int = 128,
    workers: int = 0,
) -> tuple[Tensor, Tensor]:
    """This rank's share of a set's features: images rank, rank + W, rank + 2 W, ...

    The backbone is put into evaluation mode for the time, and back.

    Args:
        backbone: images (B, 3, H, W) to features (B, width).
        images: the set.
        ranks: this process's place.
        batch_size: images at once.
        workers: loading processes.

    Returns:
        Features, float32 (n, width), and labels (n,), on the backbone's device. Unreadable images
        are left out.
    """
    share = np.arange(ranks.rank, len(images), ranks.world_size)
    # A generator of its own: the loader would otherwise draw from the training's.
    loader = DataLoader(
        images,
        batch_size=batch_size,
        sampler=share.tolist(),
        num_workers=workers,
        generator=torch.Generator(),
    )
    was_training = backbone.training
    backbone.eval()
    # An empty share has features too: none, of the right width.
    blank = torch.zeros(1, images.size, images.size, 3, dtype=torch.uint8)
    try:
        features = [backbone(normalise(blank, ranks.device)).float()[:0]]
        labels = [torch.zeros(0, dtype=torch.int64, device=ranks.device)]
        for batch, label in loader:
            output = backbone(normalise(batch, ranks.device)).float()
            known = (label >= 0).to(ranks.device)
            features.append(output[known])
            labels.append(label.to(ranks.device)[known])
    finally:
        backbone.train(was_training)
    return torch.cat(features), torch.cat(labels)
