"""Divided differences of a function at eigenvalues: the derivatives of functions of matrices.

``f[a, b] = (f(a) - f(b)) / (a - b)`` and ``f[a, b, c] = (f[a, b] - f[b, c]) / (a - c)``, of which
quotients of rounding are left where arguments are close; there, the derivatives of f take their
place. (Higham, *Functions of Matrices*, section 3; Daleckii and Krein.)
"""

from __future__ import annotations

import torch
from torch import Tensor

# What a chunk of triples may hold at once.
_CHUNK = 2**22


def first_differences(values: Tensor, mapped: Tensor, slope: Tensor) -> Tensor:
    """``f[l_i, l_j]``, shape (..., n, n).

    Args:
        values: arguments l, (..., n).
        mapped: f of them.
        slope: f' of them.
    """
    # The mean slope is off by (gap^2 / 12) f''', the quotient by eps / gap: equal at this gap.
    close = (12 * torch.finfo(values.dtype).eps) ** (1 / 3)
    gap = values[..., :, None] - values[..., None, :]
    rise = mapped[..., :, None] - mapped[..., None, :]
    mean_slope = (slope[..., :, None] + slope[..., None, :]) / 2
    scale = torch.maximum(values[..., :, None].abs(), values[..., None, :].abs())
    is_close = gap.abs() <= close * scale
    return torch.where(is_close, mean_slope, rise / torch.where(is_close, 1.0, gap))


def step_differences(values: Tensor, mapped: Tensor) -> Tensor:
    """``f[l_i, l_j]`` of a step: zero between equal values of f, (..., n, n)."""
    gap = values[..., :, None] - values[..., None, :]
    rise = mapped[..., :, None] - mapped[..., None, :]
    is_flat = (gap == 0) | (rise == 0)
    return torch.where(is_flat, 0.0, rise / torch.where(is_flat, 1.0, gap))


def contract_second(
    values: Tensor, first: Tensor, curvature: Tensor, x: Tensor, y: Tensor
) -> Tensor:
    """``M_ij = sum_k f[l_i, l_k, l_j] x_ik y_kj``, shape (..., n, n), some rows at a time.

    Args:
        values: arguments l, (..., n).
        first: their first differences, (..., n, n).
        curvature: f'' of them, (..., n).
        x: matrices (..., n, n).
        y: matrices (..., n, n).
    """
    n = values.shape[-1]
    rows = max(1, _CHUNK // max(1, values.numel() * n))
    parts = []
    for start in range(0, n, rows):
        part = slice(start, min(start + rows, n))
        second = _second_differences(values, first, curvature, part)  # (..., rows, k, j)
        parts.append((second * x[..., part, :, None] * y[..., None, :, :]).sum(-2))
    return torch.cat(parts, -2)


def _second_differences(values: Tensor, first: Tensor, curvature: Tensor, rows: slice) -> Tensor:
    """``f[l_i, l_k, l_j]`` of some i, shape (..., rows, n, n) over (i, k, j)."""
    # Off by gap^2 f'''' where f'' serves, by (eps / gap) / gap where the quotient does.
    close = torch.finfo(values.dtype).eps ** 0.25
    a, b, c = (
        values[..., rows, None, None],
        values[..., None, :, None],
        values[..., None, None, :],
    )
    f_ab, f_bc, f_ac = (
        first[..., rows, :, None],
        first[..., None, :, :],
        first[..., rows, None, :],
    )
    # f[a, b, c] does not care for the order: the two that are farthest apart divide.
    ab, bc, ac = a - b, b - c, a - c
    ac_is_widest = (ac.abs() >= ab.abs()) & (ac.abs() >= bc.abs())
    ab_is_widest = ~ac_is_widest & (ab.abs() >= bc.abs())
    gap = torch.where(ac_is_widest, ac, torch.where(ab_is_widest, ab, bc))
    rise = torch.where(
        ac_is_widest, f_ab - f_bc, torch.where(ab_is_widest, f_ac - f_bc, f_ab - f_ac)
    )
    scale = torch.maximum(torch.maximum(a.abs(), b.abs()), c.abs())
    is_close = gap.abs() <= close * scale
    bend = curvature[..., rows, None, None] + curvature[..., None, :, None]
    bend = (bend + curvature[..., None, None, :]) / 6
    return torch.where(is_close, bend, rise / torch.where(is_close, 1.0, gap))
