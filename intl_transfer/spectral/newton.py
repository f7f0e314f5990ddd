"""The Newton iteration of IterNorm as a polynomial of a small symmetric matrix.

With ``P_0 = I``, ``M_0 = S`` and ``P_{k+1} = P_k R_k``, ``M_{k+1} = M_k R_k^2``,
``R_k = (3 I - M_k) / 2``, we have ``P_T = f_T(S)`` and ``M_T = P_T^2 S = h_T(S)``: the product form
(Higham, *Functions of Matrices*, chapter 6), in which M corrects itself, unlike the direct form
``P_{k+1} = (3 P_k - P_k^3 S) / 2``, which amplifies its own rounding.

Two steps at once are a polynomial of degree four, ``P_{k+2} = P_k q(M_k)`` with
``q(x) = f_2(x) = (Q^2 - 8.625 x + 24.609375) / 16`` and ``Q = x^2 - 4.5 x + 3.375``, whose two
products are both squares. All factors are polynomials of S and symmetric; only the symmetric part
of a gradient with respect to them matters. So the square ``A A`` costs one product in the backward
pass, ``2 sym(G) A``, where autograd makes two. At T = 4 this makes 7 products forward and 9
backward, where the formula as written makes 12 and 19.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from intl_transfer.spectral.modes import gradient_again, is_differentiated_again, is_plain, island
from intl_transfer.spectral.product import product

# Two Newton steps: q(x) = (Q(x)^2 + _LINEAR x + _CONSTANT) / 16, Q(x) = x^2 + _INNER x + _OUTER.
_INNER, _OUTER, _LINEAR, _CONSTANT = -4.5, 3.375, -8.625, 24.609375


def newton(s: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """``f_T(S)`` and the diagonal of ``h_T(S) = f_T(S) S f_T(S)``.

    Args:
        s: symmetric positive semi-definite matrices with eigenvalues in [0, 1], shape (..., n, n).
        iterations: T >= 0. Meant for small T: rounding grows by up to 2.25 per step on
            eigenvalues near zero, negative ones among them.

    Returns:
        ``f_T(S)``, shape (..., n, n), and the diagonal, shape (..., n), in the precision of ``s``.
        Only the symmetric part of the gradient matters. Differentiable to any order: a backward
        pass that is to be differentiated again goes through :func:`_newton_by_autograd`.
    """
    if not is_plain(s):
        return _newton_by_autograd(s, iterations)
    return cast("tuple[Tensor, Tensor]", _Newton.apply(s, iterations))


def _newton_by_autograd(s: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """The same polynomials in operations of which torch knows the derivatives."""
    eye = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
    m, p = s, None
    if iterations % 2:
        r = 1.5 * eye - 0.5 * m
        p = r
        if iterations > 1:
            m = product(product(m, r), r)
    for k in range(iterations // 2):
        inner = product(m, m) + _INNER * m + _OUTER * eye
        q = (product(inner, inner) + _LINEAR * m + _CONSTANT * eye) / 16
        p = q if p is None else product(p, q)
        if k + 1 < iterations // 2:
            m = product(m, product(q, q))
    if p is None:
        p = eye.expand_as(s)
    return p, (product(p, s) * p.mT).sum(-1)


class _Newton(torch.autograd.Function):
    @staticmethod
    @island
    def forward(ctx: Any, s: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
        ctx.iterations = iterations
        saved = [s]
        m, p = s, None
        if iterations % 2:
            r = _shifted(-0.5 * m, 1.5)
            p = r
            if iterations > 1:
                y = torch.matmul(m, r)
                saved += [y, r]
                m = torch.matmul(y, r)
        for k in range(iterations // 2):
            inner = torch.matmul(m, m).add_(m, alpha=_INNER)
            _shifted(inner, _OUTER)
            q = torch.matmul(inner, inner).add_(m, alpha=_LINEAR)
            q = _shifted(q, _CONSTANT).mul_(1 / 16)
            is_last = k + 1 == iterations // 2
            square = m if is_last else torch.matmul(q, q)
            saved += [m, inner, q, square, q if p is None else p]
            p = q if p is None else torch.matmul(p, q)
            if not is_last:
                m = torch.matmul(m, square)
        if p is None:
            p = _identity(s)
        h = torch.matmul(p, s)
        ctx.save_for_backward(p, h, *saved)
        return p, (h * p.mT).sum(-1)

    @staticmethod
    @island
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        grad_p, grad_diagonal = gradients
        p, h, s, *rest = ctx.saved_tensors
        if is_differentiated_again(*gradients):
            with torch.enable_grad():
                both = _newton_by_autograd(s, ctx.iterations)
                return gradient_again(both, s, gradients), None
        # diag(P S P) weighted by D: dP = 2 D P S, dS = P D P. Gradients are symmetrised where a
        # square asks for it, and nowhere else: on a CPU that costs a third of a product.
        g = torch.addcmul(grad_p, grad_diagonal[..., :, None], h, value=2)
        g_s = torch.matmul(p.mT * grad_diagonal[..., None, :], p)
        g_m = None
        odd, iterations = ctx.iterations % 2, ctx.iterations
        pairs = rest[2 * (odd and iterations > 1) :]
        for k in reversed(range(iterations // 2)):
            m, inner, q, square, before = pairs[5 * k : 5 * k + 5]
            is_first = k == 0 and not odd
            # P' = P q
            g_q = g if is_first else torch.matmul(before, g)
            if not is_first:
                g = torch.matmul(g, q)
            if g_m is not None:  # M' = M q^2
                g_square = torch.matmul(m, g_m)
                g_m = torch.matmul(g_m, square)
                g_q = g_q.add(torch.matmul(_symmetric(g_square), q), alpha=2)
            # q = (Q^2 - 8.625 M + ...) / 16, Q = M^2 - 4.5 M + ...
            g_inner = torch.matmul(_symmetric(g_q), inner).mul_(1 / 8)
            step = torch.matmul(_symmetric(g_inner), m).mul_(2)
            step.add_(g_q, alpha=_LINEAR / 16).add_(g_inner, alpha=_INNER)
            g_m = step if g_m is None else g_m.add_(step)
        if odd:
            step = -0.5 * g  # P = R
            if g_m is not None:  # M = R S R with R = (3 - S) / 2
                y, r = rest[:2]
                step.add_(torch.matmul(torch.matmul(r, g_m), r))
                step.sub_(torch.matmul(_symmetric(g_m), y))
            g_m = step
        return (g_s if g_m is None else g_s.add_(g_m)), None


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT).mul_(0.5)


def _shifted(matrix: Tensor, shift: float) -> Tensor:
    """``A + shift I``, in place."""
    matrix.diagonal(dim1=-2, dim2=-1).add_(shift)
    return matrix


def _identity(like: Tensor) -> Tensor:
    eye = torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
    return eye.expand_as(like).clone()


def newton_direct(s: Tensor, iterations: int) -> Tensor:
    """``P_{k+1} = (3 P_k - P_k^3 S) / 2`` in the direct form; diverges for large T."""
    p = _identity(s)
    for _ in range(iterations):
        p = 1.5 * p - 0.5 * product(product(product(p, p), p), s)
    return p
