"""Rate and time left: one live line on a terminal, periodic lines in a log file."""

from __future__ import annotations

import contextlib
import os
import sys
import time

from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

_lost: list[str] = []  # lines that could not be printed


class Progress:
    """Measures the rate of a loop and shows its progress.

    Args:
        total: number of steps of the whole run.
        done: steps done before this session.
        every_seconds: time between lines; the first and the last step always print.
        live: one line updated in place, with a bar; None: if the output is a terminal.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        every_seconds: float = 10.0,
        live: bool | None = None,
    ) -> None:
        self._total, self._first = total, done
        self._live: RichProgress | None = None
        if sys.stdout.isatty() if live is None else live:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=20))
            self._live = RichProgress(*columns, TextColumn("ETA {task.fields[eta]}"))
            self._task = self._live.add_task("starting", total=total, completed=done, eta="?")
            self._live.start()
            every_seconds = 0.5
        self._every = every_seconds
        self._start = time.perf_counter()
        self._shown = -float("inf")
        # The rate is measured over a window, since the first steps warm up caches and workers.
        self._window = [(self._start, done)]

    def elapsed(self) -> float:
        """Seconds since this session began."""
        return time.perf_counter() - self._start

    def due(self) -> bool:
        """Whether the next :meth:`show` would print."""
        return time.perf_counter() - self._shown >= self._every

    def rate(self, step: int) -> float:
        """Steps per second over the last minute or so."""
        now = time.perf_counter()
        self._window.append((now, step))
        while len(self._window) > 2 and now - self._window[1][0] > 60:
            self._window.pop(0)
        then, before = self._window[0]
        return (step - before) / max(1e-9, now - then)

    def show(self, step: int, text: str, images_per_second: float) -> None:
        """Prints a line with the time of day, if one is due or at the last step."""
        if not self.due() and step != self._total:
            return
        self._shown = time.perf_counter()
        left = format_seconds((self._total - step) / max(1e-9, self.rate(step)))
        line = f"step {step}/{self._total} {text} {images_per_second:.0f} images/s"
        if self._live is not None:
            self._live.update(self._task, description=line, completed=step, eta=left)
        else:
            print_line(timed(f"{line} ETA {left}"))

    def say(self, text: str) -> None:
        """Prints a separate line above the live one."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print_line(text)

    def close(self) -> None:
        """Ends the live line."""
        if self._live is not None:
            self._live.stop()


def print_line(text: str) -> None:
    """Prints a line at once, unless nobody can read it any more.

    Of `| tee FILE`, Ctrl-C ends the reader as well: a run saves and records that it was stopped,
    and a launcher stops its jobs, all the same. A log on a full disk loses lines, and ends nothing.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # nor at exit, for what is buffered
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if not _lost:
            _lost.append(text)
            line = f"warning: lines of the output are lost: {error.strerror or error}; said once"
            with contextlib.suppress(OSError, ValueError):
                print(line, file=sys.stderr)


def timed(text: str) -> str:
    """A line of progress, prefixed with the time of day."""
    return f"{time.strftime('%H:%M:%S')} {text}"


def format_seconds(seconds: float) -> str:
    """``75`` to ``1:15``, ``3700`` to ``1:01:40``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
