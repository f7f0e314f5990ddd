"""Spectral transformations and the losses built on them.

Pure functions on embeddings, depending on torch alone:

    >>> import torch
    >>> from intl_transfer.spectral import intl_loss
    >>> views = [torch.randn(16, 128, requires_grad=True) for _ in range(2)]
    >>> intl_loss(views).backward()
"""

from intl_transfer.spectral.baselines import (
    barlow_twins_loss,
    nt_xent_loss,
    vicreg_loss,
    w_mse_loss,
)
from intl_transfer.spectral.common import Axis, NonFiniteError
from intl_transfer.spectral.diagnostics import (
    CollapseAlarm,
    Diagnostics,
    alignment,
    collapse_alarm,
    condition_indicator,
    diagnose,
    effective_rank,
    feature_std,
    spectrum,
    stable_rank,
    trace_loss_bound,
    uniformity,
)
from intl_transfer.spectral.expression import scalar_expression
from intl_transfer.spectral.guards import equal_rows, without_waiting
from intl_transfer.spectral.iternorm import iternorm, iternorm_eigenvalue, iternorm_factor
from intl_transfer.spectral.losses import (
    INTLLoss,
    default_trace_weight,
    intl_ema_loss,
    intl_loss,
    spectral_ema_loss,
    spectral_loss,
    trace_loss,
)
from intl_transfer.spectral.matrix_function import matrix_function
from intl_transfer.spectral.sharding import HeadPlan, plan_head
from intl_transfer.spectral.transforms import (
    CholeskyWhitening,
    IterNorm,
    PowerTransform,
    ScalarTransform,
    SpectralTransform,
    cholesky_whitening,
    power_transform,
    spectral_transform,
)

__all__ = [
    "Axis",
    "CholeskyWhitening",
    "CollapseAlarm",
    "Diagnostics",
    "HeadPlan",
    "INTLLoss",
    "IterNorm",
    "NonFiniteError",
    "PowerTransform",
    "ScalarTransform",
    "SpectralTransform",
    "alignment",
    "barlow_twins_loss",
    "cholesky_whitening",
    "collapse_alarm",
    "condition_indicator",
    "default_trace_weight",
    "diagnose",
    "effective_rank",
    "equal_rows",
    "feature_std",
    "intl_ema_loss",
    "intl_loss",
    "iternorm",
    "iternorm_eigenvalue",
    "iternorm_factor",
    "matrix_function",
    "nt_xent_loss",
    "plan_head",
    "power_transform",
    "scalar_expression",
    "spectral_ema_loss",
    "spectral_loss",
    "spectral_transform",
    "spectrum",
    "stable_rank",
    "trace_loss",
    "trace_loss_bound",
    "uniformity",
    "vicreg_loss",
    "w_mse_loss",
    "without_waiting",
]
