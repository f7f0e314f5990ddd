"""Features of labeled images from a frozen backbone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from intl_transfer.data.augment import Interpolation, Pixels
from intl_transfer.data.images import UnreadableImageError
from intl_transfer.data.loaders import worker_options
from intl_transfer.data.source import ImageSource, check_labels, image_of
from intl_transfer.data.views import normalize
from intl_transfer.errors import UserError
from intl_transfer.models import evaluation_mode
from intl_transfer.runs.distributed import Ranks
from intl_transfer.runs.finite import StateNotFiniteError

#: As in published evaluations: 224 px of 256.
CROP_PCT = 0.875
_SAMPLE = 256  # images of a set that are tried before it is used
Prepare = Callable[[Tensor, torch.device], Tensor]


class EvaluationImages(Dataset[tuple[Tensor, int]]):
    """The images of a source without augmentation, by :func:`center_crop`.

    Args:
        source: labeled images.
        size: side of the crop, in pixels.
        crop_pct: size of the crop as a fraction of the resized image's short side.
        interpolation: of the resize.

    Attributes:
        size: side of the crop, in pixels.
        unreadable: of this rank's images, the indices of those without features, ascending;
            empty before :func:`extract_features`.

    Raises:
        UserError: if a label of the source is none of its classes.
    """

    def __init__(
        self,
        source: ImageSource,
        size: int,
        crop_pct: float = CROP_PCT,
        interpolation: Interpolation = "bilinear",
    ) -> None:
        check_labels(source)
        self._source, self.size = source, size
        self.unreadable: list[int] = []
        self._crop_pct, self._interpolation = crop_pct, interpolation

    def __len__(self) -> int:
        return len(self._source)

    def is_readable(self, index: int) -> bool:
        """Whether an image can be decoded."""
        try:
            self._source.image(index)
        except UnreadableImageError:
            return False
        return True

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """An image (size, size, 3), uint8, and its label; -1 and black for an unreadable one."""
        try:
            image = image_of(self._source, index)
        except UnreadableImageError:
            return torch.zeros(self.size, self.size, 3, dtype=torch.uint8), -1
        crop = center_crop(image, self.size, self._crop_pct, self._interpolation)
        return torch.from_numpy(crop), int(self._source.labels[index])


def center_crop(
    image: Pixels,
    size: int,
    crop_pct: float = CROP_PCT,
    interpolation: Interpolation = "bilinear",
) -> Pixels:
    """Torchvision's ``Resize`` and ``CenterCrop`` of a Pillow image, bit-identical.

    Args:
        image: uint8 (H, W, 3).
        size: side of the result, in pixels.
        crop_pct: the image is resized to a short side of ``floor(size / crop_pct)``, 256 for 224,
            unless it already has that size.
        interpolation: of the resize.

    Returns:
        (size, size, 3).
    """
    short_side = math.floor(size / crop_pct + 1e-6)
    mode = InterpolationMode(interpolation)
    # It takes Pillow images too, which its annotations leave out.
    resized = TF.resize(Image.fromarray(image), [short_side], mode)  # type: ignore[arg-type]
    return np.array(TF.center_crop(resized, [size, size]))


@torch.no_grad()
def extract_features(
    backbone: nn.Module,
    images: EvaluationImages,
    ranks: Ranks,
    batch_size: int = 128,
    workers: int = 0,
    prepare: Prepare = normalize,
) -> tuple[Tensor, Tensor]:
    """This rank's part of a data set's features: images rank, rank + W, rank + 2 W, ...

    The backbone is temporarily in evaluation mode; then each of its modules is as before.

    Args:
        backbone: images (B, 3, H, W) to features (B, width).
        images: the set.
        ranks: this process's place.
        batch_size: images at once.
        workers: loading processes.
        prepare: preprocesses uint8 images (B, H, W, 3), on the device.

    Returns:
        Features, float32 (n, width), and labels (n,), on the backbone's device. Unreadable images
        are omitted.
    """
    # An empty part still needs features of the right width.
    blank = torch.zeros(1, images.size, images.size, 3, dtype=torch.uint8)
    with evaluation_mode(backbone):
        features = [backbone(prepare(blank, ranks.device)).float()[:0]]
        labels = [torch.zeros(0, dtype=torch.int64, device=ranks.device)]
        known = [torch.zeros(0, dtype=torch.bool)]
        for batch, label in own_share(images, ranks, batch_size, workers):
            output = backbone(prepare(batch, ranks.device)).float()
            known.append(label >= 0)
            is_known = known[-1].to(ranks.device)
            features.append(output[is_known])
            labels.append(label.to(ranks.device)[is_known])
    own = own_indices(images, ranks)
    images.unreadable = own[~torch.cat(known).numpy()].tolist()
    return torch.cat(features), torch.cat(labels)


def check_features(features: Tensor, ranks: Ranks) -> None:
    """Refuses features with NaN or infinity.

    Args:
        features: this rank's, (n, width).
        ranks: this process's place; all ranks get the same answer.

    Raises:
        StateNotFiniteError: with the number of affected images.
    """
    broken = len(features) - int(features.isfinite().all(1).sum())
    counts = ranks.gather_objects((broken, len(features)))
    total, images = (sum(numbers) for numbers in zip(*counts, strict=True))
    if total:
        raise StateNotFiniteError(
            f"the features of {total} of {images} images contain NaN or infinity; check the "
            "weights, or use engine.precision=fp32"
        )


def count_over(ranks: Ranks, part: tuple[Tensor, Tensor]) -> int:
    """The number of images with features, over all ranks."""
    return int(sum(ranks.gather_objects(len(part[1]))))


def check_readable(images: EvaluationImages, read: int, limit: float, key: str) -> int:
    """The number of unreadable images of a data set.

    Args:
        images: the set.
        read: number of readable ones, over all ranks.
        limit: maximum fraction that may be unreadable.
        key: of the set, for messages.

    Raises:
        UserError: if too many, or all, are unreadable.
    """
    missing = len(images) - read
    if _are_too_many(missing, len(images), limit):
        raise UserError(
            f"{key}: {missing} of {len(images)} images cannot be read, over the limit of "
            f"data.max_unreadable={limit:g}; expected images that OpenCV or Pillow can open"
        )
    return missing


def check_sample(images: EvaluationImages, ranks: Ranks, limit: float, key: str) -> None:
    """Refuses a data set with too many unreadable images before anything is computed from it.

    A sample from all of the set is read, and everything only if too many of that are unreadable:
    no set within the limit is refused, and one far beyond it is found in seconds.

    Args:
        images: the set.
        ranks: this process's place; each reads a share, and all raise or none does.
        limit: maximum fraction that may be unreadable.
        key: of the set, for messages.

    Raises:
        UserError: as :func:`check_readable`.
    """
    sample = np.unique(np.linspace(0, len(images) - 1, _SAMPLE).round().astype(int))
    missing = 0
    for indices in (sample, np.arange(len(images))):
        own = indices[ranks.rank :: ranks.world_size].tolist()
        missing = sum(ranks.gather_objects(sum(not images.is_readable(i) for i in own)))
        if not _are_too_many(missing, len(indices), limit):
            return
    check_readable(images, len(images) - missing, limit, key)


def _are_too_many(missing: int, count: int, limit: float) -> bool:
    return missing > limit * count or missing == count


def own_indices(images: EvaluationImages, ranks: Ranks) -> NDArray[np.int64]:
    """Indices of this rank's images: rank, rank + W, rank + 2 W, ..."""
    return np.arange(ranks.rank, len(images), ranks.world_size)


