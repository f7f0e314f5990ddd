"""Every public function of embeddings, on every axis, as a function of one batch (N, d)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from intl_transfer.spectral import (
    CholeskyWhitening,
    IterNorm,
    PowerTransform,
    ScalarTransform,
    barlow_twins_loss,
    cholesky_whitening,
    intl_ema_loss,
    intl_loss,
    iternorm,
    nt_xent_loss,
    power_transform,
    spectral_loss,
    spectral_transform,
    trace_loss,
    vicreg_loss,
    w_mse_loss,
)

AXES = ("channel", "batch")


def embeddings(n: int, d: int, seed: int = 0) -> Tensor:
    """Float64 of float32's values, so that both precisions start from the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator).double()


def own(values: Tensor) -> Tensor:
    """A scalar function of one's own."""
    return 1 / (1 + values) + torch.log1p(values)


def transforms(n: int, d: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Those whose output is a batch, with the axis in their name."""
    whole: dict[str, Callable[[Tensor], Tensor]] = {}
    for axis in AXES:
        for iterations in (0, 1, 4, 5, 9):
            whole[f"iternorm {iterations}, {axis}"] = partial(
                iternorm, axis=axis, iterations=iterations
            )
        whole[f"iternorm direct, {axis}"] = partial(iternorm, axis=axis, stable=False)
        for p in (0.0, 0.5, 1.5):
            whole[f"power {p}, {axis}"] = partial(power_transform, p=p, axis=axis)
        whole[f"own, {axis}"] = partial(spectral_transform, g=own, axis=axis)
        whole[f"own with a floor, {axis}"] = partial(
            spectral_transform, g=own, axis=axis, floor=0.1
        )
    axis = "channel" if n < d else "batch"
    whole["cholesky"] = partial(cholesky_whitening, axis=axis)
    whole["cholesky shrunk"] = partial(cholesky_whitening, axis=axis, shrinkage=0.2)
    return whole


def losses(n: int, d: int, scale: float = 1.0) -> dict[str, Callable[[Tensor], Tensor]]:
    """Those whose output is a loss, of the batch given as one of two or three views."""
    others = [embeddings(n, d, seed) * scale for seed in (11, 12)]
    narrow = min(n, d) // 2

    def pair(loss: Callable[..., Tensor], z: Tensor, **keywords: object) -> Tensor:
        return loss([z, *(other.to(z) for other in others)], **keywords)

    def last(loss: Callable[..., Tensor], z: Tensor, **keywords: object) -> Tensor:
        return loss([others[0].to(z), z], **keywords)

    def ema(z: Tensor, **keywords: object) -> Tensor:
        return intl_ema_loss([z, others[1].to(z)], others[0].to(z), **keywords)

    whole: dict[str, Callable[[Tensor], Tensor]] = {}
    for axis in AXES:
        weight = {"axis": axis, "trace_weight": 0.05}
        for iterations in (4, 5, 9):
            keywords = {**weight, "iterations": iterations}
            whole[f"intl {iterations}, {axis}"] = partial(pair, intl_loss, **keywords)
        whole[f"intl of another view, {axis}"] = partial(last, intl_loss, **weight)
        whole[f"ema, {axis}"] = partial(ema, **weight)
        whole[f"trace loss, {axis}"] = partial(trace_loss, axis=axis)
        for name, transform in {
            "power": PowerTransform(0.4, axis),
            "centering": PowerTransform(0, axis),
            "iternorm": IterNorm(4, axis),
            "own": ScalarTransform(own, axis),
        }.items():
            keywords = {"transform": transform, "trace_weight": 0.0 if scale != 1 else 0.05}
            whole[f"spectral loss, {name}, {axis}"] = partial(pair, spectral_loss, **keywords)
    axis = "channel" if n < d else "batch"
    whole["spectral loss, cholesky"] = partial(
        pair, spectral_loss, transform=CholeskyWhitening(axis)
    )
    whole["barlow twins"] = partial(pair, barlow_twins_loss)
    whole["vicreg"] = partial(pair, vicreg_loss)
    whole["nt-xent"] = partial(pair, nt_xent_loss)

    def w_mse(z: Tensor) -> Tensor:
        return w_mse_loss([z[:, :narrow], others[0].to(z)[:, :narrow]])

    whole["w-mse"] = w_mse
    return whole
