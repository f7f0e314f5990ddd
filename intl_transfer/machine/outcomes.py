"""Outcomes of checks, one line each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
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
    """

    checks: list[Check] = field(default_factory=list)

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
        self.checks.append(Check(name, place, outcome, figure, detail, round(seconds, 2)))
        return outcome == "ok"

    def leave_out(self, name: str, place: str, outcome: Outcome, reason: str) -> None:
        """Adds a check that is not run."""
        self.checks.append(Check(name, place, outcome, detail=reason))


def as_json(checks: Iterable[Check]) -> dict[str, Any]:
    """``{"checks": [...], "failed": number}``."""
    rows = [asdict(check) for check in checks]
    return {"checks": rows, "failed": sum(row["outcome"] == "failed" for row in rows)}


def show(checks: Iterable[Check]) -> None:
    """Prints a table, one line per check."""
    from rich.console import Console
    from rich.markup import escape

    colors = {"ok": "green", "failed": "bold red", "not here": "dim", "skipped": "yellow"}
    console = Console(soft_wrap=True, highlight=False)
    checks = list(checks)
    widths = [max((len(text) for text in column), default=0) for column in _columns(checks)]
    for check, (name, place, outcome) in zip(
        checks, zip(*_columns(checks), strict=True), strict=True
    ):
        words = "; ".join(text for text in (check.figure, check.detail) if text)
        seconds = f"{check.seconds:6.1f} s" if check.seconds else " " * 8
        color = colors[check.outcome]
        console.print(
            f"[{color}]{outcome:<{widths[2]}}[/{color}]  {escape(f'{name:<{widths[0]}}')}  "
            f"{escape(f'{place:<{widths[1]}}')} {seconds}  {escape(words)}".rstrip()
        )
    counts = {name: sum(check.outcome == name for check in checks) for name in colors}
    console.print(", ".join(f"{number} {name}" for name, number in counts.items() if number))


def _columns(checks: list[Check]) -> list[list[str]]:
    return [
        [check.name for check in checks],
        [check.place for check in checks],
        [check.outcome for check in checks],
    ]
