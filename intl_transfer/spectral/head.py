"""What INTL needs of V views: how well they match, and how far each is from white.

Three ways to the same numbers, all on the smaller of N x N and d x d:

* **Grams** (channel axis, N <= d, T <= 6). Row norms of the output are ``diag(h_T(S))``, row
  products ``diag(P_i Z_i Z_0^T P_0)``: N x N matrices alone, no N x d output is made.
* **Columns** (N <= d, otherwise). The output ``P Z`` is computed; any set of its columns is
independent. * **Rows** (N > d). The output ``Z P`` is computed; any set of its rows is independent.

Each is a sum over columns or rows, so that ranks can share it: see :mod:`.sharding`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from intl_transfer.spectral.collectives import Exchange
from intl_transfer.spectral.common import (
    Axis,
    at_least_float32,
    center,
)
from intl_transfer.spectral.gram import centered_rows, gram, view_grams
from intl_transfer.spectral.iternorm import NEWTON_UP_TO, trace_normalized
from intl_transfer.spectral.product import product
from intl_transfer.spectral.scale import at_safe_scale
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
    prepare: Callable[[Sequence[Tensor]], _Prepared]
    finish: Callable[[_Prepared, _Settings], ViewStatistics]
    if rows > width:
        prepare, finish = partial(_prepare_rows, axis, exchange, is_precise), _by_rows
    elif axis == "channel" and not is_precise:
        prepare, finish = partial(_prepare_grams, target_too, exchange), _by_grams
    else:
        prepare, finish = partial(_prepare_columns, axis, exchange, is_precise), _by_columns
    if finish is not _by_grams:
        views = [at_least_float32(view) for view in views]
    made, is_safe = at_safe_scale(prepare, views, exchange.largest)
    return finish(made, _Settings(axis, iterations, exchange, rows, width, share_solves, is_safe))


class _Prepared(NamedTuple):
    """What follows from the embeddings alone.

    Attributes:
        own: each view's Gram, N x N or d x d, replicated.
        z: centered views, (V, n, d) or (V, N, d_r), where outputs are made of them.
        cross: ``Z_i Z_0^T``, (V - 1, N, N), where the loss is made of Grams.
    """

    own: Tensor
    z: Tensor
    cross: Tensor


class _Settings(NamedTuple):
    """Of the call: ``rows`` N and ``width`` d are the global batch's, ``share`` whether ranks
    share solves, ``is_safe`` whether all views have a finite variance above zero.
    """

    axis: Axis
    iterations: int
    exchange: Exchange
    rows: int
    width: int
    share: bool
    is_safe: bool

    @property
    def freedom(self) -> int:
        """The divisor of the covariance."""
        return self.width - 1 if self.axis == "channel" else self.rows - 1


def _prepare_grams(target_too: bool, exchange: Exchange, views: Sequence[Tensor]) -> _Prepared:
    if exchange.size == 1:
        own, cross = view_grams(views, target_too, centers=True)
    else:
        columns = exchange.columns(torch.stack(centered_rows(views))).unbind(0)
        own, cross = view_grams(columns, target_too)
    return _Prepared(exchange.reduce(own), own.new_empty(0), exchange.reduce(cross))


def _prepare_columns(
    axis: Axis, exchange: Exchange, is_precise: bool, views: Sequence[Tensor]
) -> _Prepared:
    z = torch.stack(list(views))
    z = z.double() if is_precise else z
    if axis == "channel":
        z = exchange.columns(center(z, axis))
    else:
        z = center(exchange.columns(z), axis)
    return _Prepared(exchange.reduce(gram(z)), z, z.new_empty(0))


def _prepare_rows(
    axis: Axis, exchange: Exchange, is_precise: bool, views: Sequence[Tensor]
) -> _Prepared:
    z = torch.stack(list(views))
    z = z.double() if is_precise else z
    if axis == "channel":
        z = center(z, axis)
    else:
        rows = z.shape[-2] * exchange.size
        z = z - exchange.sum(z.sum(-2, keepdim=True)) / rows
    return _Prepared(exchange.reduce(gram(z.mT)), z, z.new_empty(0))


def _by_grams(made: _Prepared, settings: _Settings) -> ViewStatistics:
    """From Grams of centered rows alone, channel axis."""
    s, trace = trace_normalized(made.own, settings.is_safe)
    p, share_of_one = shared_iternorm(s, settings.iterations, settings.exchange, settings.share)
    # cos = diag(P_i Z_i Z_0^T P_0) / sqrt(h_i h_0), with both views' traces taken out: each by
    # itself, since views need not be of one scale.
    right = product(made.cross.flatten(0, 1), p[0]).view_as(made.cross)
    products = (p[1:].mT * right).sum(-2) * trace[1:].rsqrt()[:, None] * trace[0].rsqrt()
    mismatch = 2 - 2 * _cosine(products, share_of_one, settings.iterations).mean(-1)
    return ViewStatistics(mismatch, (1 - share_of_one).square().sum(-1))


def _by_columns(made: _Prepared, settings: _Settings) -> ViewStatistics:
    """From own columns of all rows, either axis."""
    exchange, freedom = settings.exchange, settings.freedom
    s, trace = trace_normalized(made.own, settings.is_safe)
    p, _ = shared_iternorm(s, settings.iterations, exchange, settings.share)
    p = exchange.spread(p * (trace / freedom).rsqrt()[:, None, None])
    z_hat = product(p, made.z)
    products = exchange.reduce((z_hat[1:] * z_hat[:1]).sum(-1)) / freedom
    norms = exchange.reduce(z_hat.square().sum(-1)) / freedom
    mismatch = 2 - 2 * _cosine(products, norms, settings.iterations).mean(-1)
    if settings.axis == "channel":
        return ViewStatistics(mismatch, (1 - norms).square().sum(-1))
    variances = z_hat.square().sum(-2) / freedom
    return ViewStatistics(mismatch, exchange.reduce((1 - variances).square().sum(-1)))


def _by_rows(made: _Prepared, settings: _Settings) -> ViewStatistics:
    """From own rows of all columns, either axis."""
    exchange, freedom = settings.exchange, settings.freedom
    s, trace = trace_normalized(made.own, settings.is_safe)
    p, variances = shared_iternorm(s, settings.iterations, exchange, settings.share)
    z_hat = product(made.z, exchange.spread(p * (trace / freedom).rsqrt()[:, None, None]))
    norms = z_hat.square().sum(-1) / freedom
    products = (z_hat[1:] * z_hat[:1]).sum(-1) / freedom
    cosines = _cosine(products, norms, settings.iterations).sum(-1)
    cosines = exchange.reduce(cosines) / settings.rows
    if settings.axis == "channel":
        traces = exchange.reduce((1 - norms).square().sum(-1))
    else:
        traces = (1 - variances).square().sum(-1)
    return ViewStatistics(2 - 2 * cosines, traces)


def _cosine(products: Tensor, norms: Tensor, iterations: int) -> Tensor:
    """Cosines (V - 1, N) from row products and squared norms (V, N); 0 with a row of zeros."""
    lowest = _ZERO_ROW[iterations > NEWTON_UP_TO]
    is_zero = norms <= lowest
    # Not rsqrt: the cube of the root, in its derivative, overflows where norms are below 1e-25.
    root = torch.where(is_zero, torch.ones_like(norms), norms).sqrt().reciprocal()
    cosine = products * root[1:] * root[:1]
    return torch.where(is_zero[1:] | is_zero[:1], torch.zeros_like(cosine), cosine)
