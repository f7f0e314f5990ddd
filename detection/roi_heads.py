"""The box head of a C4 detector on any ResNet, with the extra batch norm of the MoCo protocol."""

from __future__ import annotations

from typing import Any

from detectron2.layers import get_norm
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock, ResNet
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads
from torch import nn

# Number of residual blocks in res5.
_BLOCKS = {18: 2, 34: 3, 50: 3, 101: 3, 152: 3}


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """Res5 as box head, followed by a batch norm.

    The norm makes a randomly initialized or self-supervised res5 trainable at the supervised
    baseline's learning rate (MoCo, He et al. 2020, appendix). Detectron2's class always builds
    three bottlenecks; this one also builds the basic blocks of ResNet-18 and 34.
    """

    @classmethod
    def _build_res5_block(cls, cfg: Any) -> tuple[nn.Sequential, int]:
        resnets = cfg.MODEL.RESNETS
        out_channels = resnets.RES2_OUT_CHANNELS * 8
        count = _BLOCKS[resnets.DEPTH]
        options: dict[str, Any] = {
            "in_channels": out_channels // 2,
            "out_channels": out_channels,
            "norm": resnets.NORM,
            "stride_per_block": [2] + [1] * (count - 1),
        }
        if resnets.DEPTH in (18, 34):
            blocks = ResNet.make_stage(BasicBlock, count, **options)
        else:
            blocks = ResNet.make_stage(
                BottleneckBlock,
                count,
                bottleneck_channels=resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP * 8,
                num_groups=resnets.NUM_GROUPS,
                stride_in_1x1=resnets.STRIDE_IN_1X1,
                **options,
            )
        if (
            cfg.MODEL.BACKBONE.FREEZE_AT >= 5
        ):  # the backbone, which ends at res4, freezes its own stages
            blocks = [block.freeze() for block in blocks]
        res5 = nn.Sequential(*blocks)
        res5.add_module("norm", get_norm(resnets.NORM, out_channels))
        return res5, out_channels