def own_share(
    images: EvaluationImages, ranks: Ranks, batch_size: int = 128, workers: int = 0
) -> Iterable[tuple[Tensor, Tensor]]:
    """Batches of this rank's images.

    Yields:
        uint8 (B, size, size, 3), and labels (B,), -1 for an unreadable image.
    """
    return DataLoader(
        images,
        batch_size=batch_size,
        sampler=own_indices(images, ranks).tolist(),
        # A separate generator: the loader would otherwise draw from the training's.
        generator=torch.Generator(),
        **worker_options(workers),
    )


def on_every_rank(
    features: Tensor, labels: Tensor, images: EvaluationImages, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """Gathers the features of all ranks, in the order of the images, as one process has them.

    Args:
        features: this rank's, from :func:`extract_features`.
        labels: theirs.
        images: their data set, which knows those without features.
        ranks: this process's place.
    """
    if ranks.world_size == 1:
        return features, labels
    indices = torch.from_numpy(np.setdiff1d(own_indices(images, ranks), images.unreadable))
    shares = ranks.gather_objects((features.cpu(), labels.cpu(), indices))
    order = torch.cat([indices for _, _, indices in shares]).argsort()
    joined = [torch.cat([share[part] for share in shares])[order] for part in (0, 1)]
    return joined[0].to(features.device), joined[1].to(labels.device)
