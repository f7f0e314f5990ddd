"""Batch norm over the global batch, on any device."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from intl_transfer.spectral.collectives import sum_over_ranks


class CollectiveBatchNorm(_BatchNorm):
    """Batch norm whose training statistics are those of all ranks' rows together.

    :class:`torch.nn.SyncBatchNorm` does this on GPUs only; this one is made of differentiable
    all-reduces and serves the CPU (gloo). Every rank must hold the same number of rows.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected an input of at least 2 dimensions, found {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalises (B, C, ...) by the global batch's statistics when training."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        axes = [0, *range(2, input.dim())]
        shape = [1, -1] + [1] * (input.dim() - 2)
        count = input.numel() // input.shape[1] * dist.get_world_size()
        mean = sum_over_ranks(input.sum(axes)) / count
        centred = input - mean.view(shape)
        variance = sum_over_ranks(centred.square().sum(axes)) / count
        if self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked += 1
                momentum = self.momentum
                if momentum is None:  # a cumulative average, as torch defines it
                    momentum = 1.0 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
                unbiased = variance * (count / max(1, count - 1))
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        output = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output


def synchronise_batchnorm(module: nn.Module, device: torch.device) -> nn.Module:
    """Replaces every batch norm by one over the global batch.

    Args:
        module: any network; returned changed in place (a bare batch norm is replaced).
        device: where it will run: CUDA takes :class:`torch.nn.SyncBatchNorm`, anything else
            :class:`CollectiveBatchNorm`.

    Returns:
        The network, with the same parameters, buffers and names.
    """
    if device.type == "cuda":
        convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
        return convert(module)
    if isinstance(module, _BatchNorm) and not isinstance(module, CollectiveBatchNorm):
        new = CollectiveBatchNorm(
            module.num_features,
            module.eps,
            module.momentum,
            module.affine,
            module.track_running_stats,
        )
        new._parameters.update(module._parameters)
        new._buffers.update(module._buffers)
        new.train(module.training)
        return new
    for name, child in module.named_children():
        replacement = synchronise_batchnorm(child, device)
        if replacement is not child:
            setattr(module, name, replacement)
    return module
