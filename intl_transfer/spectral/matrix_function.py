"""Scalar functions of symmetric matrices, differentiable twice, also at repeated eigenvalues.

``F(S, l) = U g(max(Lambda, l)) U^T``, with a floor l under the eigenvalues. Its derivative is that
of Daleckii and Krein: in the eigenbasis, ``dF = K * dS + diag(c) dl`` with the divided differences
``K_ij = g[l_i, l_j]`` and ``c_i = g'(l)`` on raised eigenvalues, zero on others. Differentiating
through ``torch.linalg.eigh`` instead divides by gaps and gives NaN at repeated eigenvalues. The
second derivative takes divided differences of three eigenvalues (:mod:`.differences`).
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from intl_transfer.spectral.common import at_least_float32, check_embedding, finite
from intl_transfer.spectral.differences import (
    contract_second,
    first_differences,
    step_differences,
)
from intl_transfer.spectral.guards import once
from intl_transfer.spectral.modes import (
    forward_mode,
    full_precision,
    is_compiling,
    is_plain,
    island,
)
from intl_transfer.spectral.product import product
from intl_transfer.spectral.scalar import (
    Scalar,
    ScalarFunction,
    applied,
    given_function,
    refuse_parameters,
)

#: Eigenvalues below this fraction of their sum are raised to it. A float64 Gram matrix knows its
#: eigenvalues to some 1e-16 of their sum: at 1e-14, the square root of the ratio by which one may
#: be off stays below 1.01; every eigenvalue above is left exactly as it is.
FLOOR = 1e-14


def matrix_function(
    sigma: Tensor, g: Scalar, g_prime: Scalar | None = None, floor: float = FLOOR
) -> Tensor:
    """Applies a scalar function to the eigenvalues of a symmetric matrix.

    Args:
        sigma: symmetric positive semi-definite matrices, shape (..., n, n); float64 where small
            eigenvalues matter.
        g: the scalar function, elementwise on a tensor of eigenvalues.
        g_prime: its derivative; by autograd of ``g`` if None.
        floor: eigenvalues below this fraction of the trace are raised to it first.

    Returns:
        ``U g(Lambda) U^T``, shape of ``sigma``, at least float32. Its gradient is exact where
        eigenvalues repeat (Daleckii-Krein), and that of the raised spectrum where eigenvalues are
        raised. Twice differentiable; compiled, once.

    Raises:
        TypeError: if ``sigma`` is not a floating-point tensor.
        ValueError: if it is not square, or g does not map each eigenvalue independently.
        NonFiniteError: if the trace is NaN or infinite.
        NotImplementedError: when a third derivative is taken.

    Example:
        >>> import torch
        >>> root = matrix_function(torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double(), torch.sqrt)
        >>> root @ root
        tensor([[2.0000, 1.0000],
                [1.0000, 2.0000]], dtype=torch.float64)
    """
    check_embedding(sigma, "sigma")
    if sigma.shape[-1] != sigma.shape[-2]:
        raise ValueError(f"sigma: expected matrices (..., n, n), found {tuple(sigma.shape)}")
    with full_precision(sigma.device):
        sigma = at_least_float32(sigma)
        trace = finite(sigma.diagonal(dim1=-2, dim2=-1).sum(-1))
        return raised_function(sigma, given_function(g, g_prime), floor, trace)


def raised_function(sigma: Tensor, scalar: ScalarFunction, floor: float, trace: Tensor) -> Tensor:
    """:func:`matrix_function` of a function with its derivatives.

    Args:
        sigma: matrices (..., n, n).
        scalar: the function.
        floor: a fraction of ``trace``.
        trace: total variances, (...).
    """
    lowest = (floor * trace).clamp_min(torch.finfo(sigma.dtype).tiny)
    if scalar.given and torch.is_grad_enabled() and is_plain(sigma):
        refuse_parameters(scalar.value, sigma)
    if is_compiling():
        return _compiled(once(sigma), once(lowest), scalar)
    return cast(Tensor, _MatrixFunction.apply(sigma, lowest, scalar)[0])


class _Basis(NamedTuple):
    """A decomposition, and g of its eigenvalues.

    Attributes:
        values: eigenvalues (..., n), as they are.
        vectors: (..., n, n).
        is_raised: which eigenvalues are below the floor.
        raised: eigenvalues, none below the floor.
        first: divided differences of g, (..., n, n).
        follows: g' of raised eigenvalues, which follow the floor; zero elsewhere.
    """

    values: Tensor
    vectors: Tensor
    is_raised: Tensor
    raised: Tensor
    first: Tensor
    follows: Tensor

    def inside(self, matrix: Tensor) -> Tensor:
        """The symmetric part of a matrix, in the eigenbasis."""
        return product(product(self.vectors.mT, (matrix + matrix.mT) / 2), self.vectors)

    def outside(self, matrix: Tensor) -> Tensor:
        """Back."""
        return product(product(self.vectors, matrix), self.vectors.mT)


def _basis(lowest: Tensor, values: Tensor, vectors: Tensor, scalar: ScalarFunction) -> _Basis:
    floor = lowest[..., None]
    is_raised, raised = values < floor, torch.maximum(values, floor)
    slope = scalar.slope(raised)
    first = first_differences(
        values, scalar.value(raised), torch.where(is_raised, torch.zeros_like(slope), slope)
    )
    follows = torch.where(is_raised, slope, torch.zeros_like(slope))
    return _Basis(values, vectors, is_raised, raised, first, follows)


def _mapped(values: Tensor, scalar: ScalarFunction) -> Tensor:
    if not scalar.given:
        return scalar.value(values)
    mapped = applied(scalar.value, values)
    if scalar.slope_given:
        applied(scalar.slope, values, "g_prime")
    return mapped


def _compiled(sigma: Tensor, lowest: Tensor, scalar: ScalarFunction) -> Tensor:
    """The value, and a linear term of value zero that has its derivative."""
    at = sigma.detach()
    values, vectors = torch.linalg.eigh(at)
    basis = _basis(lowest.detach(), values, vectors, scalar)
    step = basis.first * basis.inside(sigma - at)
    rise = basis.follows * (lowest - lowest.detach())[..., None]
    return basis.outside(torch.diag_embed(_mapped(basis.raised, scalar) + rise) + step)


def _to_front(info: Any, in_dims: tuple[Any, ...], args: tuple[Any, ...]) -> list[Any]:
    """Tensors with the dimension of a vmap in front."""
    fronts = []
    for arg, dim in zip(args, in_dims, strict=True):
        if not isinstance(arg, Tensor):
            fronts.append(arg)
        elif dim is None:
            fronts.append(arg.expand(info.batch_size, *arg.shape))
        else:
            fronts.append(arg.movedim(dim, 0))
    return fronts


class _MatrixFunction(torch.autograd.Function):
    """F, and the decomposition that its derivatives need."""

    @staticmethod
    @island
    def forward(
        sigma: Tensor, lowest: Tensor, scalar: ScalarFunction
    ) -> tuple[Tensor, Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(sigma)
        mapped = _mapped(torch.maximum(values, lowest[..., None]), scalar)
        return (vectors * mapped[..., None, :]) @ vectors.mT, values, vectors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        sigma, lowest, ctx.scalar = inputs
        ctx.mark_non_differentiable(output[1], output[2])
        ctx.save_for_backward(sigma, lowest, output[1], output[2])
        ctx.save_for_forward(sigma, lowest, output[1], output[2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        sigma, lowest, values, vectors = ctx.saved_tensors
        to_sigma, to_lowest = _Derivative.apply(
            sigma, lowest, gradients[0], torch.zeros_like(lowest), values, vectors, ctx.scalar
        )
        return to_sigma, to_lowest, None

    @staticmethod
    @forward_mode
    def jvp(ctx: Any, saved: Any, *tangents: Any) -> tuple[Tensor, None, None]:
        sigma, lowest, values, vectors = saved
        moves = _Derivative.apply(
            sigma, lowest, *_or_zeros(tangents, sigma, lowest), values, vectors, ctx.scalar
        )
        return moves[0], None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, tuple[int, int, int]]:
        return _MatrixFunction.apply(*_to_front(info, in_dims, args)), (0, 0, 0)


class _Derivative(torch.autograd.Function):
    """``D(X, x) = (K * X + x diag(c), sum_i c_i X_ii)``, in the eigenbasis.

    With x = 0 the gradients of F for S and l, with both its derivative along (X, x). As a matrix
    of two by two blocks it is symmetric: its own adjoint.
    """

    @staticmethod
    @island
    def forward(
        sigma: Tensor,
        lowest: Tensor,
        x: Tensor,
        x_lowest: Tensor,
        values: Tensor,
        vectors: Tensor,
        scalar: ScalarFunction,
    ) -> tuple[Tensor, Tensor]:
        basis = _basis(lowest, values, vectors, scalar)
        inner = basis.inside(x)
        moved = basis.first * inner + torch.diag_embed(basis.follows * x_lowest[..., None])
        of_lowest = (basis.follows * inner.diagonal(dim1=-2, dim2=-1)).sum(-1)
        return basis.outside(moved), of_lowest

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.scalar = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        sigma, lowest, x, x_lowest, values, vectors = ctx.saved_tensors
        rest = (values, vectors, ctx.scalar)
        to_x = _Derivative.apply(sigma, lowest, *gradients, *rest)
        to_sigma = _Second.apply(sigma, lowest, x, x_lowest, *gradients, *rest, False)
        return *to_sigma, *to_x, None, None, None

    @staticmethod
    @forward_mode
    def jvp(ctx: Any, saved: Any, *tangents: Any) -> tuple[Tensor, Tensor]:
        sigma, lowest, x, x_lowest, values, vectors = saved
        rest = (values, vectors, ctx.scalar)
        by_x = _Derivative.apply(sigma, lowest, *_or_zeros(tangents[2:], x, x_lowest), *rest)
        along = _or_zeros(tangents, sigma, lowest)
        by_sigma = _Second.apply(sigma, lowest, x, x_lowest, *along, *rest, True)
        return by_x[0] + by_sigma[0], by_x[1] + by_sigma[1]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, tuple[int, int]]:
        return _Derivative.apply(*_to_front(info, in_dims, args)), (0, 0)


class _Second(torch.autograd.Function):
    """How ``D(X, x)`` changes with S and l: along (Y, y), or the gradient of ``<D(X, x), (Y, y)>``.

    With ``M_ij = sum_k g[l_i, l_k, l_j] X_ik Y_kj``, the divided differences C of c, and the
    derivative c' of c with the floor: the gradient is ``M + M^T + C * (x Y + y X)`` for S, and
    ``<X, C * Y> + sum_i c'_i (x Y_ii + y X_ii)`` for l.
    """

    @staticmethod
    @island
    def forward(
        sigma: Tensor,
        lowest: Tensor,
        x: Tensor,
        x_lowest: Tensor,
        y: Tensor,
        y_lowest: Tensor,
        values: Tensor,
        vectors: Tensor,
        scalar: ScalarFunction,
        is_tangent: bool,
    ) -> tuple[Tensor, Tensor]:
        basis = _basis(lowest, values, vectors, scalar)
        x, y = basis.inside(x), basis.inside(y)
        bend = scalar.curvature(basis.raised)
        zeros = torch.zeros_like(bend)
        m = contract_second(values, basis.first, torch.where(basis.is_raised, zeros, bend), x, y)
        steps = step_differences(values, basis.follows)
        bend = torch.where(basis.is_raised, bend, zeros)
        mixed = x_lowest[..., None, None] * y + y_lowest[..., None, None] * x
        of_sigma = m + m.mT + steps * mixed
        of_lowest = (x * steps * y).sum((-2, -1))
        x_diagonal, y_diagonal = (one.diagonal(dim1=-2, dim2=-1) for one in (x, y))
        of_lowest = of_lowest + (bend * x_diagonal).sum(-1) * y_lowest
        if is_tangent:
            of_sigma = of_sigma + torch.diag_embed(bend * (x_lowest * y_lowest)[..., None])
        else:
            of_lowest = of_lowest + (bend * y_diagonal).sum(-1) * x_lowest
        return basis.outside(of_sigma), of_lowest

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError(_NO_THIRD)

    @staticmethod
    @forward_mode
    def jvp(ctx: Any, saved: Any, *tangents: Any) -> Any:
        raise NotImplementedError(_NO_THIRD)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, tuple[int, int]]:
        return _Second.apply(*_to_front(info, in_dims, args)), (0, 0)


_NO_THIRD = (
    "third derivatives of functions of eigenvalues (power functions, whitening, IterNorm above "
    "T = 6) are not at hand; the first two are"
)


def _or_zeros(tangents: Any, *like: Tensor) -> list[Tensor]:
    """Tangents, zeros for those that there are none of."""
    pairs = zip(tangents, like, strict=False)
    return [torch.zeros_like(one) if tangent is None else tangent for tangent, one in pairs]
