"""Handles requests to stop (SIGTERM, SIGUSR2, Ctrl-C) on all ranks together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

#: How to continue a run of any stage, for messages.
AGAIN = "the same command continues"
#: Exit status of an interrupted run that the same command continues (EX_TEMPFAIL of sysexits.h).
CONTINUE = 75
#: Exit status of an interrupted run that could not save (EX_IOERR of sysexits.h): the same command
#: continues from an older checkpoint, once the disk has been checked.
UNSAVED = 74

_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


@dataclass(frozen=True)
class Ending:
    """How a session ends before its run does.

    Attributes:
        reason: for the manifest.
        line: for the user.
        status: the exit status.
    """

    reason: str
    line: str
    status: int


def ending(stopped: bool, signal_name: str | None, place: str, saved: bool, again: str) -> Ending:
    """How a session ends before its run does.

    Args:
        stopped: whether a signal stopped it, rather than its configuration.
        signal_name: the signal; None if another rank received it.
        place: how far it got, for the message: ``step 7``.
        saved: whether a checkpoint contains all progress.
        again: how to continue the run, for the message.

    Returns:
        With the status :data:`CONTINUE` only for what was saved.
    """
    reason = f"stopped by {signal_name or 'a signal'}" if stopped else "stopped as asked"
    if not saved:
        reason = f"{reason} after {place}, which was not saved"
        return Ending(reason, f"{reason}; {again} from the last checkpoint", UNSAVED)
    reason = f"{reason} after {place}"
    return Ending(reason, f"{reason}; {again}", CONTINUE if stopped else 0)


class Stopped(BaseException):
    """A run was interrupted and can be continued; not an error, and not to be caught as one."""


class StopRequest:
    """Receives signals and informs all ranks at the same step.

    Schedulers send SIGTERM or SIGUSR2 before they kill; processes may receive it at different
    steps, or only one may. Ranks exchange a flag asynchronously: the result of step n's exchange is
    used at step n + 1, so that no rank waits for it.

    Use as a context manager around the training loop.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._before: dict[int, Any] = {}
        self._group: Any = None
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._exchange: Any = None
        self._at_once = False

    def __enter__(self) -> StopRequest:
        if dist.is_initialized() and dist.get_world_size() > 1:
            # A separate group, on the host: not ordered with the training's collectives, and
            # without waiting for a GPU.
            self._group = dist.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.signal is not None:
                raise KeyboardInterrupt
            # Not by `print`, which may be interrupted itself, or whose reader Ctrl-C has ended.
            with suppress(OSError):
                os.write(2, b"stopping after this step; Ctrl-C again stops at once\n")
        self.signal = signal.Signals(number).name
        if self._at_once:
            self._at_once = False
            raise Stopped

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block a request stops at once, since all progress has been saved.

        Raises:
            Stopped: wherever this process is when the signal arrives, or at the start of the block
                if it arrived before.
        """
        self._at_once = True
        try:
            if self.signal is not None:
                raise Stopped
            yield
        finally:
            self._at_once = False

    def agreed(self) -> bool:
        """Whether any rank received a request to stop; the same answer on every rank.

        Must be called once per step by all ranks. With several ranks a request takes effect one
        step later.
        """
        if self._group is None:
            return self.signal is not None
        answer = False
        if self._exchange is not None:
            self._exchange.wait()
            answer = bool(self._flag.item())
        self._flag = torch.tensor([int(self.signal is not None)], dtype=torch.int32)
        self._exchange = dist.all_reduce(
            self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True
        )
        if answer:
            self._exchange.wait()  # no exchange may be pending when the group is destroyed
        return answer

    def close(self) -> None:
        """Completes a pending exchange, at the end of the loop."""
        if self._exchange is not None:
            self._exchange.wait()
            self._exchange = None


@contextmanager
def passed_on() -> Iterator[StopRequest]:
    """Forwards requests to stop to child processes.

    Schedulers signal the process that they started, not its children. A terminal's Ctrl-C reaches
    all of them; the children then get SIGTERM as well, which is the same request.

    Yields:
        An object whose ``signal`` is the last request.
    """
    request = StopRequest()

    def pass_on(number: int, _: FrameType | None) -> None:
        request.signal = signal.Signals(number).name
        for child in multiprocessing.active_children():
            if child.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGTERM if number == signal.SIGINT else number)

    before = {number: signal.signal(number, pass_on) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
