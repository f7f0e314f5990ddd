"""Spectral transformations: power functions, whitening, IterNorm, and custom functions.

A spectral transformation (Weng et al., ICLR 2024, section 3) centers ``Z``, decomposes its
covariance ``Sigma = U Lambda U^T`` and returns ``U g(Lambda) U^T Z``. Each is here as a function of
embeddings, and as a thin module with one interface: called on ``z`` it returns the transformed
rows, and ``g(values)`` is its scalar function.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from intl_transfer.spectral.collectives import gather_rows, global_batch, own_rows
from intl_transfer.spectral.common import (
    Axis,
    at_least_float32,
    center,
    check_axis,
    check_embedding,
    check_iterations,
    check_spread,
    degrees_of_freedom,
    representable,
    total_variance,
)
from intl_transfer.spectral.gram import gram
from intl_transfer.spectral.guards import require
from intl_transfer.spectral.iternorm import NEWTON_UP_TO, iternorm, iternorm_factor
from intl_transfer.spectral.matrix_function import FLOOR, raised_function
from intl_transfer.spectral.modes import full_precision
from intl_transfer.spectral.product import product
from intl_transfer.spectral.scalar import Scalar, ScalarFunction, given_function, power


@global_batch
def spectral_transform(
    z: Tensor,
    g: Scalar,
    axis: Axis = "channel",
    *,
    g_prime: Scalar | None = None,
    floor: float = FLOOR,
    group: Any = None,
    distributed: bool = True,
) -> Tensor:
    """The spectral transformation of any scalar function: ``U g(Lambda) U^T Z``.

    Decomposed in float64 on the smaller of N x N and d x d. Eigenvalues below ``floor`` of their
    sum are raised to it before g is applied: rounding alone decides what they are. All others are
    left exactly as they are.

    Args:
        z: embeddings, shape (N, d) or (V, N, d); this rank's rows under a process group.
        g: function of a tensor of positive eigenvalues that maps each independently. One that looks
            at the others (divides by their sum) has another derivative, and is refused.
        axis: ``"channel"`` or ``"batch"``, as for :func:`intl_transfer.spectral.iternorm`.
        g_prime: the derivative of g; by autograd if None.
        floor: a fraction of the trace, 1e-14 unless given. A larger one, such as 1e-6, keeps
            noise in collapsed directions from being scaled up.
        group: process group whose ranks share the batch; the default group if None.
        distributed: False treats ``z`` as the whole batch even under a process group.

    Returns:
        The transformed rows, shape of ``z``, float32 (float64 for float64 input) regardless of
        autocast. Gradients are exact also where eigenvalues repeat (Daleckii-Krein formula); twice
        differentiable. A batch without variance comes out as zeros, with zero gradient.

    Raises:
        ValueError: for an unknown axis, a tensor without N and d, one channel on the channel
            axis, one sample on the batch axis, ranks with different numbers of rows, or a g that
            does not map each eigenvalue independently.
        TypeError: if ``z`` is not a floating-point tensor.
        NonFiniteError: if ``z`` holds NaN or infinity, g maps an eigenvalue to one, the result is
            beyond the range of float32, or the variance below that of float64.

    Example:
        >>> import torch
        >>> z_hat = spectral_transform(torch.randn(16, 64), lambda values: 1 / (1 + values))
    """
    scalar = given_function(g, g_prime)
    return _transform(z, scalar, axis, floor, group, distributed)


def _transform(
    z: Tensor,
    scalar: ScalarFunction,
    axis: Axis,
    floor: float,
    group: Any,
    distributed: bool,
) -> Tensor:
    """:func:`spectral_transform` of a function with its derivatives."""
    check_embedding(z)
    if not floor >= 0:
        raise ValueError(f"floor is {floor}; expected a fraction of the trace, a number >= 0")
    with full_precision(z.device):
        rows = gather_rows(at_least_float32(z), group, distributed)
        check_spread(rows.shape[-2], rows.shape[-1], axis)
        centered = center(rows.double(), axis)
        left = _solves_samples(centered, axis)
        sigma = gram(centered if left else centered.mT) / degrees_of_freedom(centered, axis)
        trace = total_variance(sigma, centered)
        # A batch without variance is decomposed as the identity, and multiplied with zeros.
        is_zero = (trace < torch.finfo(trace.dtype).tiny)[..., None, None]
        n = sigma.shape[-1]
        if left == (axis == "batch"):
            # Centering has emptied the direction (1, ..., 1), of which g would make what rounding
            # left there. With the mean variance in it, g makes something harmless, of nothing.
            sigma = sigma + (trace / n**2)[..., None, None]
        eye = torch.eye(n, dtype=sigma.dtype, device=sigma.device)
        sigma = torch.where(is_zero, eye, sigma)
        trace = torch.where(is_zero[..., 0, 0], torch.full_like(trace, n), trace)
        transform = raised_function(sigma, scalar, floor, trace)
        transform = require(
            transform,
            torch.isfinite(transform.detach()).flatten(-2).all(-1),
            "nonfinite",
            "the function makes NaN or infinity of an eigenvalue{where}; it must be finite for "
            "positive ones down to the floor",
        )
        z_hat = product(transform, centered) if left else product(centered, transform)
        # Zeros have no derivative through g: at least none that is worth following.
        z_hat = torch.where(is_zero, torch.zeros_like(z_hat), z_hat)
        return own_rows(representable(z_hat, rows.dtype), z.shape[-2], group, distributed)


def _solves_samples(centered: Tensor, axis: Axis) -> bool:
    """Whether N x N is solved, not d x d: the smaller one, and of equal ones that of full rank.

    Centering leaves at most d - 1 (channel axis) or N - 1 directions (batch axis).
    """
    n, d = centered.shape[-2:]
    return n < d if axis == "channel" else n <= d


@global_batch
def power_transform(
    z: Tensor,
    p: float,
    axis: Axis = "channel",
    *,
    floor: float = FLOOR,
    group: Any = None,
    distributed: bool = True,
) -> Tensor:
    """Spectral transformation with the power function ``g(lambda) = lambda^-p``.

    ``p = 0`` centers, ``p = 0.5`` is ZCA (hard) whitening.

    Args:
        z: embeddings, shape (N, d) or (V, N, d); this rank's rows under a process group.
        p: exponent, any real number >= 0.
        axis: ``"channel"`` or ``"batch"``, as for :func:`intl_transfer.spectral.iternorm`.
        floor: eigenvalues below this fraction of their sum are raised to it, as for
            :func:`spectral_transform`.
        group: process group whose ranks share the batch; the default group if None.
        distributed: False treats ``z`` as the whole batch even under a process group.

    Returns:
        As :func:`spectral_transform`.

    Raises:
        ValueError: for a negative p; else as :func:`spectral_transform`.
        TypeError: if ``z`` is not a floating-point tensor.
        NonFiniteError: if ``z`` holds NaN or infinity.

    Example:
        >>> import torch
        >>> z_hat = power_transform(torch.randn(8, 64), 0.5)
        >>> bool(torch.allclose(z_hat @ z_hat.T / 63, torch.eye(8), atol=1e-5))
        True
    """
    if not 0 <= p < float("inf"):
        raise ValueError(f"p is {p}; expected a power p >= 0")
    if p == 0:  # exactly centering, without a decomposition
        check_embedding(z)
        with full_precision(z.device):
            rows = gather_rows(at_least_float32(z), group, distributed)
            check_spread(rows.shape[-2], rows.shape[-1], axis)
            centered = representable(center(rows, axis), rows.dtype)
            return own_rows(centered, z.shape[-2], group, distributed)
    return _transform(z, power(p), axis, floor, group, distributed)


@global_batch
def cholesky_whitening(
    z: Tensor,
    axis: Axis = "batch",
    *,
    shrinkage: float = 0.0,
    group: Any = None,
    distributed: bool = True,
) -> Tensor:
    """Whitening with the inverse Cholesky factor, as W-MSE does (arXiv 2007.06346).

    With ``Sigma = L L^T``, the output is ``L^-1 Z`` (channel axis) or ``Z L^-T`` (batch axis). Its
    covariance is the identity, as that of ZCA whitening, from which it differs by a rotation that
    depends on the order of the channels (samples): it is no spectral transformation.

    Args:
        z: embeddings, shape (N, d) or (V, N, d); this rank's rows under a process group. Sigma
            must have full rank: d < N on the batch axis, N < d on the channel axis.
        axis: ``"batch"`` whitens the d channels (W-MSE), ``"channel"`` the N samples.
        shrinkage: s in [0, 1]: Sigma becomes ``(1 - s) Sigma + s I``.
        group: process group whose ranks share the batch; the default group if None.
        distributed: False treats ``z`` as the whole batch even under a process group.

    Returns:
        The transformed rows, shape of ``z``, float32 (float64 for float64 input), decomposed in
        float64.

    Raises:
        ValueError: if Sigma is singular (to 1e-14 of its trace); states why if shapes tell.
        TypeError: if ``z`` is not a floating-point tensor.
        NonFiniteError: if ``z`` holds NaN or infinity.

    Example:
        >>> import torch
        >>> z_hat = cholesky_whitening(torch.randn(64, 8))
        >>> bool(torch.allclose(torch.cov(z_hat.T), torch.eye(8), atol=1e-5))
        True
    """
    check_embedding(z)
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage is {shrinkage}; expected a number from 0 to 1")
    with full_precision(z.device):
        rows = gather_rows(at_least_float32(z), group, distributed)
        n, d = rows.shape[-2:]
        check_spread(n, d, axis)
        centered = center(rows.double(), axis)
        sigma = gram(centered if axis == "channel" else centered.mT)
        sigma = sigma / degrees_of_freedom(centered, axis)
        trace = total_variance(sigma, centered)
        eye = torch.eye(sigma.shape[-1], dtype=sigma.dtype, device=sigma.device)
        sigma = (1 - shrinkage) * sigma + shrinkage * eye
        factor, info = torch.linalg.cholesky_ex(sigma)
        # Diagonal entries of a singular matrix's factor are square roots of rounding.
        pivots = factor.detach().diagonal(dim1=-2, dim2=-1).square()
        small, large = ("N", "d") if axis == "channel" else ("d", "N")
        factor = require(
            factor,
            (info == 0) & (pivots >= FLOOR * trace.detach()[..., None]).all(-1),
            "value",
            f"the covariance of a batch with N = {n}, d = {d} is singular on the {axis} axis"
            f"{{where}}; Cholesky whitening needs {small} < {large} and no collapsed direction. "
            "Use a shrinkage > 0, or power_transform(z, 0.5), which leaves such directions at zero",
        )
        if axis == "channel":
            z_hat = torch.linalg.solve_triangular(factor, centered, upper=False)
        else:
            z_hat = torch.linalg.solve_triangular(factor, centered.mT, upper=False).mT
        return own_rows(representable(z_hat, rows.dtype), z.shape[-2], group, distributed)


class SpectralTransform(nn.Module, ABC):
    """One interface: called on ``z`` (..., N, d) the transformation, ``g`` its scalar function.

    Attributes:
        axis: ``"channel"`` or ``"batch"``.
        is_precise: whether it works in float64 anyway; losses then hand it float64 rows.
    """

    axis: Axis
    is_precise: bool = False

    def __init__(self, axis: Axis) -> None:
        super().__init__()
        check_axis(axis)
        self.axis = axis

    def forward(self, z: Tensor) -> Tensor:
        """The transformed rows of the global batch that this rank holds."""
        return self.transformed(z, distributed=True)

    def apply_to(self, z: Tensor) -> Tensor:
        """The transformation of a batch that is all here."""
        return self.transformed(z, distributed=False)

    @abstractmethod
    def transformed(self, z: Tensor, distributed: bool) -> Tensor:
        """The transformed rows, of the global batch or of ``z`` alone."""

    @abstractmethod
    def g(self, values: Tensor) -> Tensor:
        """The factor on each direction, from the covariance's eigenvalues (..., n), all of them."""


