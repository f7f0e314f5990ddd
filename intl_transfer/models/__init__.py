"""Backbones, projector and the siamese network."""

from intl_transfer.models.activation_checkpointing import checkpoint_activations
from intl_transfer.models.backbones import BACKBONES, STEMS, Stem, build_backbone, starts_at_zero
from intl_transfer.models.lockstep import walk_together
from intl_transfer.models.modes import evaluation_mode
from intl_transfer.models.precision import PRECISIONS, check_precision
from intl_transfer.models.projector import build_projector
from intl_transfer.models.siamese import Encoder, MovingAverage, ema_momentum
from intl_transfer.models.sync_batchnorm import CollectiveBatchNorm, synchronize_batchnorm

__all__ = [
    "BACKBONES",
    "PRECISIONS",
    "STEMS",
    "CollectiveBatchNorm",
    "Encoder",
    "MovingAverage",
    "Stem",
    "build_backbone",
    "build_projector",
    "check_precision",
    "checkpoint_activations",
    "ema_momentum",
    "evaluation_mode",
    "starts_at_zero",
    "synchronize_batchnorm",
    "walk_together",
]
