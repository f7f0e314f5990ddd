"""Adapters: one file per format, listed from the most specific to the most general."""

from __future__ import annotations

from intl_transfer.conversion.adapters import (
    barlow_twins,
    byol,
    densecl,
    dino,
    intl_authors,
    lightly,
    lightning,
    moco,
    moco_v3,
    openmmlab,
    pixpro,
    simclr,
    simsiam,
    solo_learn,
    swav,
    torchvision,
    transformers,
    vicreg,
    vissl,
)
from intl_transfer.conversion.adapters.base import Adapter
from intl_transfer.conversion.adapters.caffe2 import CAFFE2
from intl_transfer.conversion.adapters.detectron2 import DETECTRON2
from intl_transfer.conversion.adapters.prefixed import PREFIXED
from intl_transfer.conversion.reading import Content

ADAPTERS: tuple[Adapter, ...] = (
    DETECTRON2,
    CAFFE2,
    transformers.LAYOUT,
    vissl.LAYOUT,
    dino.LAYOUT,
    densecl.LAYOUT,
    openmmlab.WITH_AVERAGE,
    openmmlab.LAYOUT,
    lightning.WITH_AVERAGE,
    # lightly's own heads first, then other users of Lightning.
    lightly.TARGET_BACKBONE,
    lightly.TEACHER_AND_STUDENT,
    lightly.ONLINE_BACKBONE,
    solo_learn.LAYOUT,
    solo_learn.ANY_MODULE,
    intl_authors.LAYOUT,
    moco.LAYOUT,
    moco_v3.LAYOUT,
    pixpro.LAYOUT,
    byol.LAYOUT,
    byol.IN_DICTIONARIES,
    simsiam.LAYOUT,
    simclr.HEAD_INSIDE,
    simclr.HEAD_BESIDE,
    swav.LAYOUT,
    barlow_twins.LAYOUT,
    vicreg.LAYOUT,
    torchvision.LAYOUT,
    PREFIXED,
)

# What `intl-transfer convert --to` writes.
WRITTEN: dict[str, Adapter] = {
    "detectron2": DETECTRON2,
    "torchvision": torchvision.LAYOUT,
    "caffe2": CAFFE2,
    "barlow-twins": barlow_twins.LAYOUT,
    "byol": byol.LAYOUT,
    "densecl": densecl.LAYOUT,
    "dino": dino.LAYOUT,
    "intl-authors": intl_authors.LAYOUT,
    "lightly": lightly.ONLINE_BACKBONE,
    "moco": moco.LAYOUT,
    "moco-v3": moco_v3.LAYOUT,
    "openmmlab": openmmlab.LAYOUT,
    "pixpro": pixpro.LAYOUT,
    "simclr": simclr.HEAD_BESIDE,
    "simsiam": simsiam.LAYOUT,
    "solo-learn": solo_learn.LAYOUT,
    "swav": swav.LAYOUT,
    "timm": torchvision.LAYOUT,
    "transformers": transformers.LAYOUT,
    "vicreg": vicreg.LAYOUT,
    "vissl": vissl.LAYOUT,
}


def recognize(content: Content) -> tuple[Adapter, list[str]] | None:
    """The adapter that matches a file's keys, and its networks; None if there is no ResNet."""
    for adapter in ADAPTERS:
        branches = adapter.branches(content)
        if branches:
            return adapter, branches
    return None


__all__ = ["ADAPTERS", "WRITTEN", "Adapter", "recognize"]
