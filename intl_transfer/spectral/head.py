"""What INTL needs of V views: how well they match, and how far each is from white.

Three ways to the same numbers, all on the smaller of N x N and d x d:

* **Grams** (channel axis, N <= d, T <= 6). Row norms of the output are ``diag(h_T(S))``, row
  products ``diag(P_i Z_i Z_0^T P_0)``: N x N matrices alone, no N x d output is made.
* **Columns** (N <= d, otherwise). The output ``P Z`` is made, any set of its columns by itself.
* **Rows** (N > d). The output ``Z P`` is made, any set of its rows by itself.

Each is a sum over columns or rows, so that ranks can share it: see :mod:`.sharding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from intl_transfer.spectral.collectives import Exchange
from intl_transfer.spectral.common import (
    Axis,
    at_least_float32,
    centre,
)
from intl_transfer.spectral.gram import centred_rows, gram, view_grams
from intl_transfer.spectral.iternorm import NEWTON_UP_TO, trace_normalised
from intl_transfer.spectral.sharding import shared_iternorm

# A row whose share of an output variance of one is below this is a row of zeros that rounding has
# touched: its direction means nothing, and its cosine counts as zero.
_ZERO_ROW = {True: 1e-14, False: 1e-30}


class ViewStatistics(NamedTuple):
    """Of IterNorm outputs: ``mismatch`` (V - 1,), ``2 - 2 mean cos`` of views 1..V-1 with view 0;
    ``traces`` (V,), the trace loss of every view. The same on every rank.
    """

    mismatch: Tensor
    traces: Tensor


def view_statistics(
    views: Sequence[Tensor],
    axis: Axis,
    iterations: int,
    exchange: Exchange,
    target_too: bool = True,
    share_solves: bool = False,
) -> ViewStatistics:
    """Match and trace losses of V views after IterNorm.

    Args:
        views: V >= 2 tensors (n, d) of this rank's rows; the whole batch if ``exchange`` has one
            rank.
        axis: ``"channel"`` or ``"batch"``.
        iterations: T.
        exchange: how ranks share the work.
        target_too: whether view 0 takes a gradient.
        share_solves: whether ranks share the views' N x N solves too.

    Returns:
        Replicated values: on W ranks, their gradients are those of one rank's loss.
    """
    rows, width = views[0].shape[0] * exchange.size, views[0].shape[1]
    is_precise = iterations > NEWTON_UP_TO
    if rows > width:
        z = torch.stack([at_least_float32(view) for view in views])
        z = z.double() if is_precise else z
        return _by_rows(z, axis, iterations, exchange, rows, share_solves)
    if axis == "channel" and not is_precise:
        if exchange.size == 1:
            grams = view_grams(views, target_too, centres=True)
        else:
            columns = exchange.columns(torch.stack(centred_rows(views))).unbind(0)
            grams = view_grams(columns, target_too)
        return _by_grams(*grams, iterations, exchange, share_solves)
    z = torch.stack([at_least_float32(view) for view in views])
    z = z.double() if is_precise else z
    if axis == "channel":
        z = exchange.columns(centre(z, axis))
    else:
        z = centre(exchange.columns(z), axis)
    return _by_columns(z, axis, iterations, exchange, width, share_solves)


def _by_grams(
    own: Tensor, cross: Tensor, iterations: int, exchange: Exchange, share: bool
) -> ViewStatistics:
    """This rank's part of ``Z_v Z_v^T`` and ``Z_i Z_0^T``, of centred rows, channel axis."""
    own, cross = exchange.reduce(own), exchange.reduce(cross)
    s, trace = trace_normalised(own)
    p, share_of_one = shared_iternorm(s, iterations, exchange, share)
    # cos = diag(P_i Z_i Z_0^T P_0) / sqrt(h_i h_0), with both views' traces taken out.
    scale = (trace[1:] * trace[:1]).rsqrt()
    right = cross @ p[0]
    products = (p[1:].mT * right).sum(-2) * scale[:, None]
    mismatch = 2 - 2 * _cosine(products, share_of_one, iterations).mean(-1)
    return ViewStatistics(mismatch, (1 - share_of_one).square().sum(-1))


def _by_columns(
    z: Tensor, axis: Axis, iterations: int, exchange: Exchange, width: int, share: bool
) -> ViewStatistics:
    """Centred columns (V, N, d_r) of ``width`` in all, either axis."""
    freedom = width - 1 if axis == "channel" else z.shape[-2] - 1
    s, trace = trace_normalised(exchange.reduce(gram(z)))
    p, _ = shared_iternorm(s, iterations, exchange, share)
    p = exchange.spread(p * (trace / freedom).rsqrt()[:, None, None])
    z_hat = p @ z
    products = exchange.reduce((z_hat[1:] * z_hat[:1]).sum(-1)) / freedom
    norms = exchange.reduce(z_hat.square().sum(-1)) / freedom
    mismatch = 2 - 2 * _cosine(products, norms, iterations).mean(-1)
    if axis == "channel":
        return ViewStatistics(mismatch, (1 - norms).square().sum(-1))
    variances = z_hat.square().sum(-2) / freedom
    return ViewStatistics(mismatch, exchange.reduce((1 - variances).square().sum(-1)))


def _by_rows(
    z: Tensor, axis: Axis, iterations: int, exchange: Exchange, rows: int, share: bool
) -> ViewStatistics:
    """Own rows (V, n, d) of ``rows`` in all, either axis."""
    width = z.shape[-1]
    if axis == "channel":
        z, freedom = centre(z, axis), width - 1
    else:
        z, freedom = z - exchange.sum(z.sum(-2, keepdim=True)) / rows, rows - 1
    s, trace = trace_normalised(exchange.reduce(gram(z.mT)))
    p, variances = shared_iternorm(s, iterations, exchange, share)
    z_hat = z @ exchange.spread(p * (trace / freedom).rsqrt()[:, None, None])
    norms = z_hat.square().sum(-1) / freedom
    products = (z_hat[1:] * z_hat[:1]).sum(-1) / freedom
    cosines = exchange.reduce(_cosine(products, norms, iterations).sum(-1)) / rows
    if axis == "channel":
        traces = exchange.reduce((1 - norms).square().sum(-1))
    else:
        traces = (1 - variances).square().sum(-1)
    return ViewStatistics(2 - 2 * cosines, traces)


def _cosine(products: Tensor, norms: Tensor, iterations: int) -> Tensor:
    """Cosines (V - 1, N) from row products and squared norms (V, N); 0 with a row of zeros."""
    lowest = _ZERO_ROW[iterations > NEWTON_UP_TO]
    is_zero = norms <= lowest
    root = torch.where(is_zero, torch.ones_like(norms), norms).rsqrt()
    cosine = products * root[1:] * root[:1]
    return torch.where(is_zero[1:] | is_zero[:1], torch.zeros_like(cosine), cosine)
