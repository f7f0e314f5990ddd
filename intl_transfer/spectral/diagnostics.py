"""What a researcher watches: the spectrum, how far it is from collapse, and how views relate.

All functions work without gradient, on the batch they are given (gather it first, or watch one
rank's). Spectra are those of a Gram matrix formed in float64 on the smaller of N x N and d x d: one
formed in float32 knows an eigenvalue to 1e-7 of the largest alone, where the condition indicator of
a healthy batch is already below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from intl_transfer.spectral.common import (
    Axis,
    at_least_float32,
    center,
    check_axis,
    check_embedding,
    check_iterations,
    check_spread,
    degrees_of_freedom,
    total_variance,
)
from intl_transfer.spectral.gram import self_product
from intl_transfer.spectral.iternorm import iternorm_eigenvalue
from intl_transfer.spectral.scale import unit_rows


@torch.no_grad()
def spectrum(z: Tensor, axis: Axis = "channel") -> Tensor:
    """Eigenvalues of the covariance of a batch, the largest first.

    Args:
        z: embeddings, shape (..., N, d).
        axis: ``"channel"`` (N x N, each sample centered) or ``"batch"`` (d x d, each channel
            centered). Both are taken from the smaller Gram matrix.

    Returns:
        The largest eigenvalues, float64, none below zero: as many as centering leaves, shape
        (..., min(N, d - 1)) on the channel axis and (..., min(N - 1, d)) on the batch axis. The
        others are zero of any batch, however healthy, and are left out.

    Raises:
        ValueError: for an unknown axis, a wrong shape, or a batch too small to have a variance.
        TypeError: if ``z`` is not a floating-point tensor.
        NonFiniteError: if ``z`` holds NaN or infinity, or values whose squares float64 cannot hold.

    Example:
        >>> import torch
        >>> spectrum(torch.tensor([[3.0, -3.0, 0.0], [0.0, 0.0, 0.0]]))
        tensor([9., 0.], dtype=torch.float64)
    """
    check_embedding(z)
    check_spread(z.shape[-2], z.shape[-1], axis)
    centered = center(z.double(), axis)
    values: Tensor = torch.linalg.eigvalsh(_covariance(centered, axis))
    return values.flip(-1).clamp_min(0)[..., : directions(z.shape[-2], z.shape[-1], axis)]


def directions(rows: int, width: int, axis: Axis) -> int:
    """How many directions centering leaves of N x d embeddings: the rank of a healthy batch."""
    return min(rows, width - 1) if axis == "channel" else min(rows - 1, width)


def _covariance(centered: Tensor, axis: Axis) -> Tensor:
    """Of float64 rows (..., N, d), on the smaller side."""
    small = centered if centered.shape[-2] <= centered.shape[-1] else centered.mT
    covariance = self_product(small) / degrees_of_freedom(centered, axis)
    total_variance(covariance, centered)
    return covariance


def condition_indicator(values: Tensor) -> Tensor:
    """``lg(lambda_d / lambda_1)``, the smallest eigenvalue over the largest, to base 10.

    Args:
        values: a spectrum (..., n), the largest first, without the directions that centering
            empties, as :func:`spectrum` gives it.

    Returns:
        Shape (...): 0 for a white batch, -inf where the smallest is zero. What is below about -14
        is rounding, that of float32 embeddings themselves included.

    Example:
        >>> import torch
        >>> condition_indicator(torch.tensor([1.0, 0.5, 0.001]))
        tensor(-3.)
    """
    smallest, largest = values[..., -1], values[..., 0]
    share = smallest / torch.where(largest > 0, largest, torch.ones_like(largest))
    return torch.log10(share)


def effective_rank(values: Tensor) -> Tensor:
    """RankMe: ``exp`` of the entropy of the singular values (Garrido et al., arXiv 2210.02885).

    Args:
        values: eigenvalues of a covariance, (..., n); their square roots are the singular values.

    Returns:
        Shape (...): from 1 (one direction) to n (white). NaN-free: 0 without any variance.

    Example:
        >>> import torch
        >>> effective_rank(torch.tensor([1.0, 1.0, 1.0, 0.0]))
        tensor(3.)
    """
    singular = values.clamp_min(0).sqrt()
    total = singular.sum(-1, keepdim=True)
    share = singular / torch.where(total > 0, total, 1)
    rank = torch.special.entr(share).sum(-1).exp()
    return torch.where(total[..., 0] > 0, rank, 0)


def stable_rank(values: Tensor) -> Tensor:
    """``||Z||_F^2 / ||Z||_2^2``, the sum of the eigenvalues over the largest.

    Args:
        values: eigenvalues of a covariance, (..., n), the largest first.

    Returns:
        Shape (...): from 1 to n; 0 without any variance.
    """
    largest = values[..., 0]
    return torch.where(largest > 0, values.sum(-1) / torch.where(largest > 0, largest, 1), 0)


def _check_samples(z: Tensor) -> None:
    check_embedding(z)
    if z.dim() != 2 or len(z) < 2:
        raise ValueError(f"z: expected shape (N, d) with N >= 2, found {tuple(z.shape)}")


@torch.no_grad()
def alignment(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared distance of normalized positive pairs (Wang and Isola, arXiv 2005.10242).

    Args:
        a: one view's embeddings, (N, d).
        b: another view's of the same samples, (N, d).

    Returns:
        A scalar from 0 (equal) to 4; ``2 - 2 mean cos``.

    Raises:
        ValueError: for other shapes, or two different ones.
        TypeError: if one is not a floating-point tensor.
    """
    for z, name in ((a, "a"), (b, "b")):
        check_embedding(z, name)
    if a.dim() != 2 or a.shape != b.shape:
        raise ValueError(
            f"a has shape {tuple(a.shape)}, b {tuple(b.shape)}; expected the same (N, d) for both"
        )
    a, b = (unit_rows(at_least_float32(z)) for z in (a, b))
    return (a - b).square().sum(-1).mean()


