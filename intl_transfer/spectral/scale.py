"""Embeddings at a scale at which their Gram matrices neither overflow nor vanish.

IterNorm divides by the total variance: its output does not know the scale of its input. Squares do:
in float32 those of values above 1e19 are infinite, below 1e-19 nothing is left of them. So a batch
whose total variance is far from one is multiplied by a power of two first, which changes no bit of
the result. For a usual batch, only its total variance is needed, which is checked anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from intl_transfer.spectral.common import at_least_float32
from intl_transfer.spectral.guards import may_wait
from intl_transfer.spectral.modes import is_plain

# Between these, entries, squares and the derivatives of quotients by them are normal numbers with
# room to spare: rows 1e-10 times as large as others keep their squares.
_SAFE = {torch.float32: (2.0**-24, 2.0**48), torch.float64: (2.0**-400, 2.0**400)}


class Prepared(Protocol):
    """What is made of embeddings first: among others, the Gram matrices of V batches."""

    @property
    def own(self) -> Tensor:
        """Gram matrices, shape (..., n, n)."""


Made = TypeVar("Made", bound=Prepared)


def at_safe_scale(
    prepare: Callable[[Sequence[Tensor]], Made],
    batches: Sequence[Tensor],
    over_ranks: Callable[[Tensor], Tensor] = lambda largest: largest,
) -> tuple[Made, bool]:
    """Grams of batches, of the batches as they are if that is safe, of scaled ones otherwise.

    Args:
        prepare: makes the Grams (and what else is needed) of batches; replicated over ranks.
        batches: tensors (..., N, d); this rank's rows.
        over_ranks: the largest over ranks of one number of each batch.

    Returns:
        What ``prepare`` made, and whether every total variance is known to be finite and above
        zero. Scales count as constants: nothing that comes after may depend on them.
    """
    if is_plain(*batches) and may_wait():
        made = prepare(batches)
        low, high = _SAFE[made.own.dtype]
        trace = made.own.detach().diagonal(dim1=-2, dim2=-1).sum(-1)
        if bool(((trace >= low) & (trace <= high)).all()):
            return made, True
        del made
    batches = [at_least_float32(z) for z in batches]
    # The largest entry of each batch, of those with leading dimensions one each.
    largest = [z.detach().abs().amax((-2, -1), keepdim=True) for z in batches]
    if len(batches) == 1:
        largest = [over_ranks(largest[0])]
    else:
        largest = list(over_ranks(torch.stack(largest)).unbind(0))
    scaled = [z * power_of_two(one) for z, one in zip(batches, largest, strict=True)]
    return prepare(scaled), False


def power_of_two(largest: Tensor) -> Tensor:
    """``2^-k`` with ``2^k <= x < 2^(k+1)``; 1 where x is zero or not finite.

    Args:
        largest: magnitudes x, any shape, float32 or float64.

    Returns:
        Factors that bring x to between 1 and 2 without a rounding, within the range of the
        normal numbers.
    """
    most = 126.0 if largest.dtype == torch.float32 else 1000.0
    exponent = torch.log2(largest.detach().double()).floor()
    exponent = exponent.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp(-most, most)
    return torch.exp2(-exponent).to(largest.dtype)


def unit_rows(z: Tensor, noise: float = 0.0) -> Tensor:
    """Each row divided by its norm, at any scale.

    Args:
        z: rows (..., N, d).
        noise: rows whose largest entry is not above this fraction of the batch's largest count as
            rows of zeros; at most 1e-12.

    Returns:
        Rows of length one; a row of zeros stays one, with zero gradient.
    """
    if is_plain(z) and may_wait():
        squared = z.square().sum(-1, keepdim=True)
        low, high = _SAFE[z.dtype]
        smallest, largest = torch.aminmax(squared.detach())
        # No row of zeros among them, nor one that would count as such.
        if bool((smallest >= low) & (largest <= high) & (smallest >= 2.0**-40 * largest)):
            return z * squared.rsqrt()
    top = z.detach().abs().amax(-1, keepdim=True)
    is_zero = top <= noise * top.amax(-2, keepdim=True)
    z = torch.where(is_zero, torch.zeros_like(z), z * power_of_two(top))
    squared = z.square().sum(-1, keepdim=True)
    return z * torch.where(is_zero, torch.ones_like(squared), squared).rsqrt()
