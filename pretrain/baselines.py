"""What else trains under this stage's engine: any spectral transformation, and other methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor

from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.spectral import (
    Axis,
    IterNorm,
    PowerTransform,
    ScalarTransform,
    SpectralTransform,
    barlow_twins_loss,
    default_trace_weight,
    nt_xent_loss,
    scalar_expression,
    spectral_ema_loss,
    spectral_loss,
    vicreg_loss,
    w_mse_loss,
)
from pretrain.config import LossConfig, PretrainConfig

BASELINES: dict[str, Callable[..., Tensor]] = {
    "w_mse": w_mse_loss,
    "barlow_twins": barlow_twins_loss,
    "vicreg": vicreg_loss,
    "simclr": nt_xent_loss,
}
#: Methods whose view 0 goes through a moving-average copy of the network.
MOVING_AVERAGE = ("intl_ema", "power_ema", "spectral_ema")
NOT_OPTIONS = ("views", "group", "distributed", "generator", "partitions")


def options_of(method: str) -> list[str]:
    """Names that ``loss.options`` may hold for a method."""
    if method in ("power", "power_ema"):
        return ["p", "floor"]
    if method in ("spectral", "spectral_ema"):
        return ["floor"]
    if method not in BASELINES:
        return []
    names = inspect.signature(BASELINES[method]).parameters
    return [name for name in names if name not in NOT_OPTIONS]


def check_options(loss: LossConfig) -> None:
    """Raises UserError for what the method does not have, or lacks."""
    known, method = options_of(loss.method), loss.method
    for name in loss.options:
        if name not in known:
            takes = f"takes {', '.join(known)}" if known else "takes none"
            raise UserError(f"loss.options.{name}: {method} {takes}.{did_you_mean(name, known)}")
    if method.startswith("power") and "p" not in loss.options:
        raise UserError(f"loss.method={method} needs an exponent, for example loss.options.p=0.5")
    if method.startswith("spectral") != (loss.g is not None):
        if loss.g is None:
            raise UserError(f"loss.method={method} needs a function: loss.g='1 / (1 + x)'")
        raise UserError(f"loss.g is the function of loss.method=spectral; {method} takes none")
    if not loss.stable and not method.startswith("intl"):
        raise UserError(f"loss.stable is IterNorm's; loss.method={method} has no iteration")
    try:
        transform_of(loss)
    except ValueError as error:
        raise UserError(f"loss.{'g' if loss.g is not None else 'options'}: {error}") from None


def transform_of(loss: LossConfig) -> SpectralTransform | None:
    """The spectral transformation of a method; None for one that has none.

    Raises:
        ValueError: if p or g cannot be.
    """
    floor = loss.options.get("floor", 1e-14)
    axis = cast(Axis, loss.axis)  # `pretrain.session.check` refuses others
    if loss.method in ("intl", "intl_ema"):
        return IterNorm(loss.iterations, axis, loss.stable)
    if loss.method in ("power", "power_ema"):
        return PowerTransform(loss.options["p"], axis, floor)
    if loss.method in ("spectral", "spectral_ema"):
        return ScalarTransform(scalar_expression(loss.g or ""), axis, floor=floor)
    return None


def framework_loss(
    views: Sequence[Tensor],
    transform: SpectralTransform,
    config: PretrainConfig,
    parts: dict[str, Tensor],
) -> Tensor:
    """The framework's loss of V views (N, d), view 0 the target, on a transformation's outputs.

    Without a ``trace_weight``, IterNorm takes the published one and all others none.
    """
    loss = config.loss
    weight = loss.trace_weight
    if weight is None and isinstance(transform, IterNorm):
        batch, width = config.optim.batch_size, config.model.embedding
        weight = default_trace_weight(batch, width, transform.axis)
    if loss.method in MOVING_AVERAGE:
        return spectral_ema_loss(views[1:], views[0], transform, weight or 0.0, parts=parts)
    return spectral_loss(views, transform, weight or 0.0, parts=parts)


def baseline_loss(views: Sequence[Tensor], loss: LossConfig) -> Tensor:
    """The loss of V views (N, d), view 0 the target, by a method of :data:`BASELINES`."""
    options = {
        name: int(value) if name == "whitening_size" else value
        for name, value in loss.options.items()
    }
    return BASELINES[loss.method](views, **options)
