"""Times in records: compared as times, never as text, in one place."""

from __future__ import annotations

from datetime import datetime


def in_seconds(text: str | None) -> float | None:
    """A time in Unix seconds; None if it is unknown.

    Args:
        text: in ISO 8601, in any time zone.
    """
    try:
        return datetime.fromisoformat(text or "").timestamp()
    except (ValueError, OverflowError):
        return None
