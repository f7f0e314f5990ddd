"""Makes the embedded data set `shapes`: textured forms before photographs, from a seed.

    intl-transfer data shapes --out datasets/shapes

Object-centric images for pretraining and classification (ImageFolder layout) and scenes for
detection, in COCO's and in VOC's layout.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

_HELP = {
    "seed": "decides every pixel",
    "object_size": "side of object-centric images, px",
    "objects_train": "object-centric images for training",
    "objects_val": "object-centric images for validation",
    "scene_size": "side of scenes, px",
    "scenes_train": "scenes for training",
    "scenes_val": "scenes for validation",
    "crowd_fraction": "share of scenes with a crowd annotation",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``intl-transfer data``."""
    from intl_transfer.data.shapes import ShapesSpec

    parser.add_argument("dataset", choices=["shapes"], help="which data set to make")
    parser.add_argument("--out", type=Path, default=Path("datasets/shapes"), metavar="DIR")
    for field in dataclasses.fields(ShapesSpec):
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=type(field.default),
            default=field.default,
            help=f"{_HELP[field.name]} (default: {field.default})",
        )
    parser.add_argument("--force", action="store_true", help="replace a set made with other values")
    parser.add_argument("--contact-sheet", type=Path, metavar="PNG", help="also draw an overview")


def run(arguments: argparse.Namespace) -> int:
    """Makes the set; returns 0."""
    from intl_transfer.data.shapes import ShapesSpec, contact_sheet, is_complete, make_shapes

    fields = [field.name for field in dataclasses.fields(ShapesSpec)]
    spec = ShapesSpec(**{name: getattr(arguments, name) for name in fields})

    def progress(part: str, done: int, total: int) -> None:
        step = max(1, total // 10)
        if done % step == 0 or done == total:
            print(f"shapes: {part} {done}/{total}", file=sys.stderr, flush=True)

    there = is_complete(arguments.out, spec)
    root = make_shapes(arguments.out, spec, progress, arguments.force)
    print(f"{root} is {'there already' if there else 'made'}:")
    print(
        f"  {root}/classification/train and val: {spec.objects_train} + {spec.objects_val} images"
    )
    print(f"  {root}/coco and {root}/voc: {spec.scenes_train} + {spec.scenes_val} scenes")
    if arguments.contact_sheet:
        contact_sheet(spec, arguments.contact_sheet)
        print(f"  overview: {arguments.contact_sheet}")
    return 0
