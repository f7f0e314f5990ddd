"""Prepares images of a data set for a detector, in training and evaluation.

Like Detectron2's ``DatasetMapper`` and test loader, except that files are read by
:mod:`intl_transfer.data.images`, and an unusable image is reported by name from any process.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from PIL import Image

from intl_transfer.data.images import read_image
from intl_transfer.errors import UserError
from intl_transfer.runs.controls import noisy


class OneRankError(UserError):
    """An error that may occur on a single rank, which must report it."""


class ImageError(OneRankError):
    """An image cannot be used; raised on its rank."""


class Mapper(DatasetMapper):
    """Makes a model's input from one of Detectron2's records, like its own mapper.

    Args:
        cfg: the configuration; ``CONTROL.NOISE`` is applied to every image.
        is_train: whether for training.
    """

    def __init__(self, cfg: Any, is_train: bool) -> None:
        super().__init__(cfg, is_train)
        self._noise = float(cfg.CONTROL.NOISE)

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Reads, augments and packs one image; draws from the global generators.

        Args:
            dataset_dict: with ``file_name``, and ``width`` and ``height``, which the file must
                match.

        Raises:
            UserError: if the file cannot be read.
            ValueError: if it has another size.
        """
        record = copy.deepcopy(dataset_dict)
        image = noisy(read_as(record["file_name"], self.image_format), self._noise)
        utils.check_image_size(record, image)
        given = T.AugInput(image)
        transforms = self.augmentations(given)
        image = given.image
        record["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if not self.is_train:
            record.pop("annotations", None)
        elif "annotations" in record:
            self._transform_annotations(record, transforms, image.shape[:2])
        return record


def read_as(file: str, image_format: str) -> np.ndarray:
    """An image, upright, in one of Detectron2's formats (``INPUT.FORMAT``), (H, W, C).

    Raises:
        UserError: if it cannot be read.
    """
    pixels = read_image(file)
    if image_format == "RGB":
        return pixels
    if image_format == "BGR":
        return pixels[:, :, ::-1]
    converted: np.ndarray = utils.convert_PIL_to_numpy(Image.fromarray(pixels), image_format)
    return converted


class Named:
    """A mapper that returns an :class:`ImageError` for an unusable image.

    It is not raised, since a worker process would wrap it in a traceback.

    Args:
        mapper: makes a model's input from a record.
    """

    def __init__(self, mapper: Any) -> None:
        self._mapper = mapper

    def __call__(self, record: dict[str, Any]) -> dict[str, Any] | ImageError:
        """The mapper's result for a record, or an error."""
        try:
            example: dict[str, Any] = self._mapper(record)
            return example
        except UserError as error:  # its message contains the file
            return ImageError(f"{error}; repair it or remove it from the data set")
        except (OSError, ValueError, SyntaxError) as error:
            return ImageError(
                f"image {record.get('file_name')} cannot be used ({error}); repair it or "
                "remove it from the data set"
            )


class TestImages:
    """This rank's part of a test set, in batches.

    Args:
        cfg: the configuration.
        name: a registered data set.
    """

    __test__ = False  # not a test

    def __init__(self, cfg: Any, name: str) -> None:
        self._loader = build_detection_test_loader(cfg, name, mapper=Named(Mapper(cfg, False)))

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for batch in self._loader:
            for example in batch:
                if isinstance(example, ImageError):
                    raise example
            yield batch