@torch.no_grad()
def uniformity(z: Tensor, t: float = 2.0) -> Tensor:
    """``log mean exp(-t ||x - y||^2)`` over pairs of normalized rows (Wang and Isola).

    Args:
        z: embeddings, (N, d), N >= 2.
        t: of the Gaussian potential.

    Returns:
        A scalar: 0 where all rows agree; about ``-2 t`` spread evenly in many dimensions.
    """
    _check_samples(z)
    z = unit_rows(at_least_float32(z))
    squared = (2 - 2 * self_product(z)).clamp_min(0)
    n = len(z)
    i, j = torch.triu_indices(n, n, 1, device=z.device)
    return torch.logsumexp(-t * squared[i, j], 0) - math.log(n * (n - 1) / 2)


@torch.no_grad()
def feature_std(z: Tensor) -> Tensor:
    """Mean over channels of the standard deviation over samples, of normalized rows.

    Args:
        z: embeddings, (N, d), N >= 2.

    Returns:
        A scalar: 0 where all samples agree, near ``1 / sqrt(d)`` where they spread evenly (Chen and
        He, *SimSiam*, arXiv 2011.10566).

    Raises:
        ValueError: for another shape, or one sample.
        TypeError: if ``z`` is not a floating-point tensor.
    """
    _check_samples(z)
    return unit_rows(at_least_float32(z)).std(-2).mean()


