"""A published schedule at another batch size, by the linear scaling rule."""

from __future__ import annotations

from typing import Any

from detection.config import as_dict
from intl_transfer.errors import UserError
from intl_transfer.runs.architectures import architecture
from intl_transfer.runs.schedules import at_batch
from intl_transfer.runs.settings import flatten

# Activation memory of a ResNet-50 Mask R-CNN for one image of 800 x 1333 pixels, in float32 with
# all layers trained (measured on a CPU); and a reserve for all else.
_GB_PER_IMAGE = {"C4": 4.6, "FPN": 2.4}
_GB_FIXED = 2.5
_PIXELS = 800 * 1333


def scale_to_batch(cfg: Any, batch: int) -> None:
    """Rescales a configuration to another batch size, with the same number of images.

    The learning rate is multiplied by ``batch / IMS_PER_BATCH``; iterations, steps, warm-up, the
    periods of checkpoints and evaluations, and the batches of precise BN are divided by it.

    Raises:
        UserError: if the batch size is not positive.
    """
    if batch < 1:
        raise UserError(f"a batch of {batch}; expected at least 1 image")
    for key, value in at_batch(flatten(cfg), batch).items():
        *folders, leaf = key.split(".")
        node = cfg
        for folder in folders:
            node = node[folder]
        node[leaf] = value


def batch_that_fits(cfg: Any, gpus: int, memory_gb: float) -> int:
    """The largest batch size up to the configured one that these GPUs can share and hold.

    Args:
        cfg: the configuration.
        gpus: total number over all machines.
        memory_gb: of one GPU.

    Returns:
        A multiple of ``gpus``, at least one image each.
    """
    rows: int = cfg.SOLVER.IMS_PER_BATCH // gpus
    # Assuming all layers trained, float32.
    if cfg.MODEL.BACKBONE.FREEZE_AT == 0 and not cfg.SOLVER.AMP.ENABLED:
        head = architecture(as_dict(cfg)).head
        pixels = max(cfg.INPUT.MIN_SIZE_TRAIN) * cfg.INPUT.MAX_SIZE_TRAIN
        need = _GB_PER_IMAGE.get(head, _GB_PER_IMAGE["C4"]) * pixels / _PIXELS
        while rows > 1 and _GB_FIXED + rows * need > memory_gb:
            rows -= 1
    return gpus * max(1, rows)
