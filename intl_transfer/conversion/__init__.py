"""Converts checkpoints of other tools to Detectron2 weights, with verification."""

from intl_transfer.conversion.audit import audit
from intl_transfer.conversion.backbone import Backbone
from intl_transfer.conversion.detectron2 import from_detectron2, to_detectron2
from intl_transfer.conversion.formats import load_backbone, read_backbone
from intl_transfer.conversion.pipeline import convert

__all__ = [
    "Backbone",
    "audit",
    "convert",
    "from_detectron2",
    "load_backbone",
    "read_backbone",
    "to_detectron2",
]