def trace_loss_bound(n: int, iterations: int = 4, rank: int | None = None) -> float:
    """The least trace loss of a batch whose covariance has at most this rank.

    ``N (1 - (k / N) h_T(1 / k))^2``: the diagonal of the output's covariance sums to
    ``sum_j h_T(x_j)`` with ``sum_j x_j = 1``, at most ``k h_T(1 / k)`` since h_T is concave, and
    the squares are least where the N diagonal entries are equal. For k = N this is the floor
    ``N (1 - h_T(1 / N))^2`` of any batch.

    Args:
        n: N on the channel axis, d on the batch axis.
        iterations: T.
        rank: k from 1 to N; None for N.

    Returns:
        The bound; 209.60 for N = 256 and T = 4, 254.004 with k = 1.

    Raises:
        ValueError: for a rank outside 1..N.

    Example:
        >>> round(trace_loss_bound(256), 2), round(trace_loss_bound(256, rank=1), 3)
        (209.6, 254.004)
    """
    check_iterations(iterations)
    rank = n if rank is None else rank
    if not 1 <= rank <= n:
        raise ValueError(f"rank is {rank}; expected 1 to N = {n}")
    share = torch.tensor(1 / rank, dtype=torch.float64, device="cpu")
    h = float(iternorm_eigenvalue(share, iterations))
    return n * (1 - rank / n * h) ** 2


@dataclass(frozen=True)
class CollapseAlarm:
    """How a trace loss compares with what collapsed batches can reach.

    Attributes:
        value: the trace loss of one view.
        floor: the least that any batch of this shape reaches.
        bound: the least that a batch of rank ``rank`` reaches.
        rank: of the bound.
        rank_at_least: the smallest rank that reaches ``value``: with any smaller, the trace loss
            would be larger. What the trace loss certifies.
        verdict: ``"healthy"`` (below the bound: more than ``rank`` directions), ``"collapsed"``
            (at or above the bound) or ``"impossible"`` (below the floor: not a trace loss of this
            shape and T).
    """

    value: float
    floor: float
    bound: float
    rank: int
    rank_at_least: int
    verdict: str

    def __str__(self) -> str:
        return (
            f"{self.verdict}: trace loss {self.value:.2f}, floor {self.floor:.2f}, "
            f"{self.bound:.2f} at rank {self.rank}; rank at least {self.rank_at_least}"
        )


