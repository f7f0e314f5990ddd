"""Figures, curves and pictures of the made-up study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from intl_transfer.runs import write_json

CLASSES = ("bicycle", "bird", "boat", "bottle", "cat", "chair", "dog", "horse", "person", "sheep")


def figures(ap: float, layout: str, rng: np.random.Generator) -> dict[str, Any]:
    made: dict[str, Any] = {"AP": ap, "AP50": ap + 20.3, "AP75": ap + 3.1}
    if layout == "coco":
        made |= {"APs": ap - 18, "APm": ap + 4, "APl": ap + 14, "AR1": ap - 7, "AR10": ap + 11}
        made |= {"AR100": ap + 13, "ARs": None, "ARm": ap + 18, "ARl": ap + 27}
    spread = np.linspace(-16, 18, len(CLASSES)) + rng.normal(0, 2, len(CLASSES))
    made["per_class"] = {
        name: float(np.clip(ap + add, 0, 100)) for name, add in zip(CLASSES, spread, strict=True)
    }
    made["per_class"]["sheep"] = None  # no such object
    return made


def precision_recall(ap: float, tasks: tuple[str, ...]) -> dict[str, Any]:
    recall = np.linspace(0, 1, 101)

    def curve(level: float) -> list[float]:
        return [float(v) for v in np.clip(level * (1 - recall**4) ** 0.6 + 0.02, 0, 1)]

    made: dict[str, Any] = {}
    for task in tasks:
        for overlap, level in (("0.50", ap / 48), ("0.75", ap / 66)):
            if task == "voc" and overlap == "0.75":
                continue
            precision: dict[str, Any] = {
                name: curve(level * (0.8 + 0.05 * i)) for i, name in enumerate(CLASSES)
            }
            precision["sheep"] = None
            shown = {"recall": recall.tolist(), "precision": {**precision, "mean": curve(level)}}
            made.setdefault(task, {})[overlap] = shown
    return made


def write_predictions(folder: Path, rng: np.random.Generator, count: int = 4) -> None:
    """Drawn scenes, and boxes that are nearly right."""
    images = []
    (folder / "predictions").mkdir()
    for index in range(count):
        width, height = (480, 320) if index % 2 == 0 else (320, 400)
        picture = Image.new("RGB", (width, height))
        shade = np.linspace(0, 1, height)[:, None, None] * np.array([40, 60, 50]) + 120
        picture = Image.fromarray(np.broadcast_to(shade, (height, width, 3)).astype(np.uint8))
        draw = ImageDraw.Draw(picture)
        truth, found = [], []
        for _ in range(4):
            x, y = rng.uniform(0.05, 0.6, 2) * (width, height)
            w, h = rng.uniform(0.15, 0.35, 2) * (width, height)
            label = int(rng.integers(len(CLASSES)))
            angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            outline = np.stack(
                [x + w / 2 * (1 + np.cos(angle)), y + h / 2 * (1 + np.sin(angle))], 1
            )
            color = tuple(int(v) for v in rng.integers(60, 255, 3))
            draw.polygon([tuple(p) for p in outline], fill=color)
            box = [x, y, x + w, y + h]
            truth.append({"class": label, "box": box, "polygons": [outline.ravel().tolist()]})
            shift = rng.normal(0, 5, 4)
            found.append(
                {
                    "class": label if rng.random() > 0.2 else int(rng.integers(len(CLASSES))),
                    "score": float(rng.uniform(0.3, 0.99)),
                    "box": (np.array(box) + shift).tolist(),
                    "polygons": [(outline + rng.normal(0, 2, outline.shape)).ravel().tolist()],
                }
            )
        name = f"predictions/{index:03d}.jpg"
        picture.save(folder / name, quality=85)
        images.append(
            {
                "file": name,
                "width": width,
                "height": height,
                "error": round(0.8 - index * 0.15, 3),
                "truth": truth,
                "predictions": found,
            }
        )
    write_json(folder / "predictions.json", {"classes": list(CLASSES), "images": images})
