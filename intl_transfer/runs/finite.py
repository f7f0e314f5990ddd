"""Handling of NaN and infinity in training, checkpoints and exports.

A step whose loss, gradients or batch-norm statistics are not finite is skipped: parameters, buffers
and optimizer remain as before it. Since the forward pass has already updated the batch-norm
statistics, :class:`StepGuard` saves them (some hundred kilobytes) and restores them. Skipped steps
are counted; checkpoints and exports that contain NaN or infinity are refused.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from intl_transfer.errors import UserError
from intl_transfer.runs.distributed import Ranks


class StateNotFiniteError(UserError):
    """A state to be saved or exported contains NaN or infinity."""


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether every number is finite, without synchronizing with the device.

    Based on the norm of each tensor: numbers whose squares overflow count as infinite, since
    training could not continue from them.

    Args:
        tensors: of any shapes; integer and empty tensors count as finite.

    Returns:
        A boolean, shape (), on the tensors' device.
    """
    flags = [torch.isfinite(torch.stack(norms)).all() for norms in _norms(tensors)]
    return torch.stack(flags).all() if flags else torch.tensor(True)


def _norms(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Norms of the floating tensors, by device and type."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            groups[tensor.device, tensor.dtype].append(tensor)
    with torch.no_grad():
        return [list(torch._foreach_norm(group)) for group in groups.values()]


def first_nonfinite(state: Any) -> str | None:
    """The path of the first tensor or number that is NaN or infinite.

    Args:
        state: tensors and numbers, in dictionaries and lists of any depth.

    Returns:
        ``"model.bn1.running_var"``, or None if all are finite.
    """
    leaves = list(_leaves(state, ""))
    tensors = [value for _, value in leaves if isinstance(value, Tensor)]
    # Norms are a fast first pass; tensors that fail it are checked element by element.
    if bool(all_finite(tensors)) and all(
        math.isfinite(value) for _, value in leaves if isinstance(value, float)
    ):
        return None
    for name, value in leaves:
        finite = value.isfinite().all() if isinstance(value, Tensor) else math.isfinite(value)
        if not bool(finite):
            return name
    return None


def _leaves(state: Any, place: str) -> Iterator[tuple[str, Tensor | float]]:
    if isinstance(state, Tensor):
        if state.is_floating_point():
            yield place, state
    elif isinstance(state, float):
        yield place, state
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from _leaves(value, f"{place}.{key}" if place else str(key))
    elif isinstance(state, list | tuple):
        for index, value in enumerate(state):
            yield from _leaves(value, f"{place}.{index}" if place else str(index))


def require_finite(state: Any, what: str, advice: str = "") -> None:
    """Raises an error if a state contains NaN or infinity.

    Args:
        state: for :func:`first_nonfinite`.
        what: name of the state, for the message.
        advice: for the message.

    Raises:
        StateNotFiniteError: naming the first such tensor.
    """
    found = first_nonfinite(state)
    if found is not None:
        raise StateNotFiniteError(f"{what}: {found} contains NaN or infinity{advice}")


class StepGuard:
    """Saves buffers before a forward pass, and checks whether a step is finite.

    Args:
        modules: whose buffers to save, by name: the network, its moving average.
        ranks: this process's place; all ranks get the same answer.
    """

    def __init__(self, modules: Mapping[str, nn.Module], ranks: Ranks) -> None:
        self._modules, self._ranks = dict(modules), ranks
        self._buffers: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}

    def remember(self) -> None:
        """Saves the buffers; call it before a step's forward pass."""
        if not self._buffers:  # by the first step all modules are on their final device
            self._buffers = {
                f"{place}.{name}": buffer
                for place, module in self._modules.items()
                for name, buffer in module.named_buffers()
            }
            self._kept = {name: torch.empty_like(b) for name, b in self._buffers.items()}
        _copy(self._kept.values(), self._buffers.values())

    def is_finite(self, loss: Tensor, gradients: Sequence[Tensor]) -> bool:
        """Whether loss, gradients and buffers are finite, on every rank.

        Synchronizes with the device once.

        Args:
            loss: shape ().
            gradients: of all parameters; empty if a gradient scaler checks them.
        """
        flag = all_finite([loss, *gradients, *self._buffers.values()])
        if self._ranks.world_size > 1:
            number = flag.to(self._ranks.device, torch.int32)
            dist.all_reduce(number, dist.ReduceOp.MIN)
            flag = number.bool()
        return bool(flag)

    def reason(self, loss: Tensor, gradients: Mapping[str, Tensor]) -> str:
        """Describes what was not finite, as seen by this rank."""
        if not bool(loss.isfinite()):
            return "NaN or infinity in the embeddings or the loss"
        for what, tensors in (
            ("the statistics of batch norm", self._buffers),
            ("the gradients", gradients),
        ):
            for name, tensor in tensors.items():
                if not bool(all_finite([tensor])):
                    return f"NaN or infinity in {what} ({name})"
        return "NaN or infinity on another rank"

    def restore(self) -> None:
        """Restores the saved buffers."""
        _copy(self._buffers.values(), self._kept.values())


@torch.no_grad()
def _copy(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    pairs: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for target, source in zip(targets, sources, strict=True):
        pairs[target.dtype].append((target, source))
    for group in pairs.values():  # of one type, so that few kernels handle all of them
        torch._foreach_copy_([target for target, _ in group], [source for _, source in group])


@dataclass(frozen=True)
class Skips:
    """How many steps were skipped.

    Attributes:
        new: since the last read.
        total: of the whole run.
        in_a_row: consecutive, up to the current step.
        longest: most consecutive ones since the last read, including a sequence begun before it.
    """

    new: int
    total: int
    in_a_row: int
    longest: int


class SkippedSteps:
    """Counts on the device, without synchronization until :meth:`read`.

    Args:
        device: of the flags.
        total: of earlier sessions.
    """

    def __init__(self, device: torch.device, total: int = 0) -> None:
        # new, in a row, longest
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)
        self.total = total

    @torch.no_grad()
    def note(self, is_finite: Tensor | bool) -> None:
        """Counts one step's flag; a tensor, of shape (), stays on its device."""
        skipped = (~is_finite).long() if isinstance(is_finite, Tensor) else int(not is_finite)
        new, row, longest = self._counts.unbind()
        row = (row + 1) * skipped
        self._counts = torch.stack([new + skipped, row, torch.maximum(longest, row)])

    def read(self) -> Skips:
        """The counts so far; synchronizes with the device."""
        new, row, longest = self._counts.tolist()
        self.total += new
        self._counts[0], self._counts[2] = 0, row
        return Skips(new, self.total, row, longest)
