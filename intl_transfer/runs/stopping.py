"""Requests to stop: SIGTERM, SIGUSR2 and Ctrl-C, agreed on by all ranks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

#: What continues a run, of any stage, for messages.
AGAIN = "the same command continues"
#: Exit status of a run that was asked to stop and wants to be continued by the same command
#: (EX_TEMPFAIL of sysexits.h).
CONTINUE = 75
#: Exit status of a run that was asked to stop and could not save (EX_IOERR of sysexits.h): the same
#: command continues from an older checkpoint, once somebody has looked at the disk.
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
        stopped: whether it was asked to, not told to by its configuration.
        signal_name: which signal asked; None where another rank received it.
        place: how far it came, for the message: ``step 7``.
        saved: whether a checkpoint holds all that was made.
        again: what continues the run, for the message.

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
    """A run was asked to stop and can be continued; no error, and not to be caught as one."""


class StopRequest:
    """Notes signals, and tells all ranks of it at the same step.

    Schedulers send SIGTERM or SIGUSR2 before they kill; each process may receive it at another
    step, or one process only. Ranks exchange a flag beside the training: the answer to step n's
    exchange is taken up at step n + 1, so that nobody waits for it.

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
            # A group of its own, on the host: no order with the training's collectives, and no
            # waiting for a GPU.
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
            print("stopping after this step; Ctrl-C again stops at once", file=sys.stderr)
        self.signal = signal.Signals(number).name
        if self._at_once:
            self._at_once = False
            raise Stopped

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block a request is answered at once: all that matters has been saved.

        Raises:
            Stopped: where this process is when the signal arrives, or at the block's beginning if
                it has arrived before.
        """
        self._at_once = True
        try:
            if self.signal is not None:
                raise Stopped
            yield
        finally:
            self._at_once = False

    def agreed(self) -> bool:
        """Whether any rank has been asked to stop; the same answer on every rank.

        To be called once a step by all ranks. Among several ranks a request is answered one step
        later.
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
            self._exchange.wait()  # nothing may be under way when the group is left
        return answer

    def close(self) -> None:
        """Takes up what is under way, at the loop's end."""
        if self._exchange is not None:
            self._exchange.wait()
            self._exchange = None


@contextmanager
def passed_on() -> Iterator[StopRequest]:
    """Passes requests to stop on to the processes that this one starts and waits for.

    Schedulers tell the process that they started, not its children. A terminal's Ctrl-C reaches
    all of them; the children hear of it a second time as SIGTERM, which is the same request.

    Yields:
        Where ``signal`` tells of the last request.
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
