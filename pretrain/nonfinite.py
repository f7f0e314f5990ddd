"""What happens when a step, or the state, is not finite."""

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
    """Counts skipped steps, and ends the run when they are too many in a row.

    A skipped step changes nothing. All ranks see the same and come to the same end.

    Args:
        folder: the run directory, where the dump goes.
        limit: steps in a row.
        is_main: whether this rank writes the dump.
        figures: those of the results, which the counts of earlier sessions are among and new ones
            go to: ``skipped_steps``, and ``gradient_overflows`` where there are any.

    Attributes:
        in_a_row: number of skipped steps up to the present one.
    """

    def __init__(self, folder: Path, limit: int, is_main: bool, figures: dict[str, float]) -> None:
        self._folder, self._limit, self._is_main = folder, limit, is_main
        self._figures = figures
        self._figures.setdefault("skipped_steps", 0)
        self.in_a_row = 0
        self._unproven: int | None = None

    @property
    def total(self) -> int:
        """Of skipped steps, in all sessions."""
        return int(self._figures["skipped_steps"])

    def note(self, step: int, done: Step, encoder: Encoder) -> None:
        """Takes up one step.

        Args:
            step: its number, from 1.
            done: what it came to.
            encoder: whose gradients are those of the last step that had any.

        Raises:
            UserError: at the last skipped step that is allowed.
        """
        if done.skipped is None:
            self.in_a_row, self._unproven = 0, None
            if done.overflowed:  # while the scale is found: no cause for alarm
                before = self._figures.get("gradient_overflows", 0)
                self._figures["gradient_overflows"] = before + 1
            return
        self._figures["skipped_steps"] += 1
        self.in_a_row += 1
        if self.in_a_row >= self._limit:
            self.end(step, f"{done.skipped}, {self.in_a_row} step(s) in a row", done, encoder)

    def saved(self, step: int) -> None:
        """A checkpoint was taken after a step; the next one shows whether it is any good."""
        self._unproven = step

    def end(self, step: int, reason: str, done: Step, encoder: Encoder) -> None:
        """Ends the run: what is not finite will not become so by itself.

        A checkpoint after which no step counted any more is set aside, so that the run can continue
        from the one before.

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
                f". The last checkpoint, {good}, is whole; --allow-config-change continues from it"
                if good
                else "; there is no checkpoint to continue from"
            )
        )

    def finish(self, steps: int) -> None:
        """Looks at a whole run's end.

        Args:
            steps: of the run.

        Raises:
            UserError: if no step of it counted.
        """
        if not math.isfinite(self._figures.get("final_loss", math.nan)):
            raise UserError(
                f"none of {steps} steps had a finite loss: nothing was learned. {ADVICE}"
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
