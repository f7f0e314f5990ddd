"""Spectral transformations and the losses built on them.

Pure functions on embeddings, depending on torch alone:

    >>> import torch
    >>> from intl_transfer.spectral import intl_loss
    >>> views = [torch.randn(16, 128, requires_grad=True) for _ in range(2)]
    >>> intl_loss(views).backward()
"""

from intl_transfer.spectral.common import Axis
from intl_transfer.spectral.iternorm import iternorm, iternorm_eigenvalue
from intl_transfer.spectral.losses import (
    default_trace_weight,
    intl_ema_loss,
    intl_loss,
    trace_loss,
)
from intl_transfer.spectral.transforms import matrix_function, power_transform

__all__ = [
    "Axis",
    "default_trace_weight",
    "intl_ema_loss",
    "intl_loss",
    "iternorm",
    "iternorm_eigenvalue",
    "matrix_function",
    "power_transform",
    "trace_loss",
]
