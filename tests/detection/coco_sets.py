"""Small COCO sets by chance, with all that is awkward in them, and pycocotools on them."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

LIMITS = (0.0, 32.0**2, 96.0**2, 1e10)  # areas on the borders between sizes


def box(rng: np.random.Generator, image: dict[str, Any], whole: bool) -> list[float]:
    x0, x1 = np.sort(rng.uniform(0, image["width"], 2))
    y0, y1 = np.sort(rng.uniform(0, image["height"], 2))
    values = [x0, y0, x1 - x0, y1 - y0]
    return [float(np.round(v)) if whole else float(v) for v in values]


def mask_of(image: dict[str, Any], corners: list[float]) -> np.ndarray:
    mask = np.zeros((image["height"], image["width"]), np.uint8)
    x, y, width, height = (int(v) for v in corners)
    mask[y : y + height, x : x + width] = 1
    return mask


def compressed(mask: np.ndarray) -> dict[str, Any]:
    rle = mask_util.encode(np.asfortranarray(mask))
    return {"size": [int(v) for v in rle["size"]], "counts": rle["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.ravel(order="F")
    borders = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *borders, len(flat)]).tolist()
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + counts}


def segmentation(rng: np.random.Generator, image: dict[str, Any]) -> Any:
    kind = rng.choice(["polygons", "compressed", "uncompressed"])
    if kind == "polygons":
        return [
            np.stack([rng.uniform(0, image[side], n) for side in ("width", "height")], axis=1)
            .ravel()
            .tolist()
            for n in rng.integers(3, 7, rng.integers(1, 3))
        ]
    mask = mask_of(image, box(rng, image, True))
    mask ^= (rng.random(mask.shape) < rng.choice([0, 0.02])).astype(np.uint8)
    return compressed(mask) if kind == "compressed" else uncompressed(mask)


def make_set(
    seed: int, images: int = 6, classes: int = 3, objects: int = 5, detections: int = 12
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations and detections.

    Ids have gaps, categories come in any order and the last has no objects, some images are empty
    on either side, some objects are crowds or marked to be ignored, some areas lie on a limit,
    scores and boxes are tied, and detections come in any order.
    """
    rng = np.random.default_rng(seed)
    whole = bool(rng.random() < 0.7)
    listed = [
        {"id": int(i), "width": int(rng.integers(20, 160)), "height": int(rng.integers(20, 160))}
        for i in rng.choice(10**6, images, replace=False)
    ]
    categories = rng.choice(90, classes, replace=False) + 1
    annotations: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    number = 0
    for image in listed:
        own = []
        for _ in range(rng.integers(0, objects + 1)):
            number += int(rng.integers(1, 4))
            corners = box(rng, image, whole)
            area = corners[2] * corners[3] * float(rng.choice([1, 1, 0.5, 2]))
            thing = {
                "id": number,
                "image_id": image["id"],
                "category_id": int(rng.choice(categories[:-1])),
                "bbox": corners,
                "area": area if rng.random() < 0.8 else float(rng.choice(LIMITS)),
                "iscrowd": int(rng.random() < 0.15),
                "segmentation": segmentation(rng, image),
            }
            if rng.random() < 0.1:
                thing["ignore"] = 1
            own.append(thing)
        annotations += own
        for _ in range(rng.integers(0, detections + 1)):
            corners, label = box(rng, image, whole), int(rng.choice(categories))
            mask = mask_of(image, corners)
            if own and rng.random() < 0.6:  # on an object, exactly or about
                thing = own[rng.integers(len(own))]
                label = thing["category_id"] if rng.random() < 0.8 else label
                by = int(rng.choice([0, 0, 1, 4]))
                corners = [max(0.0, v + float(rng.integers(-by, by + 1))) for v in thing["bbox"]]
                mask = mask_of(image, corners)
                if rng.random() < 0.5:
                    mask = mask_util.decode(as_rle(thing["segmentation"], image))
            if rng.random() < 0.05:
                mask[:] = 0
            score = float(np.round(rng.random(), 1)) if rng.random() < 0.7 else float(rng.random())
            found.append(
                {
                    "image_id": image["id"],
                    "category_id": label,
                    "bbox": corners,
                    "score": score,
                    "segmentation": compressed(mask),
                }
            )
    rng.shuffle(found)  # type: ignore[arg-type]
    names = [{"id": int(c), "name": f"class {c}"} for c in categories]
    return {"info": {}, "images": listed, "annotations": annotations, "categories": names}, found


def as_rle(shape: Any, image: dict[str, Any]) -> dict[str, Any]:
    size = image["height"], image["width"]
    if isinstance(shape, list):
        return mask_util.merge(mask_util.frPyObjects(shape, *size))
    return mask_util.frPyObjects(shape, *size) if isinstance(shape["counts"], list) else shape


def load(content: dict[str, Any]) -> COCO:
    truth = COCO()
    truth.dataset = copy.deepcopy(content)
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def by_pycocotools(content: dict[str, Any], found: list[dict[str, Any]], task: str) -> COCOeval:
    """As pycocotools' own demo does it; for masks without boxes, as Detectron2 has it."""
    truth = load(content)
    dropped = "bbox" if task == "segm" else "segmentation"
    own = [{k: v for k, v in d.items() if k != dropped} for d in found]
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCOeval(truth, truth.loadRes(own), task)
        api.evaluate()
        api.accumulate()
        api.summarize()
    return api
