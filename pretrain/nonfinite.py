"""Handling of non-finite steps and states."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intl_transfer.errors import UserError
from intl_transfer.models import Encoder
from intl_transfer.runs.atomic import write_json
from intl_transfer.runs.checkpoint import list_checkpoints, set_aside
from intl_transfer.spectral import NonFiniteError, spectrum
from pretrain.learner import Step

ADVICE = (
    "Try a smaller optim.base_lr, a longer optim.warmup_epochs, optim.clip_norm=1 or "
    "engine.precision=fp32"
)


class NonFiniteWatch:
    """Counts skipped steps, and ends the run after too many consecutive ones.

    A skipped step has no effect. All ranks agree on it.

    Args:
        folder: the run directory, for the dump.
        limit: maximum number of consecutive skipped steps.
        is_main: whether this rank writes the dump.
        metrics: of the results, with the counts of earlier sessions; updated: ``skipped_steps``,
            and ``gradient_overflows`` if there are any.

    Attributes:
        in_a_row: number of consecutive skipped steps up to the current one.
    """

    def __init__(self, folder: Path, limit: int, is_main: bool, metrics: dict[str, float]) -> None:
        self._folder, self._limit, self._is_main = folder, limit, is_main
        self._metrics = metrics
        self._metrics.setdefault("skipped_steps", 0)
        self.in_a_row = 0
        self._unproven: int | None = None

    @property
    def total(self) -> int:
        """Number of skipped steps, in all sessions."""
        return int(self._metrics["skipped_steps"])

    def note(self, step: int, done: Step, encoder: Encoder) -> None:
        """Records one step.

        Args:
            step: its number, from 1.
            done: its result.
            encoder: with the gradients of the last step that had any.

        Raises:
            UserError: after ``limit`` consecutive skipped steps.
        """
        if done.skipped is None:
            self.in_a_row, self._unproven = 0, None
            if done.overflowed:  # while the scale is being found: normal
                before = self._metrics.get("gradient_overflows", 0)
                self._metrics["gradient_overflows"] = before + 1
            return
        self._metrics["skipped_steps"] += 1
        self.in_a_row += 1
        if self.in_a_row >= self._limit:
            self.end(step, f"{done.skipped}, {self.in_a_row} consecutive step(s)", done, encoder)

    def saved(self, step: int) -> None:
        """Records a checkpoint, which the next valid step confirms."""
        self._unproven = step

    def end(self, step: int, reason: str, done: Step, encoder: Encoder) -> None:
        """Ends the run.

        A checkpoint without a later valid step is renamed, so that the run can continue from the
        previous one.

        Raises:
            UserError: always.
        """
        checkpoints = self._folder / "checkpoints"
        if self._is_main and self._unproven is not None:
            set_aside(checkpoints, self._unproven)
        newest = list_checkpoints(checkpoints)
        good = newest[0].name if newest else None
        file = self._folder / f"nonfinite_step_{step:08d}.json"
        if self._is_main:
            write_json(
                file,
                {
                    "step": step,
                    "reason": reason,
                    "steps_in_a_row": self.in_a_row,
                    "last_checkpoint": good,
                    "views": [_describe(view.detach().float()) for view in done.views],
                    "gradient_norm": module_norms(encoder, of_gradients=True),
                    "parameter_norm": module_norms(encoder, of_gradients=False),
                },
            )
        raise UserError(
            f"step {step}: {reason}; {file} has the spectrum and the gradients. {ADVICE}"
            + (
                f". The last checkpoint, {good}, is intact; --allow-config-change continues from it"
                if good
                else "; there is no checkpoint to continue from"
            )
        )

    def finish(self, steps: int) -> None:
        """Checks the end of a run.

        Args:
            steps: of the run.

        Raises:
            UserError: if it had no valid step.
        """
        if not math.isfinite(self._metrics.get("final_loss", math.nan)):
            raise UserError(
                f"none of {steps} steps had a finite loss: nothing was learned. {ADVICE}"
            )


def module_norms(encoder: Encoder, of_gradients: bool) -> dict[str, float | str | None]:
    """The norm of each part's parameters or gradients; null if there are none."""
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
    """Diagnostics of a batch of embeddings."""
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
