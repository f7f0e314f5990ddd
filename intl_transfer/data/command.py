"""Generates a data set from a seed: drawn shapes, or cut-out photographs on photographs.

    intl-transfer data shapes --out datasets/shapes
    intl-transfer data photo-cutouts

Object-centric images for pretraining and classification (ImageFolder layout) and scenes for
detection, in COCO's and in VOC's layout. `photo-cutouts` also has images without labels, and needs
the Debian packages tuxpaint-stamps-default and gcompris-qt-data.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intl_transfer.errors import UserError
from intl_transfer.runs.aliases import earlier_spellings

if TYPE_CHECKING:
    from intl_transfer.data.made_sets import MadeSet

_HELP = {
    "seed": "random seed",
    "object_size": "side of object-centric images, px",
    "objects_train": "object-centric images for training",
    "objects_val": "object-centric images for validation",
    "scene_size": "side of scenes, px",
    "scenes_train": "scenes for training",
    "scenes_val": "scenes for validation",
    "crowd_fraction": "fraction of scenes with a crowd annotation",
    "unlabeled": "images without labels, for pretraining",
}


def _sets() -> dict[str, MadeSet[Any]]:
    from intl_transfer.data.made import MADE

    return {one.command: one for one in MADE.values()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``intl-transfer data``."""
    sets = _sets()
    parser.add_argument("dataset", choices=list(sets), help="data set to generate")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="output folder (default: datasets/NAME)"
    )
    fields = [(name, f) for name, one in sets.items() for f in dataclasses.fields(one.spec)]
    for key in dict.fromkeys(field.name for _, field in fields):
        defaults = {name: f.default for name, f in fields if f.name == key}
        shown = [f"{name} {value}" for name, value in defaults.items()]
        if len(defaults) == len(sets) and len(set(defaults.values())) == 1:
            shown = [str(value) for value in set(defaults.values())]
        options = [f"--{word.replace('_', '-')}" for word in (key, *earlier_spellings(key))]
        parser.add_argument(
            *options,
            type=type(next(iter(defaults.values()))),
            help=f"{_HELP[key]} (default: {', '.join(shown)})",
        )
    parser.add_argument(
        "--force", action="store_true", help="replace a data set generated with other options"
    )
    parser.add_argument(
        "--contact-sheet", type=Path, metavar="PNG", help="also draw a contact sheet"
    )
    parser.add_argument(
        "--share",
        type=Path,
        metavar="DIR",
        help="photo-cutouts: location of the unpacked Debian packages (default: /usr/share)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Generates the data set; returns 0."""
    from intl_transfer.data.photo_cutouts import PHOTO_CUTOUTS, UNLABELED, use_share

    made = _sets()[arguments.dataset]
    given = {key: getattr(arguments, key) for key in _HELP if getattr(arguments, key) is not None}
    known = {field.name for field in dataclasses.fields(made.spec)}
    for key in given.keys() - known:
        raise UserError(f"--{key.replace('_', '-')}: not an option of {made.command}")
    spec = made.spec(**given)
    out = arguments.out or Path("datasets", made.name)
    if arguments.share is not None:
        if made is not PHOTO_CUTOUTS:
            raise UserError(f"--share: not an option of {made.command}")
        use_share(arguments.share)

    def progress(part: str, done: int, total: int) -> None:
        step = max(1, total // 10)
        if done % step == 0 or done == total:
            print(f"{made.command}: {part} {done}/{total}", file=sys.stderr, flush=True)

    there = made.is_complete(out, spec)
    root = made.make(out, spec, progress, arguments.force)
    print(f"{root} is {'already there' if there else 'generated'}:")
    print(
        f"  {root}/classification/train and val: {spec.objects_train} + {spec.objects_val} images"
    )
    print(f"  {root}/coco and {root}/voc: {spec.scenes_train} + {spec.scenes_val} scenes")
    if "unlabeled" in known:
        print(f"  {root}/{UNLABELED}: {spec.unlabeled} images without labels")
    if arguments.contact_sheet:
        made.contact_sheet(spec, arguments.contact_sheet)
        print(f"  overview: {arguments.contact_sheet}")
    return 0
