"""Applies a trained detector to images; prints and draws its detections."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from PIL import Image

from detection import datasets, detector
from detection.checks import check_settings
from detection.config import config_of, load_config, number_of_classes
from detection.weights import load_detector, read_weights, set_by_user
from intl_transfer.data.class_names import unique_names
from intl_transfer.data.drawing import DrawnObject, draw_objects, mask_outlines
from intl_transfer.data.images import read_image
from intl_transfer.devices import Gpus, gpus
from intl_transfer.errors import UserError

SCORE = 0.5  # detections below it are not shown
_LEAST, _MOST = 480, 1600  # longest side of the drawn image


def demonstrate(
    pictures: Sequence[str],
    weights: str | None,
    config: str | None,
    overrides: Sequence[str] = (),
    folder: str | Path = ".",
) -> list[Path]:
    """Runs a detector on images; prints and draws its detections.

    Args:
        pictures: image files of any size and mode.
        weights: a fine-tuned detector's file, or its run directory.
        config: the detector's configuration; None for the run directory's own.
        overrides: KEY VALUE pairs.
        folder: for ``NAME_detections.png``.

    Returns:
        The files written.

    Raises:
        UserError: for unusable weights, configuration or images; all images are opened before the
            detector is built.
    """
    file = detector.find(weights, "--demo")
    beside = file.parent / "config.yaml"
    if config is None and not file.is_file():
        raise UserError(
            f"weights not found: looked for {file} ({file.resolve()}). A run directory or a "
            "detector's file is sufficient; any other file also needs --config"
        )
    content = read_weights(str(file))
    record = detector.stated(content, file)
    if config is not None:
        cfg = load_config(config, overrides)
    elif record is not None:
        cfg = config_of(record.config, overrides, str(file))
    elif beside.is_file():
        cfg = load_config(str(beside), overrides)
    else:
        raise UserError(f"{file} does not state its configuration: --config is needed")
    if record is not None:
        given = set(overrides[::2])
        if config is not None:
            given |= set_by_user(config, is_asked=detector.decides_test)
        detector.follow_detector(cfg, record, given)
    check_settings(cfg, config or str(file))
    cfg.MODEL.WEIGHTS = str(file)
    usable = gpus() if cfg.MODEL.DEVICE.startswith("cuda") else Gpus()
    if usable.problem is not None:
        raise UserError(usable.problem)
    if not usable.names:
        cfg.MODEL.DEVICE = "cpu"
    opened = {picture: open_upright(picture) for picture in pictures}
    found = Detector(cfg, class_names(cfg, content, file), content["model"])
    written: list[Path] = []
    for picture, image in opened.items():
        objects = found(image)
        target = _target(Path(folder), picture, written)
        drawn, factor = _drawable(image)
        text = min(28, max(12, round(max(drawn.size) / 60)))
        target.parent.mkdir(parents=True, exist_ok=True)
        names = found.classes
        shown = [object_.scaled(factor) for object_ in objects if (object_.score or 0) >= SCORE]
        draw_objects(drawn, shown, names, text).save(target, optimize=True)
        written.append(target)
        print(report(picture, image, objects, names, target), flush=True)
    return written


class Detector:
    """A detector with its weights; call it with images.

    Args:
        cfg: the configuration, with the weights.
        classes: names; further classes are numbered.
        state: the weights; None to read the configuration's file.
    """

    def __init__(
        self, cfg: Any, classes: Sequence[str], state: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        number = number_of_classes(cfg)
        named = [*classes, *(f"class {i}" for i in range(len(classes), number))]
        self.classes = unique_names(named[:number])
        self._cfg = cfg
        self._model = build_model(cfg)
        if state is None:
            state = read_weights(cfg.MODEL.WEIGHTS)["model"]
        load_detector(self._model, dict(state), cfg.MODEL.WEIGHTS)
        self._model.eval()

    def __call__(self, image: Image.Image) -> list[DrawnObject]:
        """All detections, by descending score, in pixels of the image."""
        # Masks are pasted at the drawn size: at a camera's resolution, a hundred would fill the
        # memory.
        width, height = _drawable(image)[0].size
        given = {"image": self._tensor(image), "height": height, "width": width}
        with torch.no_grad():
            found = self._model([given])[0]["instances"].to("cpu")
        masks = found.pred_masks.numpy() if found.has("pred_masks") else [None] * len(found)
        objects = [
            DrawnObject(label, tuple(box), () if mask is None else mask_outlines(mask), score)
            for box, label, score, mask in zip(
                found.pred_boxes.tensor.tolist(),
                found.pred_classes.tolist(),
                found.scores.tolist(),
                masks,
                strict=True,
            )
        ]
        factor = image.width / width
        return [
            object_.scaled(factor) for object_ in sorted(objects, key=lambda t: -(t.score or 0))
        ]

    def _tensor(self, image: Image.Image) -> torch.Tensor:
        """The image, preprocessed as in the model's test."""
        sizes = self._cfg.INPUT
        resize = T.ResizeShortestEdge([sizes.MIN_SIZE_TEST] * 2, sizes.MAX_SIZE_TEST)
        pixels = np.asarray(image)
        planned = resize.get_transform(pixels)
        if isinstance(planned, T.ResizeTransform):  # otherwise the size is unchanged
            # An extremely elongated image keeps at least one line.
            new: Any = planned  # its attributes are set by name
            height, width = max(1, new.new_h), max(1, new.new_w)
            whole = T.ResizeTransform(pixels.shape[0], pixels.shape[1], height, width)
            pixels = whole.apply_image(pixels)
        if sizes.FORMAT == "BGR":
            pixels = pixels[:, :, ::-1]
        return torch.as_tensor(np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype("float32"))


