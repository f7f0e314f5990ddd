"""Predictions beside the truth, as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.data import detection_utils as utils
from detectron2.utils.visualizer import Visualizer
from PIL import Image

_SIDE = 320


def draw_predictions(
    cfg: Any,
    model: torch.nn.Module,
    name: str,
    path: str | Path,
    count: int = 6,
    score: float = 0.3,
) -> None:
    """Draws a few test images: truth on the left, predictions on the right.

    Args:
        cfg: the configuration.
        model: the detector, weights loaded.
        name: the data set.
        path: the PNG to write.
        count: number of images.
        score: predictions below it are left out.
    """
    metadata = MetadataCatalog.get(name)
    truth = {str(r["image_id"]): r for r in DatasetCatalog.get(name)}
    rows = []
    training = model.training
    model.eval()
    try:
        for batch in build_detection_test_loader(cfg, name):
            for item in batch:
                with torch.no_grad():
                    instances = model([item])[0]["instances"].to("cpu")
                image = utils.read_image(item["file_name"], "RGB")
                scale = _SIDE / max(image.shape[:2])
                known = Visualizer(image, metadata, scale=scale).draw_dataset_dict(
                    truth[str(item["image_id"])]
                )
                found = Visualizer(image, metadata, scale=scale).draw_instance_predictions(
                    instances[instances.scores >= score]
                )
                rows.append(np.concatenate([_square(known), _square(found)], axis=1))
                if len(rows) == count:
                    break
            if len(rows) == count:
                break
    finally:
        model.train(training)
    if len(rows) % 2:
        rows.append(np.zeros_like(rows[0]))
    pairs = [np.concatenate(rows[i : i + 2], axis=1) for i in range(0, len(rows), 2)]
    Image.fromarray(np.concatenate(pairs, axis=0)).save(path)


def _square(drawing: Any) -> np.ndarray:
    """A drawing on a black square, so that images of any shape line up."""
    image = drawing.get_image()[:_SIDE, :_SIDE]
    height, width = image.shape[:2]
    return np.pad(image, ((0, _SIDE - height), (0, _SIDE - width), (0, 0)))
