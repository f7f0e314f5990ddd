"""Outcomes of checks, one line each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from intl_transfer.errors import first_line

Outcome = Literal["ok", "failed", "not here", "skipped"]


class FailedCheckError(Exception):
    """A check failed; the text states why, and what to do."""


class SkippedCheckError(Exception):
    """A check could not be run; the text states why."""


@dataclass(frozen=True)
class Check:
    """One check's outcome.

    Attributes:
        name: of the check.
        place: ``GPU``, ``CPU``, or a task of a job.
        outcome: ``ok``, ``failed``, ``not here`` (nothing of that kind on this machine) or
            ``skipped`` (could not be made).
        figure: the measured value; may be empty.
        detail: why it failed or was skipped, and what to do; or further information.
        seconds: duration.
    """

    name: str
    place: str
    outcome: Outcome
    figure: str = ""
    detail: str = ""
    seconds: float = 0.0


@dataclass
class Checklist:
    """Runs checks one by one; a failure does not affect the others.

    Attributes:
        checks: run so far.
        announce: called with name and place before each check, so that one that hangs is known.
        report: called with each outcome as soon as it is there.
    """

    checks: list[Check] = field(default_factory=list)
    announce: Callable[[str, str], None] = lambda name, place: None
    report: Callable[[Check], None] = lambda check: None

    def attempt(self, name: str, place: str, check: Callable[[], str | tuple[str, str]]) -> bool:
        """Runs one check.

        Args:
            name: of the check.
            place: of the check.
            check: returns the measured value, or value and detail. It raises
                :class:`FailedCheckError` or :class:`SkippedCheckError`; any other exception also
                counts as a failure.

        Returns:
            Whether the outcome is ``ok``.
        """
        self.announce(name, place)
        began = time.perf_counter()
        outcome: Outcome = "ok"
        figure = detail = ""
        try:
            made = check()
            figure, detail = made if isinstance(made, tuple) else (made, "")
        except SkippedCheckError as error:
            outcome, detail = "skipped", str(error)
        except FailedCheckError as error:
            outcome, detail = "failed", str(error)
        except Exception as error:  # any error of a broken driver, library or network
            outcome, detail = "failed", f"{type(error).__name__}: {first_line(error)}"
        seconds = time.perf_counter() - began
        self._add(Check(name, place, outcome, figure, detail, round(seconds, 2)))
        return outcome == "ok"

    def leave_out(self, name: str, place: str, outcome: Outcome, reason: str) -> None:
        """Adds a check that is not run."""
        self._add(Check(name, place, outcome, detail=reason))

    def _add(self, check: Check) -> None:
        self.checks.append(check)
        self.report(check)


def as_json(checks: Iterable[Check]) -> dict[str, Any]:
    """``{"checks": [...], "failed": number}``."""
    rows = [asdict(check) for check in checks]
    return {"checks": rows, "failed": sum(row["outcome"] == "failed" for row in rows)}


_COLORS: dict[Outcome, str] = {
    "ok": "green",
    "failed": "bold red",
    "not here": "dim",
    "skipped": "yellow",
}


def show(checks: Iterable[Check]) -> None:
    """Prints a table, one line per check, and the count of each outcome."""
    checks = list(checks)
    widths = tuple(
        max((len(text) for text in column), default=0)
        for column in zip(*((one.name, one.place, one.outcome) for one in checks), strict=True)
    )
    for check in checks:
        show_line(check, widths)
    show_counts(checks)


def show_line(check: Check, widths: Sequence[int]) -> None:
    """Prints one check's line.

    Args:
        check: the check.
        widths: of its name, place and outcome.
    """
    from rich.markup import escape

    words = "; ".join(text for text in (check.figure, check.detail) if text)
    seconds = f"{check.seconds:6.1f} s" if check.seconds else " " * 8
    color = _COLORS[check.outcome]
    name, place, outcome = widths
    _console().print(
        f"[{color}]{check.outcome:<{outcome}}[/{color}]  {escape(f'{check.name:<{name}}')}  "
        f"{escape(f'{check.place:<{place}}')} {seconds}  {escape(words)}".rstrip()
    )


def show_counts(checks: Iterable[Check]) -> None:
    """Prints how many checks had each outcome."""
    counts = Counter(check.outcome for check in checks)
    _console().print(", ".join(f"{counts[name]} {name}" for name in _COLORS if counts[name]))


def _console() -> Any:
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False)