class PowerTransform(SpectralTransform):
    """:func:`power_transform`: ``g(lambda) = lambda^-p``.

    Example:
        >>> import torch
        >>> PowerTransform(0.5).g(torch.tensor([4.0, 1.0]))
        tensor([0.5000, 1.0000])
    """

    def __init__(self, p: float, axis: Axis = "channel", floor: float = FLOOR) -> None:
        super().__init__(axis)
        if not 0 <= p < float("inf"):
            raise ValueError(f"p is {p}; expected a power p >= 0")
        self.p, self.floor = p, floor
        self.is_precise = p > 0

    def transformed(self, z: Tensor, distributed: bool) -> Tensor:
        """As :func:`power_transform`."""
        return power_transform(z, self.p, self.axis, floor=self.floor, distributed=distributed)

    def g(self, values: Tensor) -> Tensor:
        """``lambda^-p``, above the floor."""
        return values.maximum(self.floor * values.sum(-1, keepdim=True)).pow(-self.p)

    def extra_repr(self) -> str:
        """Its settings, for ``print``."""
        return f"p={self.p}, axis={self.axis!r}, floor={self.floor}"


class IterNorm(SpectralTransform):
    """:func:`iternorm`: ``g(lambda) = f_T(lambda / tr Sigma) / sqrt(tr Sigma)`` (Theorem 1).

    Example:
        >>> import torch
        >>> values = torch.tensor([3.0, 1.0])
        >>> values * IterNorm(iterations=20).g(values) ** 2
        tensor([1.0000, 1.0000])
    """

    def __init__(self, iterations: int = 4, axis: Axis = "channel", stable: bool = True) -> None:
        super().__init__(axis)
        check_iterations(iterations)
        self.iterations, self.stable = iterations, stable
        self.is_precise = stable and iterations > NEWTON_UP_TO

    def transformed(self, z: Tensor, distributed: bool) -> Tensor:
        """As :func:`iternorm`."""
        return iternorm(z, self.axis, self.iterations, self.stable, distributed=distributed)

    def g(self, values: Tensor) -> Tensor:
        """``f_T(lambda / tr Sigma) / sqrt(tr Sigma)``."""
        trace = values.sum(-1, keepdim=True)
        return iternorm_factor(values / trace, self.iterations) * trace.rsqrt()

    def extra_repr(self) -> str:
        """Its settings, for ``print``."""
        return f"T={self.iterations}, axis={self.axis!r}, stable={self.stable}"


