"""Batch norm over the global batch, of one batch or of several views at once.

:class:`torch.nn.SyncBatchNorm` runs on GPUs only, exchanges the statistics of one batch at a time,
and waits for the GPU at each of them. Here all batches passed together, with separate statistics
per view, share one exchange in each direction, without synchronization.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class CollectiveBatchNorm(_BatchNorm):
    """Batch norm with training statistics over all ranks.

    Ranks may have different batch sizes, of at least one.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected an input of at least 2 dimensions, found {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalizes (B, C, ...) by the global batch's statistics when training."""
        if not (self.training and ranks_sharing(self) > 1):
            return super().forward(input)
        self._check_input_dim(input)
        return normalize_together([self], [input], [[0]])[0]


def normalize_together(
    norms: Sequence[_BatchNorm], batches: Sequence[Tensor], views: Sequence[Sequence[int]]
) -> list[Tensor]:
    """One layer's training pass for several views, with one exchange between ranks.

    Each view has the statistics of its own rows, over all ranks where the batch norms are
    :class:`CollectiveBatchNorm`. Running statistics are updated view by view in ascending order, as
    passes one after the other would.

    Args:
        norms: the batch norm of each batch; the same one, or corresponding ones of copies of a
            network.
        batches: tensors (V_i B, C, ...), V_i views of equally many rows one below the other.
        views: the numbers of the views in each batch, V_i of them.

    Returns:
        One tensor a batch, of its shape and type.
    """
    norm = norms[0]
    layout = _Layout([len(numbers) for numbers in views], norm.eps, ranks_sharing(norm))
    ones = torch.ones(norm.num_features, device=batches[0].device) if not norm.affine else None
    weights = [own.weight if ones is None else ones for own in norms]
    biases = [own.bias if ones is None else torch.zeros_like(ones) for own in norms]
    *outputs, mean, unbiased = _Normalization.apply(layout, *batches, *weights, *biases)
    owners = [own for own, numbers in zip(norms, views, strict=True) for _ in numbers]
    numbers = [number for group in views for number in group]
    for row in sorted(range(len(numbers)), key=numbers.__getitem__):
        _track(owners[row], mean[row], unbiased[row])
    return cast("list[Tensor]", outputs)


def ranks_sharing(norm: _BatchNorm) -> int:
    """How many ranks share a batch norm's statistics."""
    shared = isinstance(norm, CollectiveBatchNorm) and dist.is_initialized()
    return dist.get_world_size() if shared else 1


@torch.no_grad()
def _track(norm: _BatchNorm, mean: Tensor, unbiased: Tensor) -> None:
    """Updates the running statistics by one view's."""
    if norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    momentum = norm.momentum
    if momentum is None:  # a cumulative average, as torch defines it
        momentum = 1.0 / float(norm.num_batches_tracked)
    running = [norm.running_mean, norm.running_var]
    torch._foreach_lerp_(
        running, [mean.to(running[0].dtype), unbiased.to(running[1].dtype)], momentum
    )


@dataclass(frozen=True)
class _Layout:
    """Settings of one layer's pass.

    Attributes:
        counts: number of views in each batch, V in all.
        eps: of the batch norms.
        ranks: that share the statistics.
    """

    counts: list[int]
    eps: float
    ranks: int

    def by_view(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """The V views of some batches, without a copy."""
        pairs = zip(batches, self.counts, strict=True)
        return [view for batch, count in pairs for view in batch.chunk(count)]

    def owners(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Each view's of one parameter a batch."""
        pairs = zip(parameters, self.counts, strict=True)
        return [parameter for parameter, count in pairs for _ in range(count)]


class _Normalization(torch.autograd.Function):
    """``y = (x - mean) / sqrt(var + eps) w + b`` of each view, and its adjoint over all ranks.

    With ``x̂ = (x - mean) / sqrt(var + eps)`` and means over the view's rows and pixels on all
    ranks, ``dx = w / sqrt(var + eps) (dy - mean(dy) - x̂ mean(dy x̂))`` (Ioffe and Szegedy 2015).
    ``dw = sum(dy x̂)`` and ``db = sum(dy)`` are of this rank's rows: ranks average gradients.
    """

    @staticmethod
    def forward(ctx: Any, layout: _Layout, *tensors: Tensor) -> tuple[Tensor, ...]:
        n = len(layout.counts)
        batches = [_dense(batch) for batch in tensors[:n]]
        weights, biases = layout.owners(tensors[n : 2 * n]), layout.owners(tensors[2 * n :])
        views = layout.by_view(batches)
        mean, var, total = _statistics(views, layout.ranks)
        outputs = [torch.empty_like(batch) for batch in batches]
        unused = mean.new_empty(0)
        for row, out in enumerate(layout.by_view(outputs)):
            torch.native_batch_norm(
                *(views[row], weights[row], biases[row], mean[row], var[row]),
                *(False, 0.0, layout.eps),
                out=(out, unused, unused),
            )
        # A moving average's batches, whose weights take no gradient, are not kept.
        ctx.layout, ctx.learning = layout, [any(ctx.needs_input_grad[1 + i :: n]) for i in range(n)]
        kept = [
            batch if learns else None for batch, learns in zip(batches, ctx.learning, strict=True)
        ]
        ctx.save_for_backward(mean, var, total, *kept, *tensors[n : 2 * n])
        constant = [out for out, learns in zip(outputs, ctx.learning, strict=True) if not learns]
        unbiased = var * (total / (total - 1).clamp_min(1))
        ctx.mark_non_differentiable(*constant, mean, unbiased)
        return (*outputs, mean, unbiased)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        layout, n = ctx.layout, len(ctx.layout.counts)
        mean, var, total, *saved = ctx.saved_tensors
        learning = [i for i in range(n) if ctx.learning[i]]
        rows = [row for row, i in enumerate(layout.owners(range(n))) if i in learning]
        part = _Layout([layout.counts[i] for i in learning], layout.eps, layout.ranks)
        batches = [saved[i] for i in learning]
        given = [_dense(gradients[i], like=saved[i]) for i in learning]
        weights = part.owners([saved[n + i] for i in learning])
        views = [
            _View(x, slope, weight, mean[row], var[row], total[row], layout.eps)
            for x, slope, weight, row in zip(
                part.by_view(batches), part.by_view(given), weights, rows, strict=True
            )
        ]
        sums = own = torch.stack([view.sums() for view in views])
        if layout.ranks > 1:
            sums = own.clone()
            dist.all_reduce(sums)
        results = [torch.empty_like(batch) for batch in batches]
        for view, out, both in zip(views, part.by_view(results), sums, strict=True):
            view.input_gradient(out, both)
        found: list[Tensor | None] = [None] * (3 * n)
        first = 0
        for i, result in zip(learning, results, strict=True):
            mine = own[first : first + layout.counts[i]].sum(0)
            first += layout.counts[i]
            found[i], found[n + i], found[2 * n + i] = result, mine[0], mine[1]
        return None, *found


def _dense(batch: Tensor, like: Tensor | None = None) -> Tensor:
    """In one of the two memory formats that kernels take; in that of another batch if given."""
    shaped = batch if like is None else like
    if shaped.dim() == 4 and shaped.is_contiguous(memory_format=torch.channels_last):
        return batch.contiguous(memory_format=torch.channels_last)
    return batch.contiguous()


def _statistics(views: Sequence[Tensor], ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (biased) of each channel of each view, over all ranks.

    Those of each rank are gathered and put together as Chan et al. (1979) do, which loses no
    digits where means are large.

    Returns:
        Shapes (V, C), (V, C), and (V, 1) for the numbers they were taken of; float32 at least.
    """
    channels = views[0].shape[1]
    kind = torch.promote_types(views[0].dtype, torch.float32)
    # Unused running statistics: their dtype tells the kernel which dtype to return.
    scratch = torch.zeros(2, channels, dtype=kind, device=views[0].device)
    own = torch.empty(len(views), 2 * channels + 1, dtype=kind, device=views[0].device)
    for row, view in zip(own, views, strict=True):
        row[:channels], row[channels:-1] = torch.batch_norm_update_stats(
            view, scratch[0], scratch[1], 0.0
        )
        row[-1] = view.numel() // channels
    everyone = own
    if ranks > 1:
        everyone = own.new_empty(ranks * len(views), own.shape[1])
        _all_gather(everyone, own)
    means, variances, counts = torch.split(
        everyone.view(ranks, *own.shape), [channels, channels, 1], -1
    )
    total = counts.sum(0)
    share = counts / total
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0), total


@dataclass(frozen=True)
class _View:
    """What the backward pass of one view needs, all but the first two of shape (C,) or (1,)."""

    x: Tensor
    slope: Tensor
    weight: Tensor
    mean: Tensor
    var: Tensor
    total: Tensor
    eps: float

    def sums(self) -> Tensor:
        """``sum(dy x̂)`` and ``sum(dy)`` of this rank's rows, (2, C), in one pass."""
        # What evaluation's backward pass makes for weight and bias, at these statistics.
        _, *both = torch.ops.aten.native_batch_norm_backward(
            *(self.slope, self.x, self.weight, self.mean, self.var, None, None),
            *(False, self.eps, [False, True, True]),
        )
        return torch.stack(both).to(self.mean.dtype)

    def input_gradient(self, out: Tensor, sums: Tensor) -> None:
        """Fills ``out`` with ``dx``, given the sums over all ranks."""
        invstd = torch.rsqrt(self.var + self.eps)
        scale = self.weight * invstd
        # -scale (x̂ mean(dy x̂) + mean(dy)) is a normalization by itself.
        slant, level = -scale * sums / self.total
        unused = self.mean.new_empty(0)
        torch.native_batch_norm(
            *(self.x, slant, level, self.mean, self.var, False, 0.0, self.eps),
            out=(out, unused, unused),
        )
        out.addcmul_(self.slope, scale.view(-1, *[1] * (out.dim() - 2)))


def synchronize_batchnorm(module: nn.Module) -> nn.Module:
    """Makes every batch norm one over the global batch.

    Args:
        module: any network with torch's batch norms; changed in place.

    Returns:
        The network, with the same modules, parameters, buffers, names and hooks.

    Raises:
        TypeError: for a batch norm that may compute something else than torch's: another class, a
            replaced ``forward``, a process group of its own. Nothing is changed then.
    """
    norms = {name: m for name, m in module.named_modules() if isinstance(m, _BatchNorm)}
    for name, norm in norms.items():
        if not _is_torchs(norm):
            raise TypeError(
                f"{name or 'the network'} is a {type(norm).__name__}, of which only torch's batch "
                "norm over the global batch is known; expected nn.BatchNorm1d, 2d or 3d with its "
                "own forward (a lazy one after its first batch)"
            )
    for norm in norms.values():
        # In place, as torch's lazy modules do it: whatever else refers to the module still does.
        norm.__class__ = CollectiveBatchNorm
    return module


def _is_torchs(norm: _BatchNorm) -> bool:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, CollectiveBatchNorm)
    group = getattr(norm, "process_group", None)
    return type(norm) in kinds and "forward" not in vars(norm) and group is None
