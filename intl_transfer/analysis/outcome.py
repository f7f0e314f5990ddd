"""The outcome of an analysis: figures to draw, data as CSV and JSON, claims that hold or do not."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from intl_transfer.analysis import style
from intl_transfer.analysis.registry import FORMATS
from intl_transfer.errors import UserError
from intl_transfer.runs import write_atomically, write_json
from intl_transfer.runs.directory import git_state, library_versions

Row = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """Something that a figure is there to show.

    Attributes:
        text: in a sentence.
        expected: what would bear it out, in words: ``below 1.5``.
        found: what was measured.
        holds: whether it was borne out.
    """

    text: str
    expected: str
    found: float
    holds: bool

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "DOES NOT HOLD"
        return f"{verdict}: {self.text}: {self.found:.4g} (expected {self.expected})"


def below(text: str, found: float, limit: float) -> Claim:
    """The claim that a number is below another; NaN is not."""
    return Claim(text, f"below {limit:g}", found, found < limit)


def above(text: str, found: float, limit: float) -> Claim:
    """The claim that a number is above another; NaN is not."""
    return Claim(text, f"above {limit:g}", found, found > limit)


@dataclass
class Outcome:
    """What was found.

    Attributes:
        figures: by name, which becomes part of the file's name; "" for the main one.
        tables: rows of data by name, "" for the main one; each becomes a CSV file.
        claims: what the figure is there to show.
        summary: a few numbers, for the JSON file.
        files: other files, bytes by ending (an animation).
        runs: run directories that it was made of.
    """

    figures: dict[str, Figure] = field(default_factory=dict)
    tables: dict[str, list[Row]] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    runs: list[Path] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether every claim was borne out."""
        return all(claim.holds for claim in self.claims)


def write(
    outcome: Outcome,
    folder: Path,
    name: str,
    command: str,
    settings: Mapping[str, Any],
    seconds: float,
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Writes everything: ``NAME.json``, CSV files, pictures.

    Args:
        outcome: what was found.
        folder: where to; made if absent.
        name: of the figure, which all files begin with.
        command: that makes it again; kept in every picture and in the JSON file.
        settings: that it was made with.
        seconds: that it took.
        formats: of the pictures.

    Returns:
        The files.

    Raises:
        UserError: if the folder cannot be written.
    """
    files = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for key, rows in outcome.tables.items():
            files.append(folder / f"{_joined(name, key)}.csv")
            _write_bytes(files[-1], as_csv(rows).encode())
        for ending, data in outcome.files.items():
            files.append(folder / f"{name}{ending}")
            _write_bytes(files[-1], data)
        files.append(folder / f"{name}.json")
        record = {
            "figure": name,
            "command": command,
            "settings": dict(settings),
            "seconds": round(seconds, 1),
            "claims": [vars(claim) for claim in outcome.claims],
            "summary": outcome.summary,
            "git": git_state(),
            "versions": library_versions(),
            "cpu_count": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
        }
        write_json(files[-1], jsonable(record))
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error.strerror or error}") from None
    for key, figure in outcome.figures.items():
        for form in formats:
            files.append(folder / f"{_joined(name, key)}.{form}")
            style.save(figure, files[-1], {"title": _joined(name, key), "command": command})
    return files


def _write_bytes(file: Path, data: bytes) -> None:
    write_atomically(file, lambda out: out.write(data))


def _joined(name: str, key: str) -> str:
    return f"{name}_{key}" if key else name


def as_csv(rows: Sequence[Row]) -> str:
    """Rows as CSV, columns in the order in which they come up; numbers in six digits."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _short(value) for key, value in row.items()})
    return text.getvalue()


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def jsonable(value: Any) -> Any:
    """A value as JSON can hold it: what is not finite becomes text, as in ``metrics.jsonl``."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