class ScalarTransform(SpectralTransform):
    """:func:`spectral_transform` with a custom function.

    Example:
        >>> import torch
        >>> shrink = ScalarTransform(lambda values: 1 / (1 + values))
        >>> shrink(torch.randn(8, 32)).shape
        torch.Size([8, 32])
    """

    def __init__(
        self,
        g: Scalar,
        axis: Axis = "channel",
        g_prime: Scalar | None = None,
        floor: float = FLOOR,
    ) -> None:
        super().__init__(axis)
        self._g, self._g_prime, self.floor = g, g_prime, floor
        self.is_precise = True

    def transformed(self, z: Tensor, distributed: bool) -> Tensor:
        """As :func:`spectral_transform`."""
        return spectral_transform(
            z,
            self._g,
            self.axis,
            g_prime=self._g_prime,
            floor=self.floor,
            distributed=distributed,
        )

    def g(self, values: Tensor) -> Tensor:
        """The function, above the floor."""
        return self._g(values.maximum(self.floor * values.sum(-1, keepdim=True)))

    def extra_repr(self) -> str:
        """Its settings, for ``print``."""
        names = [getattr(f, "__name__", repr(f)) for f in (self._g, self._g_prime) if f is not None]
        slope = f", g_prime={names[1]}" if len(names) > 1 else ""
        return f"g={names[0]}{slope}, axis={self.axis!r}, floor={self.floor}"


class CholeskyWhitening(SpectralTransform):
    """:func:`cholesky_whitening`; its output has ZCA whitening's spectrum, in other directions.

    Example:
        >>> import torch
        >>> CholeskyWhitening()(torch.randn(64, 8)).shape
        torch.Size([64, 8])
    """

    def __init__(self, axis: Axis = "batch", shrinkage: float = 0.0) -> None:
        super().__init__(axis)
        if not 0 <= shrinkage <= 1:
            raise ValueError(f"shrinkage is {shrinkage}; expected a number from 0 to 1")
        self.shrinkage = shrinkage
        self.is_precise = True

    def transformed(self, z: Tensor, distributed: bool) -> Tensor:
        """As :func:`cholesky_whitening`."""
        return cholesky_whitening(z, self.axis, shrinkage=self.shrinkage, distributed=distributed)

    def g(self, values: Tensor) -> Tensor:
        """``lambda^-1/2`` of the shrunk spectrum: the scale, not the directions."""
        return ((1 - self.shrinkage) * values + self.shrinkage).rsqrt()

    def extra_repr(self) -> str:
        """Its settings, for ``print``."""
        return f"axis={self.axis!r}, shrinkage={self.shrinkage}"
