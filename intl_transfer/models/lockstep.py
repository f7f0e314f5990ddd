"""Processes several views in a network together, layer by layer.

If views are processed one by one, every batch norm exchanges its statistics once per view. In
lockstep each layer is applied to all views before the next one, so that they share one exchange.
Otherwise the computation is the same: each view has its own batch statistics, and running
statistics are updated view by view in order.

Views of one size form one batch between batch norms. A view can use a copy of the network (the
moving average) and still share the exchange.

The order of layers is written here for what torch and torchvision define. A network with batch
norms that adds to it (a ``forward`` of its own, hooks on a module that is taken apart) is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import MethodType
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from intl_transfer.models.activation_checkpointing import (
    checkpointed,
    is_checkpointed,
    own_forward,
)
from intl_transfer.models.sync_batchnorm import (
    CollectiveBatchNorm,
    normalize_together,
    ranks_sharing,
)

#: The layers of torchvision's networks, in the order of their ``forward``.
_RESNET = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool")
_BRANCH: dict[type[nn.Module], tuple[str, ...]] = {
    BasicBlock: ("conv1", "bn1", "relu", "conv2", "bn2"),
    Bottleneck: ("conv1", "bn1", "relu", "conv2", "bn2", "relu", "conv3", "bn3"),
}
#: The kinds of modules that are computed here, and the methods that say what they compute.
_KINDS: dict[type[nn.Module], tuple[str, ...]] = {
    CollectiveBatchNorm: ("forward",),
    nn.Sequential: ("forward", "__iter__"),
    ResNet: ("forward", "_forward_impl"),
    BasicBlock: ("forward",),
    Bottleneck: ("forward",),
}


def walk_together(networks: Sequence[nn.Module], views: Sequence[Tensor]) -> list[Tensor]:
    """Applies networks to views; equivalent to ``network(view)`` one by one.

    Args:
        networks: one per view: the same, or copies of it. Torchvision's ResNets, sequences of them
            and of layers, and any modules without batch norm that treat each row by itself.
        views: tensors (B, ...); sizes may differ.

    Returns:
        One tensor per view.

    Raises:
        TypeError: for a network with batch norms within unknown modules, or one used twice.
    """
    _check_norms_used_once(networks)
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


def _check_norms_used_once(networks: Sequence[nn.Module]) -> None:
    """Raises TypeError for a batch norm in two places.

    Its running statistics would be updated place by place instead of view by view.
    """
    for network in {id(network): network for network in networks}.values():
        norms = [m for _, m in network.named_modules(remove_duplicate=False) if _learns(m)]
        if any(count > 1 for count in Counter(map(id, norms)).values()):
            raise TypeError(
                f"a batch norm of {type(network).__name__} is used in two places, which lockstep "
                "does not support; use two batch norms, or views one by one"
            )


def _learns(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether it is a batch norm that takes its statistics from the batch."""
    return isinstance(module, _BatchNorm) and module.training


def _kind(module: nn.Module) -> type[nn.Module] | None:
    """The kind of module whose computation it has, with nothing added; None for an unknown one."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, name) for name in hooks):
        return None
    for kind, methods in _KINDS.items():
        if isinstance(module, kind) and all(
            _method(module, name) == MethodType(getattr(kind, name), module) for name in methods
        ):
            return kind
    return None


def _method(module: nn.Module, name: str) -> Any:
    return own_forward(module) if name == "forward" else getattr(module, name)


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
        if any(map(_learns, modules)):
            norms = [m for m in modules if _learns(m) and _kind(m) is CollectiveBatchNorm]
            if len(norms) == len(modules) and ranks_sharing(norms[0]) > 1:
                return normalize_together(norms, batches, self._views)
            return self._one_by_one(modules, batches)
        if not any(_learns(inner) for module in modules for inner in module.modules()):
            return [module(batch) for module, batch in zip(modules, batches, strict=True)]
        if any(map(is_checkpointed, modules)) and torch.is_grad_enabled():
            return checkpointed(modules, lambda *inputs: self._inside(modules, inputs), batches)
        return self._inside(modules, batches)

    def _one_by_one(self, norms: Sequence[nn.Module], batches: Sequence[Tensor]) -> list[Tensor]:
        """Batch norms of any make by their own pass, in the order of views.

        Without an exchange that is torch's, which is faster.
        """
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
        kinds = {_kind(module) for module in modules}
        kind = kinds.pop() if len(kinds) == 1 else None  # copies of it are of one
        if kind is nn.Sequential:
            # Not `named_children`, which has a module in two places once.
            return self._named(modules, list(first._modules), batches)
        if kind is ResNet:
            pooled = self._named(modules, _RESNET, batches)
            return self._named(modules, ["fc"], [batch.flatten(1) for batch in pooled])
        if kind in _BRANCH:
            branch = self._named(modules, _BRANCH[kind], batches)
            skipped = batches
            if first.downsample is not None:
                skipped = self._named(modules, ["downsample"], batches)
            total = [out.add_(skip) for out, skip in zip(branch, skipped, strict=True)]
            return self._named(modules, ["relu"], total)
        raise TypeError(
            f"{type(first).__name__} has batch norms and is not supported in lockstep; supported "
            "are torchvision's ResNets and nn.Sequential, without hooks and with their own forward"
        )

    def _named(
        self, modules: Sequence[nn.Module], names: Sequence[str], batches: Sequence[Tensor]
    ) -> list[Tensor]:
        for name in names:
            batches = self.through([module.get_submodule(name) for module in modules], batches)
        return list(batches)