def report(
    picture: str,
    image: Image.Image,
    objects: Sequence[DrawnObject],
    classes: Sequence[str],
    target: Path,
) -> str:
    """The detections as text."""
    shown = [object_ for object_ in objects if (object_.score or 0) >= SCORE]
    head = f"{picture} ({image.width} x {image.height}): "
    if not shown:
        best = objects[0] if objects else None
        nearest = f"; the best: {classes[best.label]} {best.score:.2f}" if best else ""
        return f"{head}nothing with a score of {SCORE} or more{nearest} ({target})"
    width = max(len(classes[object_.label]) for object_ in shown)
    lines = [f"{head}{len(shown)} found, drawn in {target}"]
    for object_ in shown:
        x0, y0, x1, y1 = (round(value) for value in object_.box)
        lines.append(
            f"  {classes[object_.label]:{width}s} {object_.score:.2f}  "
            f"x {x0} to {x1}, y {y0} to {y1}"
        )
    return "\n".join(lines)


def open_upright(picture: str) -> Image.Image:
    """An image in RGB, upright.

    Raises:
        UserError: if it does not exist or cannot be decoded.
    """
    path = Path(picture)
    if path.is_dir():
        raise UserError(f"{path} is a folder; give its images: --demo {path}/*.jpg")
    if not path.exists():
        raise UserError(
            f"no image {path} (looked for {path.resolve()}). KEY VALUE overrides go after "
            "another option, as in --demo a.jpg --output-dir . KEY VALUE"
        )
    return Image.fromarray(read_image(path))


def class_names(cfg: Any, content: Mapping[str, Any], file: Path) -> list[str]:
    """The detector's classes: from its file or run, otherwise from the data set, if it exists."""
    named = detector.class_names(content, file)
    if named is not None:
        return named
    datasets.register(cfg.CUSTOM_DATASETS)
    if not cfg.DATASETS.TEST or cfg.DATASETS.TEST[0] not in DatasetCatalog.list():
        return []
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    if not hasattr(metadata, "thing_classes"):
        with contextlib.suppress(UserError):  # names that only the annotations contain
            DatasetCatalog.get(cfg.DATASETS.TEST[0])
    return list(metadata.get("thing_classes", []))


def _target(folder: Path, picture: str, written: Sequence[Path]) -> Path:
    target = folder / f"{Path(picture).stem}_detections.png"
    number = 2
    while target in written:  # images of the same name from several folders
        target = folder / f"{Path(picture).stem}_detections_{number}.png"
        number += 1
    return target


def _drawable(image: Image.Image) -> tuple[Image.Image, float]:
    """The image resized for display, with the scale factor."""
    longest = max(image.size)
    factor = min(_MOST / longest, max(1.0, min(8.0, _LEAST / longest)))
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    resized = image if factor == 1.0 else image.resize(size, Image.Resampling.LANCZOS)
    return resized, resized.width / image.width
