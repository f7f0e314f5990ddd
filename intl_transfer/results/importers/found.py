"""The result of importers, and their common readers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.files.jsons import parse_json
from intl_transfer.results.reading import check_plain

#: Maximum length of a line of a log.
_LONGEST = 16 << 20


@dataclass(frozen=True)
class Found:
    """Metrics of the last evaluation in a file, and the protocol that the file states.

    Attributes:
        metrics: in %; by task and metric for detection, by metric for classification.
        producer: what wrote the file.
        at: position in training, as text.
        epoch: of the evaluation, where stated.
        stated: facts stated in the file, by option of ``intl-transfer import``.
        detection: whether they are of detection.
    """

    metrics: dict[str, Any]
    producer: str
    at: str = ""
    epoch: int | None = None
    stated: dict[str, Any] = field(default_factory=dict)
    detection: bool = True


def json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSON-lines file; a truncated last line is skipped.

    Raises:
        UserError: if it is not a regular file, or another line is not a JSON object.
    """
    check_plain(file, file.stat())
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                value = parse_json(line[:_LONGEST], f"{file}, line {number}")
            except UserError:
                if not line.endswith(b"\n"):
                    return  # truncated
                raise
            if not isinstance(value, dict):
                raise UserError(
                    f"{file}, line {number}: expected a JSON object, found {type(value).__name__}"
                )
            yield value


Position = tuple[int, ...]


@dataclass
class Progress:
    """Positions in training along a log, by which its last evaluation is of the end or not.

    Attributes:
        now: the last one.
        reached: the furthest one.
        evaluated: that of the last evaluation.
        later: those of training after it.
    """

    now: Position = ()
    reached: Position = ()
    evaluated: Position = ()
    later: list[Position] = field(default_factory=list)

    def trained(self, position: Position) -> None:
        """Notes a line of training; one without a position is where the last one was."""
        self.now = position or self.now
        self.reached = max(self.reached, self.now)
        self.later.append(self.now)

    def tested(self, position: Position = ()) -> None:
        """Notes an evaluation; one without a position is where the last line was."""
        self.now = self.evaluated = position or self.now
        self.reached = max(self.reached, self.now)
        self.later = []

    def require_end(self, file: Path, words: Callable[[Position], str]) -> None:
        """Checks that nothing was trained further than the last evaluation, or again after it.

        Args:
            file: the log.
            words: a position in words.

        Raises:
            UserError: if something was.
        """
        at = words(self.evaluated) if self.evaluated else "an unknown position"
        if self.evaluated < self.reached:
            raise UserError(
                f"{file}: its last evaluation (at {at}) is not of the end: training continued to "
                f"{words(self.reached)}; only the final one counts"
            )
        again = [position for position in self.later if position < self.evaluated]
        if again:
            raise UserError(
                f"{file}: training began again at {words(min(again))} after its last evaluation, "
                f"at {at}; this log does not have the evaluation of the end"
            )


def final(
    file: Path, values: Mapping[str, Any], scale: float = 1.0, is_detection: bool = False
) -> dict[str, float | None]:
    """The metrics of a log's last evaluation in %, by their names in it.

    Args:
        file: the log.
        values: all that will be used of that evaluation.
        scale: from the log's unit to %.
        is_detection: a negative metric is then undefined (no object of a size), and None.

    Raises:
        UserError: if one is not a number: only the final evaluation counts, and no part of it.
    """
    found = {name: percentage(value, scale) for name, value in values.items()}
    for name, value in values.items():
        is_undefined = is_detection and isinstance(value, (int, float)) and value < 0
        if found[name] is None and not is_undefined:
            raise UserError(
                f"{file}: its last evaluation has {name} {value}, expected a number; only the "
                "final one counts"
            )
    return found


def percentage(value: Any, scale: float = 1.0) -> float | None:
    """A metric in %; None if not finite, or negative (undefined)."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) * scale if good and math.isfinite(value) and value >= 0 else None


def only_file(source: Path, patterns: tuple[str, ...], what: str) -> Path:
    """The file itself, or the only such file in a folder.

    Raises:
        UserError: if there is none, or several.
    """
    if source.is_file():
        return source
    if not source.is_dir():
        raise UserError(f"{source} does not exist; expected {what}")
    files = sorted({file for pattern in patterns for file in source.glob(pattern)})
    if len(files) == 1:
        return files[0]
    names = ", ".join(str(file.relative_to(source)) for file in files[:10])
    raise UserError(
        f"{source}: expected one {what}, found {len(files)}"
        + (f": {names}. Give the one that counts" if files else "")
    )
