"""Progress lines with rate and time left, fit for a terminal and for a log file."""

from __future__ import annotations

import time


class Progress:
    """Measures the rate of a loop and prints a line every few seconds.

    Args:
        total: number of steps of the whole run.
        done: steps made before this session.
        every_seconds: time between lines; the first and the last step always print.
    """

    def __init__(self, total: int, done: int = 0, every_seconds: float = 10.0) -> None:
        self._total, self._first = total, done
        self._every = every_seconds
        self._start = time.perf_counter()
        self._shown = -float("inf")
        # The rate is taken over a window: the first steps warm caches and workers up.
        self._window = [(self._start, done)]

    def elapsed(self) -> float:
        """Seconds since this session began."""
        return time.perf_counter() - self._start

    def due(self) -> bool:
        """Whether the next :meth:`show` would print."""
        return time.perf_counter() - self._shown >= self._every

    def rate(self, step: int) -> float:
        """Steps a second over the last minute or so."""
        now = time.perf_counter()
        self._window.append((now, step))
        while len(self._window) > 2 and now - self._window[1][0] > 60:
            self._window.pop(0)
        then, before = self._window[0]
        return (step - before) / max(1e-9, now - then)

    def show(self, step: int, text: str, images_per_second: float) -> None:
        """Prints one line if one is due, or at the last step."""
        if not self.due() and step != self._total:
            return
        self._shown = time.perf_counter()
        left = (self._total - step) / max(1e-9, self.rate(step))
        print(
            f"step {step}/{self._total} {text} {images_per_second:.0f} images/s "
            f"ETA {format_seconds(left)}",
            flush=True,
        )


def format_seconds(seconds: float) -> str:
    """``75`` to ``1:15``, ``3700`` to ``1:01:40``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
