"""The result of importers, and their common readers."""

from __future__ import annotations

import math
from collections.abc import Iterator
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
