"""TensorBoard and Weights & Biases, in addition to ``metrics.jsonl``."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError


class Trackers:
    """Sends a run's metrics to the enabled trackers.

    A tracker that fails during a run is disabled with a warning: training does not stop because a
    server does not answer.

    Args:
        folder: the run directory; both keep their files in it.
        run_id: the run's id, under which a resumed run continues on Weights & Biases.
        name: the run's name.
        config: the resolved configuration.
        step: steps already done; later entries in TensorBoard are purged.
        tensorboard: write TensorBoard's files.
        wandb_project: project to report to, if any. ``WANDB_MODE=offline`` needs no network.

    Raises:
        UserError: if Weights & Biases is enabled and not installed.
    """

    def __init__(
        self,
        folder: Path,
        run_id: str,
        name: str,
        config: Mapping[str, Any],
        step: int = 0,
        tensorboard: bool = True,
        wandb_project: str | None = None,
    ) -> None:
        self._tensorboard: Any = None
        self._wandb: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter

                quiet_tensorboard()
                self._tensorboard = SummaryWriter(
                    str(folder / "tensorboard"), purge_step=step + 1 if step else None
                )
            except Exception as error:
                disabled("TensorBoard", error)
        if wandb_project:
            try:
                import wandb
            except ImportError:
                raise UserError(
                    f"log.wandb={wandb_project}: Weights & Biases is not installed; install it "
                    "with `pip install wandb`, or set log.wandb=null"
                ) from None
            try:
                self._wandb = wandb.init(
                    project=wandb_project,
                    id=run_id,
                    name=name,
                    config=dict(config),
                    dir=str(folder),
                    resume="allow",
                )
            except Exception as error:
                disabled("Weights & Biases", error)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Sends numbers; other values are ignored."""
        numbers = {
            key: float(value)
            for key, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        if self._tensorboard is not None:
            try:
                for key, value in numbers.items():
                    self._tensorboard.add_scalar(key, value, step)
            except Exception as error:
                self._tensorboard = None
                disabled("TensorBoard", error)
        if self._wandb is not None:
            try:
                self._wandb.log(numbers, step=step)
            except Exception as error:
                self._wandb = None
                disabled("Weights & Biases", error)

    def close(self) -> None:
        """Flushes buffered values."""
        for tracker, end in ((self._tensorboard, "close"), (self._wandb, "finish")):
            if tracker is not None:
                try:
                    getattr(tracker, end)()
                except Exception as error:
                    disabled("a tracker", error)


def disabled(name: str, error: Exception) -> None:
    """Warns that a tracker writes no more."""
    warnings.warn(f"{name} failed and is disabled for this session: {error}", stacklevel=3)


def quiet_tensorboard() -> None:
    """Keeps the thread that writes TensorBoard's files from printing a traceback when it fails.

    Its error is raised again by the next call of the writer, which is where it is handled.
    """
    from tensorboard.summary.writer import event_file_writer

    before = threading.excepthook
    if getattr(before, "is_quiet", False):
        return

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not isinstance(failure.thread, event_file_writer._AsyncWriterThread):
            before(failure)

    hook.is_quiet = True  # type: ignore[attr-defined]  # so that it is installed once
    threading.excepthook = hook
