"""Times in records: compared as times, never as text, in one place.

An anonymous archive keeps only how long after its first run another one ended
(:func:`since_first`). Such times count from a beginning of their own: they are compared with each
other, and with no others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime

_SINCE = re.compile(r"([0-9]+(?:\.[0-9]+)?) s after the first of ([0-9a-f]+)")


def in_seconds(text: str | None) -> float | None:
    """A time in Unix seconds; None if it is unknown.

    Args:
        text: in ISO 8601, in any time zone.
    """
    try:
        return datetime.fromisoformat(text or "").timestamp()
    except (ValueError, OverflowError):
        return None


def since_first(seconds: float, archive: str) -> str:
    """A time of an anonymous archive.

    Args:
        seconds: after the end of its first run.
        archive: hexadecimal digits that no other archive has.
    """
    return f"{seconds:.6f} s after the first of {archive}"


def moment(text: str | None) -> tuple[str, float] | None:
    """A time as its clock and seconds; times of one clock alone can be compared.

    Args:
        text: as records state it.

    Returns:
        The archive from whose first run it counts, or "" for Unix seconds; None if it is unknown.
    """
    since = _SINCE.fullmatch(text or "")
    if since is not None:
        return since[2], float(since[1])
    seconds = in_seconds(text)
    return None if seconds is None else ("", seconds)


def in_one_order(times: Mapping[str, Iterable[str | None]]) -> dict[str, list[float]] | None:
    """Times in seconds that can be compared; None if one is unknown, or not all of one clock.

    Args:
        times: as records state them, by any name.
    """
    found = {name: [moment(text) for text in texts] for name, texts in times.items()}
    known = {name: [one for one in ones if one is not None] for name, ones in found.items()}
    clocks = {clock for ones in known.values() for clock, _ in ones}
    if known != found or len(clocks) > 1:
        return None
    return {name: [seconds for _, seconds in ones] for name, ones in known.items()}
