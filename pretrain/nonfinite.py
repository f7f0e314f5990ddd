"""What happens when a loss is NaN or infinite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intl_transfer.errors import UserError
from intl_transfer.models import Encoder
from intl_transfer.runs.atomic import write_json
from intl_transfer.runs.checkpoint import list_checkpoints
from intl_transfer.spectral import NonFiniteError, spectrum


class NonFiniteWatch:
    """Counts steps in a row whose loss is not finite, and ends the run when they are too many.

    Such a step changes no weight. All ranks see the same loss and come to the same end.

    Args:
        folder: the run directory, where the dump goes.
        limit: steps in a row.
        is_main: whether this rank writes the dump.
    """

    def __init__(self, folder: Path, limit: int, is_main: bool) -> None:
        self._folder, self._limit, self._is_main = folder, limit, is_main
        self._count = 0

    def good(self) -> None:
        """A step went well."""
        self._count = 0

    def bad(self, step: int, reason: str, views: Sequence[Tensor], encoder: Encoder) -> None:
        """A step did not.

        Args:
            step: its number, from 1.
            reason: what was not finite.
            views: this rank's embeddings.
            encoder: whose gradients are those of the last step that had any.

        Raises:
            UserError: at the last step that is allowed.
        """
        self._count += 1
        if self._count < self._limit:
            return
        newest = list_checkpoints(self._folder / "checkpoints")
        good = newest[0].name if newest else None
        file = self._folder / f"nonfinite_step_{step:08d}.json"
        if self._is_main:
            write_json(
                file,
                {
                    "step": step,
                    "reason": reason,
                    "steps_in_a_row": self._count,
                    "last_checkpoint": good,
                    "views": [_describe(view.detach().float()) for view in views],
                    "gradient_norm": module_norms(encoder, of_gradients=True),
                    "parameter_norm": module_norms(encoder, of_gradients=False),
                },
            )
        raise UserError(
            f"step {step}: {reason}, {self._count} step(s) in a row; "
            f"{file} has the spectrum and the gradients. Try a smaller optim.base_lr, a longer "
            "optim.warmup_epochs, optim.clip_norm=1 or engine.precision=fp32"
            + (
                f". The last checkpoint, {good}, is whole; --allow-config-change goes on from it"
                if good
                else "; there is no checkpoint to go on from"
            )
        )


def module_norms(encoder: Encoder, of_gradients: bool) -> dict[str, float | str | None]:
    """The norm of each part's parameters or gradients; null where there are none."""
    parts: dict[str, nn.Module] = dict(encoder.backbone.named_children())
    parts = {f"backbone.{name}": part for name, part in parts.items()}
    parts["projector"] = encoder.projector
    norms: dict[str, float | str | None] = {}
    for name, part in parts.items():
        values = [p.grad if of_gradients else p for p in part.parameters()]
        tensors = [value.detach().float() for value in values if value is not None]
        if list(part.parameters()):
            total = torch.stack(torch._foreach_norm(tensors)).norm() if tensors else None
            norms[name] = None if total is None else _number(float(total))
    return norms


def _describe(view: Tensor) -> dict[str, Any]:
    """What can be said of a batch of embeddings."""
    finite = torch.isfinite(view)
    rows = (~finite.all(1)).nonzero().flatten().tolist()
    kept = view[finite]
    described: dict[str, Any] = {
        "rows": len(view),
        "rows_not_finite": rows,
        "largest": _number(float(kept.abs().max())) if kept.numel() else None,
    }
    try:
        described["spectrum"] = [_number(value) for value in spectrum(view).tolist()]
    except (NonFiniteError, ValueError, RuntimeError):
        described["spectrum"] = None
    return described


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
