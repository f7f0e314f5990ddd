"""Processes several views in a network together, layer by layer.

If views are processed one by one, every batch norm exchanges its statistics once per view. In
lockstep each layer is applied to all views before the next one, so that they share one exchange.
Otherwise the computation is the same: each view has its own batch statistics, and running
statistics are updated view by view in order.

Views of one size form one batch between batch norms. A view can use a copy of the network (the
moving average) and still share the exchange.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from intl_transfer.models.activation_checkpointing import checkpointed, is_checkpointed
from intl_transfer.models.sync_batchnorm import normalize_together, ranks_sharing

#: The layers of torchvision's networks, in the order of their ``forward``.
_RESNET = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool")
_BRANCH: dict[type[nn.Module], tuple[str, ...]] = {
    BasicBlock: ("conv1", "bn1", "relu", "conv2", "bn2"),
    Bottleneck: ("conv1", "bn1", "relu", "conv2", "bn2", "relu", "conv3", "bn3"),
}


def walk_together(networks: Sequence[nn.Module], views: Sequence[Tensor]) -> list[Tensor]:
    """Applies networks to views; equivalent to ``network(view)`` one by one.

    Args:
        networks: one per view: the same, or copies of it. Torchvision's ResNets, sequences of them
            and of layers, and any modules without batch norm.
        views: tensors (B, ...); sizes may differ.

    Returns:
        One tensor per view.

    Raises:
        TypeError: for a network with batch norms and unknown layers.
    """
    numbers: dict[tuple[int, torch.Size, torch.dtype], list[int]] = {}
    for number, (network, view) in enumerate(zip(networks, views, strict=True)):
        numbers.setdefault((id(network), view.shape, view.dtype), []).append(number)
    together = list(numbers.values())
    walk = _Walk(together)
    outputs = walk.through(
        [networks[group[0]] for group in together],
        [_joined([views[number] for number in group]) for group in together],
    )
    found = {
        number: output
        for group, batch in zip(together, outputs, strict=True)
        for number, output in zip(group, batch.chunk(len(group)), strict=True)
    }
    return [found[number] for number in range(len(views))]


def _joined(views: list[Tensor]) -> Tensor:
    return views[0] if len(views) == 1 else torch.cat(views)


class _Walk:
    """Applies corresponding modules of networks to one batch each.

    Args:
        views: the numbers of the views in each batch.
    """

    def __init__(self, views: Sequence[Sequence[int]]) -> None:
        self._views = views

    def through(self, modules: Sequence[nn.Module], batches: Sequence[Tensor]) -> list[Tensor]:
        """Module i on batch i."""
        first = modules[0]
        if isinstance(first, _BatchNorm) and first.training:
            if ranks_sharing(first) == 1:
                return self._one_by_one(modules, batches)
            # All have the type of the first.
            return normalize_together(modules, batches, self._views)  # type: ignore[arg-type]
        if not any(
            isinstance(module, _BatchNorm) and module.training for module in first.modules()
        ):
            return [module(batch) for module, batch in zip(modules, batches, strict=True)]
        if any(map(is_checkpointed, modules)) and torch.is_grad_enabled():
            return checkpointed(modules, lambda *inputs: self._inside(modules, inputs), batches)
        return self._inside(modules, batches)

    def _one_by_one(self, norms: Sequence[nn.Module], batches: Sequence[Tensor]) -> list[Tensor]:
        """Batch norms without exchange, by torch's own faster pass, in the order of views."""
        parts = [
            list(batch.chunk(len(views))) for batch, views in zip(batches, self._views, strict=True)
        ]
        places = [
            (view, i, j) for i, views in enumerate(self._views) for j, view in enumerate(views)
        ]
        for _, i, j in sorted(places):
            parts[i][j] = norms[i](parts[i][j])
        return [_joined(views) for views in parts]

    def _inside(self, modules: Sequence[nn.Module], batches: Sequence[Tensor]) -> list[Tensor]:
        """Applies the layers of composite modules."""
        first = modules[0]
        if isinstance(first, nn.Sequential):
            return self._named(modules, [name for name, _ in first.named_children()], batches)
        if isinstance(first, ResNet):
            pooled = self._named(modules, _RESNET, batches)
            return self._named(modules, ["fc"], [batch.flatten(1) for batch in pooled])
        if type(first) in _BRANCH:
            branch = self._named(modules, _BRANCH[type(first)], batches)
            skipped = batches
            if first.downsample is not None:
                skipped = self._named(modules, ["downsample"], batches)
            total = [out.add_(skip) for out, skip in zip(branch, skipped, strict=True)]
            return self._named(modules, ["relu"], total)
        raise TypeError(
            f"{type(first).__name__} has batch norms and is not supported in lockstep; supported "
            "are torchvision's ResNets and nn.Sequential"
        )

    def _named(
        self, modules: Sequence[nn.Module], names: Sequence[str], batches: Sequence[Tensor]
    ) -> list[Tensor]:
        for name in names:
            batches = self.through([module.get_submodule(name) for module in modules], batches)
        return list(batches)
