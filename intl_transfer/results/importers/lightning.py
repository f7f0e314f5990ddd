"""``metrics.csv`` of Lightning's CSV logger, as solo-learn and others write it.

One line per log call, with blanks for other columns: the last line with a validation metric is
used. solo-learn's ``val_acc1``, ``val_acc5`` and ``val_knn_acc1`` are in %; the unit of other
columns is not stated in the file and must be given.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from intl_transfer.errors import UserError
from intl_transfer.results.importers.found import Found, Progress, final, only_file
from intl_transfer.results.reading import check_plain

#: Columns with a known unit, by metric.
SOLO_LEARN = {
    "val_acc1": "top1",
    "val_acc5": "top5",
    "val_knn_acc1": "knn_top1",
    "val_knn_acc5": "knn_top5",
}
_KNN = "knn_"


def read(
    source: Path, kind: str = "linear", column: str | None = None, unit: str | None = None
) -> Found:
    """The last validation in a file, never the best one.

    Args:
        source: the file, or a folder with only one.
        kind: ``knn`` uses the accuracy of nearest neighbors, others that of a head.
        column: the column with top-1, if not solo-learn's.
        unit: of that column: ``percent`` or ``fraction``.

    Raises:
        UserError: if there is no such column or value, the last one is not a number, its unit is
            unknown, or training continued for complete epochs after it.
    """
    patterns = ("metrics.csv", "*/metrics.csv", "*/*/metrics.csv")
    file = only_file(source, patterns, "metrics.csv of Lightning")
    check_plain(file, file.stat())
    with open(file, newline="", encoding="utf-8", errors="replace") as lines:
        reader = csv.DictReader(lines)
        heads = [name for name in reader.fieldnames or () if name]
        columns = _columns(file, heads, kind, column, unit)
        scale = 100.0 if unit == "fraction" else 1.0
        last: dict[str, str] = {}  # by column
        progress = Progress()
        for line in reader:
            now = _number(line.get("epoch"))
            position = () if now is None else (int(now),)
            written = {name: text for name in columns if (text := (line.get(name) or "").strip())}
            if written:
                last = written
                progress.tested(position)
            else:
                progress.trained(position)
    if not last:
        raise UserError(f"{file}: no value in {', '.join(columns)}")
    values = {
        name: text if (value := _number(text)) is None else value for name, text in last.items()
    }
    metrics = {columns[name]: value for name, value in final(file, values, scale).items()}
    progress.require_end(file, lambda position: f"epoch {position[0]}")
    (epoch,) = progress.evaluated or (None,)
    at = "not stated" if epoch is None else f"epoch {epoch + 1}"
    return Found(
        metrics,
        "Lightning",
        at,
        None if epoch is None else epoch + 1,
        detection=False,
    )


def _columns(
    file: Path, heads: Iterable[str], kind: str, column: str | None, unit: str | None
) -> dict[str, str]:
    """Columns to read, with their metrics."""
    heads = list(heads)
    if column is not None:
        if column not in heads:
            raise UserError(f"{file}: no column '{column}'; there are {', '.join(heads)}")
        if unit is None and column not in SOLO_LEARN:
            raise UserError(
                f"{file}: whether {column} is in percent or a fraction is not known; give --unit "
                "percent or --unit fraction"
            )
        return {column: "top1"}
    nearest = kind == "knn"
    found = {
        name: metric.removeprefix(_KNN)
        for name, metric in SOLO_LEARN.items()
        if name in heads and metric.startswith(_KNN) == nearest
    }
    if not found:
        names = [n for n, m in SOLO_LEARN.items() if m.startswith(_KNN) == nearest]
        raise UserError(
            f"{file}: none of solo-learn's columns {', '.join(names)}; there are "
            f"{', '.join(heads)}. Give the one with top-1: --column NAME --unit percent|fraction"
        )
    return found


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
