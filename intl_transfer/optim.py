"""LARS, for large batches, and optimizers that continue under changed settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from intl_transfer.errors import UserError


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose rate is adapted layer by layer, as in Barlow Twins and VICReg.

    For a weight w with gradient g, ``u = g + weight_decay w`` becomes ``u eta ||w|| / ||u||``, then
    momentum and step as SGD. Parameters of one dimension (biases, batch norms) take plain
    SGD, as SimCLR, BYOL and Barlow Twins do.

    This is the LARS of the code of Barlow Twins (Zbontar et al., arXiv 2103.03230) and VICReg
    (Bardes et al., arXiv 2105.04906). That of You et al. (arXiv 1708.03888), from whom it comes,
    divides by ``||g|| + weight_decay ||w||`` instead of ``||g + weight_decay w||``; the two agree
    without weight decay.

    Args:
        params: parameters, or groups of such.
        lr: learning rate.
        momentum: of SGD.
        weight_decay: L2 penalty; 0 for groups without one.
        eta: the trust coefficient.

    Raises:
        ValueError: if a setting, of a group or of all, is negative, NaN or infinite.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(4, 2)
        >>> optimizer = LARS(layer.parameters(), lr=0.1)
        >>> layer(torch.ones(3, 4)).sum().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.001,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, of settings that have a meaning."""
        super().add_param_group(param_group)
        for name in ("lr", "momentum", "weight_decay", "eta"):
            value = self.param_groups[-1][name]
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; expected a finite number, 0 or more")

    @torch.no_grad()
    # Torch declares overloads.
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            updates: list[Tensor] = [p.grad for p in parameters]
            if group["weight_decay"]:
                updates = list(torch._foreach_add(updates, parameters, alpha=group["weight_decay"]))
            adapted = [i for i, p in enumerate(parameters) if p.dim() > 1]
            if adapted:
                weights = torch._foreach_norm([parameters[i] for i in adapted])
                norms = torch._foreach_norm([updates[i] for i in adapted])
                for i, weight, norm in zip(adapted, weights, norms, strict=True):
                    # Plain SGD if the weight or the gradient is zero, since the rate is undefined.
                    usable = (weight > 0) & (norm > 0)
                    ratio = group["eta"] * weight / torch.where(usable, norm, 1)
                    updates[i] = updates[i] * torch.where(usable, ratio, 1)
            for parameter, update in zip(parameters, updates, strict=True):
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(update)
                parameter.add_(buffer, alpha=-group["lr"])
        return loss


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Restores an optimizer's state from a checkpoint, under the optimizer's own settings.

    ``load_state_dict`` alone also restores weight decay, momentum and the like: a run that is
    continued with other ones would go on with those that it began with.

    Args:
        optimizer: of this session's configuration.
        state: its ``state_dict``, saved under any settings.

    Raises:
        UserError: if the parameters are grouped otherwise.
    """
    own, saved = optimizer.param_groups, state["param_groups"]
    now, before = ([len(group["params"]) for group in groups] for groups in (own, saved))
    if now != before:
        raise UserError(
            f"the optimizer has parameters in groups of {now}, its checkpoint in groups of "
            f"{before}, so momentum would go to other parameters. Weight decays and learning rates "
            "group them: restore those of the run, or choose another output directory"
        )
    pairs = zip(own, saved, strict=True)
    saved = [{**group, "params": old["params"]} for group, old in pairs]
    optimizer.load_state_dict({**state, "param_groups": saved})
