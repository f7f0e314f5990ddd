"""Small COCO- and VOC-layout sets, composed of photographs: cut-outs pasted on backgrounds.

The cut-outs are Tux Paint's stamps (Debian package tuxpaint-stamps-default), the backgrounds
photographs that scikit-image ships. Neither is part of this project; nothing is downloaded.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intl_transfer.data.polygons import mask_to_polygons

STAMPS = Path("/usr/share/tuxpaint/stamps")
CUT_OUTS = {
    "bird": ("animals/birds/rooster.png", "animals/birds/tucan.png"),
    "tiger": ("animals/mammals/cats/tiger.png",),
    "zebra": ("animals/mammals/equines/zebra.png",),
}
BACKGROUNDS = ("chelsea", "coffee", "astronaut")
SIZES = ((96, 72), (72, 96), (80, 80))

needs_stamps = pytest.mark.skipif(
    not STAMPS.is_dir(), reason="needs the Debian package tuxpaint-stamps-default"
)


def compose(root: Path, images: int = 6, seed: int = 0) -> Path:
    """Writes ``root/photos``: ``coco.json`` and ``JPEGImages/``, and VOC's folders beside them."""
    folder = root / "photos"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(seed)
    listed, annotations = [], []
    for number in range(1, images + 1):
        image, things = _scene(rng, SIZES[number % len(SIZES)])
        name = f"{number:06d}"
        image.save(folder / "JPEGImages" / f"{name}.jpg", quality=90)
        width, height = image.size
        listed.append({"id": number, "file_name": f"{name}.jpg", "width": width, "height": height})
        annotations += [
            {
                "id": len(annotations) + place,
                "image_id": number,
                "category_id": 10 * (1 + list(CUT_OUTS).index(label)),  # as COCO's: with gaps
                "bbox": box,
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": mask_to_polygons(mask),
            }
            for place, (label, box, mask) in enumerate(things, 1)
        ]
        _write_voc(folder / "Annotations" / f"{name}.xml", image.size, things)
    categories = [{"id": 10 * i, "name": name} for i, name in enumerate(CUT_OUTS, 1)]
    content = {"images": listed, "annotations": annotations, "categories": categories}
    (folder / "coco.json").write_text(json.dumps(content))
    names = [f"{number:06d}" for number in range(1, images + 1)]
    half = images // 2
    (folder / "ImageSets/Main/train.txt").write_text("\n".join(names[:half]))
    (folder / "ImageSets/Main/test.txt").write_text("\n".join(names[half:]))
    return folder


def _scene(rng, size):
    """One picture and its things: class, COCO box and visible mask."""
    import skimage.data

    photograph = getattr(skimage.data, BACKGROUNDS[rng.integers(len(BACKGROUNDS))])()
    picture = Image.fromarray(photograph).resize(size)
    placed = []
    for _ in range(rng.integers(1, 4)):
        label = str(rng.choice(list(CUT_OUTS)))
        stamp = Image.open(STAMPS / str(rng.choice(CUT_OUTS[label]))).convert("RGBA")
        side = int(rng.integers(28, 52))
        stamp.thumbnail((side, side))
        x, y = (int(rng.integers(0, max(1, a - b))) for a, b in zip(size, stamp.size, strict=True))
        picture.paste(stamp, (x, y), stamp)
        mask = np.zeros(size[::-1], dtype=bool)
        alpha = np.asarray(stamp)[..., 3] > 127
        mask[y : y + alpha.shape[0], x : x + alpha.shape[1]] = alpha
        # What lies on top hides what is below.
        placed = [(name, below & ~mask) for name, below in placed] + [(label, mask)]
    things = []
    for label, mask in placed:
        if mask.sum() < 30:
            continue
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        left, top = int(columns[0]), int(rows[0])
        box = [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]
        things.append((label, box, mask))
    return picture, things


def _write_voc(file: Path, size, things) -> None:
    root = ElementTree.Element("annotation")
    shape = ElementTree.SubElement(root, "size")
    for key, value in zip(("width", "height", "depth"), (*size, 3), strict=True):
        ElementTree.SubElement(shape, key).text = str(value)
    for label, (x, y, w, h), _ in things:
        element = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(element, "name").text = label
        for key, value in (("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
            ElementTree.SubElement(element, key).text = value
        corners = ElementTree.SubElement(element, "bndbox")
        for key, value in zip(
            ("xmin", "ymin", "xmax", "ymax"), (x + 1, y + 1, x + w, y + h), strict=True
        ):
            ElementTree.SubElement(corners, key).text = str(value)
    ElementTree.ElementTree(root).write(file)
