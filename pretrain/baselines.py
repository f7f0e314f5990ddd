"""Other methods' losses under this stage's engine, for comparison with INTL."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

from torch import Tensor

from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.spectral import (
    PowerTransform,
    barlow_twins_loss,
    nt_xent_loss,
    spectral_loss,
    vicreg_loss,
    w_mse_loss,
)
from pretrain.config import LossConfig

BASELINES: dict[str, Callable[..., Tensor]] = {
    "w_mse": w_mse_loss,
    "barlow_twins": barlow_twins_loss,
    "vicreg": vicreg_loss,
    "simclr": nt_xent_loss,
}
NOT_OPTIONS = ("views", "group", "distributed", "generator", "partitions")


def options_of(method: str) -> list[str]:
    """Names that ``loss.options`` may hold for a method."""
    if method == "power":
        return ["p", "floor"]
    if method not in BASELINES:
        return []
    names = inspect.signature(BASELINES[method]).parameters
    return [name for name in names if name not in NOT_OPTIONS]


def check_options(loss: LossConfig) -> None:
    """Raises UserError for an option that the method does not have."""
    known = options_of(loss.method)
    for name in loss.options:
        if name not in known:
            takes = f"takes {', '.join(known)}" if known else "takes none"
            raise UserError(
                f"loss.options.{name}: {loss.method} {takes}.{did_you_mean(name, known)}"
            )
    if loss.method == "power" and "p" not in loss.options:
        raise UserError("loss.method=power needs an exponent, for example loss.options.p=0.5")


def baseline_loss(views: Sequence[Tensor], loss: LossConfig) -> Tensor:
    """The loss of V views (N, d), view 0 the target, by a method of :data:`BASELINES`."""
    options = {
        name: int(value) if name == "whitening_size" else value
        for name, value in loss.options.items()
    }
    if loss.method == "power":
        transform = PowerTransform(options["p"], loss.axis, options.get("floor", 1e-14))
        return spectral_loss(views, transform, loss.trace_weight or 0.0)
    return BASELINES[loss.method](views, **options)
