"""Names of detectors, from their configuration; the same in all stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from intl_transfer.runs.records import Architecture
from intl_transfer.runs.settings import flatten

# Box heads of an R-CNN that do not change the detector's name.
_PLAIN_HEADS = ("Res5ROIHeads", "Res5ROIHeadsExtraNorm", "StandardROIHeads")
# Detectors with their names in papers.
_META = {
    "PanopticFPN": "Panoptic FPN",
    "SemanticSegmentor": "Semantic FPN",
    "ProposalNetwork": "RPN",
}
#: Detectors of one family, whose results on several data sets can share a table.
RCNN = ("Mask R-CNN", "Faster R-CNN")


def architecture(config: Mapping[str, Any]) -> Architecture:
    """The detector's type, backbone and head.

    Args:
        config: Detectron2's, nested; missing keys have Detectron2's defaults.

    Returns:
        ``meta`` is ``Mask R-CNN``, ``Faster R-CNN``, ``Cascade R-CNN``, ``RetinaNet`` and so on;
        others keep Detectron2's name.
    """
    found = flatten(config)
    return Architecture(meta=_meta(found), backbone=_backbone(found), head=_head(found))


def _meta(found: Mapping[str, Any]) -> str:
    meta = str(found.get("MODEL.META_ARCHITECTURE", "GeneralizedRCNN"))
    if meta != "GeneralizedRCNN":
        return _META.get(meta, meta)
    kind = "Faster R-CNN"
    if found.get("MODEL.LOAD_PROPOSALS"):
        kind = "Fast R-CNN"
    if found.get("MODEL.MASK_ON"):
        kind = "Mask R-CNN"
    if found.get("MODEL.KEYPOINT_ON"):
        kind = "Keypoint R-CNN"
    heads = str(found.get("MODEL.ROI_HEADS.NAME", "Res5ROIHeads"))
    if heads == "CascadeROIHeads":
        return "Cascade R-CNN" if kind == "Faster R-CNN" else f"Cascade {kind}"
    return kind if heads in _PLAIN_HEADS else f"{kind} ({heads})"


def _backbone(found: Mapping[str, Any]) -> str:
    builder = str(found.get("MODEL.BACKBONE.NAME", "build_resnet_backbone"))
    if "resnet" not in builder:
        return builder.removeprefix("build_").removesuffix("_backbone")
    depth = found.get("MODEL.RESNETS.DEPTH", 50)
    groups = found.get("MODEL.RESNETS.NUM_GROUPS", 1)
    width = found.get("MODEL.RESNETS.WIDTH_PER_GROUP", 64)
    if groups > 1:
        name = f"resnext{depth}_{groups}x{width}d"
    elif depth >= 50 and width == 128:
        name = f"wide_resnet{depth}_2"
    else:
        name = f"resnet{depth}"
    deformed = any(found.get("MODEL.RESNETS.DEFORM_ON_PER_STAGE") or [])
    return f"{name}-deformable" if deformed else name


def _head(found: Mapping[str, Any]) -> str:
    """The features for boxes: C4, FPN, or DC5 (dilated fifth stage)."""
    builder = str(found.get("MODEL.BACKBONE.NAME", "build_resnet_backbone"))
    if "fpn" in builder:
        return "FPN"
    if "Res5" in str(found.get("MODEL.ROI_HEADS.NAME", "Res5ROIHeads")):
        return "C4"
    stages = list(found.get("MODEL.RESNETS.OUT_FEATURES") or ["res4"])
    dilated = found.get("MODEL.RESNETS.RES5_DILATION", 1) > 1
    return f"DC{stages[-1][-1]}" if dilated else f"C{stages[-1][-1]}"