def collapse_alarm(
    value: float,
    n: int,
    iterations: int = 4,
    rank: int | None = None,
    attainable: int | None = None,
) -> CollapseAlarm:
    """Evaluates a view's trace loss.

    A batch of rank k cannot have a trace loss below :func:`trace_loss_bound` (N, T, k), so that a
    smaller one proves more than k directions. The reverse is a warning, not a proof: a spectrum
    with one dominant direction and a long tail counts as collapsed, too, and should.

    Args:
        value: trace loss of one view, a sum over N as :func:`intl_transfer.spectral.trace_loss`.
        n: N on the channel axis, d on the batch axis.
        iterations: T.
        rank: of the bound that raises the alarm; None takes ``max(1, attainable // 32)``, chosen
            here.
        attainable: the largest rank that a batch of this shape has, :func:`directions`: the other
            side may limit it, d - 1 on the channel axis and N - 1 on the batch axis. None for N.

    Returns:
        Value, bound and verdict.

    Raises:
        ValueError: if the trace loss is NaN or infinite, or a rank is outside 1..N.

    Example:
        >>> print(collapse_alarm(254.1, n=256))
        collapsed: trace loss 254.10, floor 209.60, 240.93 at rank 8; rank at least 1
        >>> collapse_alarm(212.0, n=256).verdict
        'healthy'
    """
    if not math.isfinite(value):
        raise ValueError(f"a trace loss of {value}; expected a finite one")
    attainable = n if attainable is None else attainable
    rank = max(1, attainable // 32) if rank is None else rank
    floor = trace_loss_bound(n, iterations, attainable)
    bound = trace_loss_bound(n, iterations, rank)
    low, high = 1, attainable  # the bound falls with the rank
    while low < high:
        middle = (low + high) // 2
        if trace_loss_bound(n, iterations, middle) <= value:
            high = middle
        else:
            low = middle + 1
    # Rounding of N squares in float32.
    if value < floor * (1 - 1e-4) - 1e-6:
        verdict = "impossible"
    else:
        verdict = "healthy" if value < bound else "collapsed"
    return CollapseAlarm(value, floor, bound, rank, low, verdict)


@dataclass(frozen=True)
class Diagnostics:
    """Metrics of one batch, of the target view unless stated otherwise.

    Attributes:
        condition: :func:`condition_indicator`.
        effective_rank: :func:`effective_rank`.
        stable_rank: :func:`stable_rank`.
        alignment: :func:`alignment` of view 0 and view 1.
        uniformity: :func:`uniformity`.
        feature_std: :func:`feature_std`.
        trace_loss: after IterNorm, computed from the spectrum's float64 decomposition.
        alarm: :func:`collapse_alarm` of that trace loss.
        eigenvalues: :func:`spectrum`, the largest first.
    """

    condition: float
    effective_rank: float
    stable_rank: float
    alignment: float
    uniformity: float
    feature_std: float
    trace_loss: float
    alarm: CollapseAlarm
    eigenvalues: Tensor

    def scalars(self) -> dict[str, float]:
        """The metrics for a log, without the spectrum; the alarm as 0 or 1."""
        metrics = {name: value for name, value in asdict(self).items() if isinstance(value, float)}
        return {**metrics, "collapsed": float(self.alarm.verdict == "collapsed")}


@torch.no_grad()
def diagnose(views: Sequence[Tensor], axis: Axis = "channel", iterations: int = 4) -> Diagnostics:
    """All metrics of a batch at once, from one decomposition.

    Args:
        views: two or more tensors (N, d), N >= 2, the target first; of one rank, or gathered.
        axis: ``"channel"`` or ``"batch"``.
        iterations: T of the trace loss.

    Returns:
        The metrics.

    Raises:
        ValueError: for fewer than two views, an unknown axis or a wrong shape.
        TypeError: if a view is not a floating-point tensor.
        NonFiniteError: if the target holds NaN or infinity.

    Example:
        >>> import torch
        >>> metrics = diagnose([torch.randn(64, 512), torch.randn(64, 512)])
        >>> metrics.alarm.verdict
        'healthy'
    """
    if len(views) < 2:
        raise ValueError(f"{len(views)} view(s); expected two or more, the target first")
    check_axis(axis)
    check_iterations(iterations)
    for number, view in enumerate(views):
        check_embedding(view, f"view {number}")
        if view.dim() != 2:
            raise ValueError(f"view {number}: expected shape (N, d), found {tuple(view.shape)}")
    z = at_least_float32(views[0].detach())
    check_spread(z.shape[0], z.shape[1], axis)
    n = z.shape[0] if axis == "channel" else z.shape[1]
    centered = center(z.double(), axis)
    left = z.shape[0] <= z.shape[1]
    values, vectors = torch.linalg.eigh(_covariance(centered, axis))
    values = values.clamp_min(0)
    total = values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    h = iternorm_eigenvalue(values / total, iterations)
    # The diagonal of the output's covariance; of the N x N or d x d one, whichever the axis has.
    if left == (axis == "channel"):
        diagonal = vectors.square() @ h
    else:
        root = (h / torch.where(values > 0, values * degrees_of_freedom(z, axis), 1)).sqrt()
        diagonal = ((centered.mT if left else centered) @ (vectors * root)).square().sum(-1)
    trace_loss = float((1 - diagonal).square().sum())
    attainable = directions(z.shape[0], z.shape[1], axis)
    values = values.flip(0)[:attainable]
    return Diagnostics(
        condition=float(condition_indicator(values)),
        effective_rank=float(effective_rank(values)),
        stable_rank=float(stable_rank(values)),
        alignment=float(alignment(z, views[1].detach())),
        uniformity=float(uniformity(z)),
        feature_std=float(feature_std(z)),
        trace_loss=trace_loss,
        alarm=collapse_alarm(trace_loss, n, iterations, attainable=attainable),
        eigenvalues=values,
    )
