"""A detector head: that of the protocol, with dropout behind its last batch norm."""

from __future__ import annotations

from typing import Any

from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY
from torch import nn

from detection.roi_heads import Res5ROIHeadsExtraNorm


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsDropout(Res5ROIHeadsExtraNorm):
    """Res5 as box head, followed by batch norm and dropout of whole channels."""

    @classmethod
    def _build_res5_block(cls, cfg: Any) -> tuple[nn.Sequential, int]:
        res5, channels = super()._build_res5_block(cfg)
        res5.add_module("dropout", nn.Dropout2d(0.1))
        return res5, channels
