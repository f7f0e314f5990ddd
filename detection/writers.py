"""Detectron2's writers of metrics, none of which ends a run: the run's own are in its directory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)

from intl_transfer.runs.trackers import disabled, quiet_tensorboard


class FailSafe(EventWriter):
    """A writer that is disabled with a warning once it fails.

    Args:
        name: in the warning.
        make: makes the writer, which may fail, too.
    """

    def __init__(self, name: str, make: Callable[[], EventWriter]) -> None:
        self._name = name
        self._writer: EventWriter | None = None

        def begin() -> None:
            self._writer = make()

        self._call(begin)

    def write(self) -> None:
        """Writes what has been measured since."""
        if self._writer is not None:
            self._call(self._writer.write)
        else:  # what else only the writer would clear
            storage = get_event_storage()
            storage.clear_images()
            storage.clear_histograms()

    def close(self) -> None:
        """Flushes and closes."""
        if self._writer is not None:
            self._call(self._writer.close)

    def _call(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            failed, self._writer = self._writer, None
            disabled(self._name, error)
            if failed is not None:
                # Left open, its file would print a traceback when it is let go of (Python 3.13).
                with contextlib.suppress(Exception):
                    failed.close()


def writers(folder: Path, iterations: int) -> list[EventWriter]:
    """The screen, ``metrics.json`` and TensorBoard, as Detectron2's own list has them.

    Args:
        folder: of the files.
        iterations: of the training, for the remaining time.
    """
    quiet_tensorboard()
    return [
        CommonMetricPrinter(iterations),
        FailSafe("metrics.json", lambda: JSONWriter(str(folder / "metrics.json"))),
        FailSafe("TensorBoard", lambda: TensorboardXWriter(str(folder))),
    ]
