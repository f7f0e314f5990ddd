"""Checks settings before anything is built."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    ROI_HEADS_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from detectron2.modeling.proposal_generator.build import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY
from detectron2.modeling.roi_heads import (
    ROI_BOX_HEAD_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
)

from detection import roi_heads  # noqa: F401 - registers the box head of the protocol
from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.runs.controls import NOISE_LEVELS, is_noise_level
from intl_transfer.runs.settings import flatten

# Integers, with their minimum. 0, where allowed, has a special meaning: no warm-up, one evaluation
# at the end, images at their original size, loading in this process.
_LEAST = {
    1: (
        *("SOLVER.IMS_PER_BATCH", "SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD"),
        *("TEST.DETECTIONS_PER_IMAGE", "TEST.PRECISE_BN.NUM_ITER"),
        *("INPUT.MAX_SIZE_TRAIN", "INPUT.MAX_SIZE_TEST", "TEST.AUG.MAX_SIZE"),
        *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"),
        *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "MODEL.RPN.PRE_NMS_TOPK_TEST"),
        *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "MODEL.RPN.POST_NMS_TOPK_TEST"),
        *("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.RETINANET.NUM_CLASSES"),
        "MODEL.RETINANET.TOPK_CANDIDATES_TEST",
        *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION"),
    ),
    0: (
        *("SOLVER.WARMUP_ITERS", "TEST.EVAL_PERIOD", "INPUT.MIN_SIZE_TEST"),
        *("DATALOADER.NUM_WORKERS", "MODEL.BACKBONE.FREEZE_AT", "VIS_PERIOD"),
    ),
}
# Numbers that must be above 0 and finite; and those that may be 0.
_ABOVE = ("SOLVER.BASE_LR", "SOLVER.GAMMA", "SOLVER.BIAS_LR_FACTOR")
_NOT_BELOW = (
    *("SOLVER.WEIGHT_DECAY", "SOLVER.WEIGHT_DECAY_NORM", "SOLVER.WEIGHT_DECAY_BIAS"),
    *("SOLVER.WARMUP_FACTOR", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE"),
)
# Shares and probabilities.
_SHARES = (
    *("SOLVER.MOMENTUM", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "MODEL.ROI_HEADS.NMS_THRESH_TEST"),
    *("MODEL.ROI_HEADS.POSITIVE_FRACTION", "MODEL.RPN.POSITIVE_FRACTION", "MODEL.RPN.NMS_THRESH"),
    *("MODEL.RETINANET.SCORE_THRESH_TEST", "MODEL.RETINANET.NMS_THRESH_TEST"),
)
# Lists of whole numbers, by their least; the flag says whether they may be empty.
_LISTS = {
    "INPUT.MIN_SIZE_TRAIN": (0, False),
    "TEST.AUG.MIN_SIZES": (1, False),
    "SOLVER.STEPS": (1, True),
}
_POOLERS = ("ROIAlignV2", "ROIAlign", "ROIPool", "ROIAlignRotated")
_BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")
# Names that Detectron2 looks up in a registry; and those that it compares with.
_REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
    "MODEL.ROI_KEYPOINT_HEAD.NAME": ROI_KEYPOINT_HEAD_REGISTRY,
    "MODEL.SEM_SEG_HEAD.NAME": SEM_SEG_HEADS_REGISTRY,
}
_CHOICES = {
    "INPUT.CROP.TYPE": ("relative_range", "relative", "absolute", "absolute_range"),
    "MODEL.FPN.FUSE_TYPE": ("sum", "avg"),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": _POOLERS,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": _POOLERS,
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "SOLVER.LR_SCHEDULER_NAME": (
        *("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    ),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
    "INPUT.FORMAT": ("RGB", "BGR"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
}
_NORMS = (
    *("naiveSyncBN", "SyncBN", "BN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN_N", "LN", ""),
)
_DEVICE = re.compile(r"cpu|cuda(?::\d+)?")
_DEPTHS = (18, 34, 50, 101, 152)
# Supported detectors: of boxes, and masks in them.
_DETECTORS = ("GeneralizedRCNN", "RetinaNet")


def check_settings(cfg: Any, where: str = "the configuration") -> None:
    """Refuses invalid settings.

    Args:
        cfg: the configuration.
        where: its source, for the message.

    Raises:
        UserError: with the key, the value found, and what is expected.
    """
    values = flatten(cfg)
    for problem in _problems(values):
        raise UserError(f"{where}: {problem}")


def _problems(values: dict[str, Any]) -> Iterator[str]:
    for least, keys in _LEAST.items():
        for key in keys:
            value = values.get(key, least)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                yield f"{key} is {value}; expected a whole number, at least {least}"
    for key, (least, empty) in _LISTS.items():
        found = values.get(key, ())
        if not all(isinstance(v, int) and not isinstance(v, bool) and v >= least for v in found):
            yield f"{key} is {list(found)}; expected whole numbers, at least {least} each"
        if not found and not empty:
            yield f"{key} is empty; expected at least one size"
    steps = list(values["SOLVER.STEPS"])
    if steps != sorted(set(steps)):
        yield f"SOLVER.STEPS is {steps}; expected iterations in strictly ascending order"
    for keys, bound, words in ((_ABOVE, math.ulp(0), "above 0"), (_NOT_BELOW, 0, "of 0 or more")):
        for key in keys:
            value = values.get(key)
            if value is not None and not bound <= value < math.inf:
                yield f"{key} is {value}; expected a finite number {words}"
    for key in _SHARES:
        if not 0 <= values.get(key, 0) <= 1:
            yield f"{key} is {values[key]}; expected a number from 0 to 1"
    if not is_noise_level(noise := values["CONTROL.NOISE"]):
        yield f"CONTROL.NOISE is {noise}; expected {NOISE_LEVELS}"
    yield from _pixel_problems(values)
    yield from _named_problems(values)
    yield from _detector_problems(values)


def _pixel_problems(values: dict[str, Any]) -> Iterator[str]:
    mean, deviation = values["MODEL.PIXEL_MEAN"], values["MODEL.PIXEL_STD"]
    for key, found in (("MODEL.PIXEL_MEAN", mean), ("MODEL.PIXEL_STD", deviation)):
        if len(found) != 3 or not all(math.isfinite(value) for value in found):
            yield f"{key} is {list(found)}; expected three finite numbers"
    if any(value <= 0 for value in deviation):
        yield f"MODEL.PIXEL_STD is {list(deviation)}; expected numbers above 0"
    sampling = values["INPUT.MIN_SIZE_TRAIN_SAMPLING"]
    if sampling == "range" and len(values["INPUT.MIN_SIZE_TRAIN"]) != 2:
        yield "INPUT.MIN_SIZE_TRAIN: sampling a range needs two sizes, the minimum and the maximum"


def _named_problems(values: dict[str, Any]) -> Iterator[str]:
    """Checks names that Detectron2 looks up when the model is built."""
    if not _DEVICE.fullmatch(str(values["MODEL.DEVICE"])):
        yield f"MODEL.DEVICE is {values['MODEL.DEVICE']!r}; expected cpu or cuda"
    registered = {
        key: tuple(sorted(name for name, _ in registry)) for key, registry in _REGISTRIES.items()
    }
    registered["MODEL.ROI_BOX_HEAD.NAME"] += ("",)  # of C4, whose head is res5
    norms = {key: _NORMS for key in values if key.startswith("MODEL.") and key.endswith(".NORM")}
    for key, known in {**registered, **_CHOICES, **norms}.items():
        if values[key] not in known:
            hint = did_you_mean(str(values[key]), known)
            named = ", ".join(name or "'' (none)" for name in known)
            yield f"{key} is {values[key]!r}.{hint} Known: {named}"


def _detector_problems(values: dict[str, Any]) -> Iterator[str]:
    """Refuses detectors that can be built but are not supported here."""
    depth, width = values["MODEL.RESNETS.DEPTH"], values["MODEL.RESNETS.RES2_OUT_CHANNELS"]
    if depth not in _DEPTHS:
        yield f"MODEL.RESNETS.DEPTH is {depth}; expected one of {', '.join(map(str, _DEPTHS))}"
    if depth in (18, 34) and width != 64:
        yield (
            f"MODEL.RESNETS.RES2_OUT_CHANNELS is {width}; a ResNet-{depth} has 64: give "
            "MODEL.RESNETS.RES2_OUT_CHANNELS 64"
        )
    meta = values["MODEL.META_ARCHITECTURE"]
    if meta not in _DETECTORS:
        yield (
            f"MODEL.META_ARCHITECTURE is {meta}; its results would not be evaluated here, where "
            f"boxes and masks are. Expected {' or '.join(_DETECTORS)}"
        )
    if meta != "GeneralizedRCNN" and values["MODEL.MASK_ON"]:
        yield f"MODEL.MASK_ON: {meta} detects only boxes; set MODEL.MASK_ON False"
    for key in ("MODEL.KEYPOINT_ON", "MODEL.LOAD_PROPOSALS"):
        if values[key]:
            yield f"{key}: not supported here; remove it"
    if values["TEST.AUG.ENABLED"] and meta != "GeneralizedRCNN":
        yield (
            f"TEST.AUG.ENABLED: Detectron2 tests R-CNNs over several sizes, not {meta}; leave it "
            "out"
        )
