"""The page's data: an overview, and a part for each run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intl_transfer.results.alike import Alike, alike, unique_names
from intl_transfer.results.collect import Collection
from intl_transfer.results.reading import Entry
from intl_transfer.results.report.details import Cache, describe, provenance_of
from intl_transfer.results.report.evidence import evidence_of
from intl_transfer.results.report.series import POINTS
from intl_transfer.results.report.values import as_text, mapping, number, page_key, text
from intl_transfer.results.rows import Column, Row, Table
from intl_transfer.results.run import Run

#: States of runs that have a page; other entries are listed among the problems.
STATES = ("finished", "running", "stalled", "failed", "interrupted", "superseded")
STAGES = {"detection": 0, "evaluation": 1, "pretrain": 2}
_PICTURES = 400  # on the whole page
_PICTURES_A_RUN = 12
_CURVES = 60_000  # points of a curve, over all runs


@dataclass
class Payload:
    """The page's data.

    Attributes:
        overview: tables, a summary of every run, shared settings, problems.
        details: by run, what its own page shows.
    """

    overview: dict[str, Any] = field(default_factory=dict)
    details: dict[str, dict[str, Any]] = field(default_factory=dict)


def build_payload(
    collection: Collection, tables: Sequence[Table], cache: Cache | None = None
) -> Payload:
    """Gathers the page's data.

    Args:
        collection: from :func:`intl_transfer.results.collect`.
        tables: from :func:`intl_transfer.results.build_tables`.
        cache: of an earlier build, for unchanged runs.

    Returns:
        The data; JSON-compatible, without markup.
    """
    entries = [entry for entry in collection.entries if entry.status in STATES and entry.manifest]
    keys = {entry.path: _page_of(entry) for entry in entries}
    parents = _parents(collection, entries)
    rows = _row_of_each_run(tables)
    protocols = [alike(table, str(number)) for number, table in enumerate(tables)]
    protocol_of = _protocol_of_each_run(tables, protocols)
    detecting = sum(entry.stage == "detection" for entry in entries)
    points = min(POINTS, max(100, _CURVES // max(1, len(entries))))
    pictures = min(_PICTURES_A_RUN, max(1, _PICTURES // max(1, detecting)))
    payload = Payload()
    bases: dict[str, dict[str, str]] = {}
    runs: dict[str, Any] = {}
    for entry in sorted(entries, key=lambda entry: (STAGES.get(entry.stage, 9), str(entry.path))):
        assert entry.manifest is not None
        key, parent = keys[entry.path], parents.get(entry.path)
        settings = as_text(entry.manifest.config)
        base = bases.setdefault(entry.stage, settings)
        detail = describe(entry, points, pictures, cache)
        payload.details[key] = {**detail, "config": _difference(base, settings)}
        runs[key] = {
            **_summary(entry, detail),
            "row": rows.get(entry.path),
            "protocol": protocol_of.get(entry.path),
            "parent": keys.get(parent) if parent else None,
        }
    payload.overview = {
        "tables": [
            {**_table(table, keys, found), "name": name}
            for table, found, name in zip(tables, protocols, _names(tables), strict=True)
        ],
        "runs": runs,
        "configs": bases,
        "problems": [str(problem) for problem in collection.problems],
    }
    return payload


def _page_of(entry: Entry) -> str:
    """The key of a run: its id, or for external folders their path."""
    identity = entry.manifest.id if entry.manifest is not None else ""
    return page_key(identity if identity and not entry.external else f"path {entry.path}")


def _parents(collection: Collection, entries: Sequence[Entry]) -> dict[Path, Path]:
    """The pretraining run of each run; for runs without results, by their input weights."""
    made = {
        sha: path
        for path, results in collection.pretraining.items()
        if (sha := results.backbone_sha256) is not None
    }
    found = {}
    for entry in entries:
        sha = provenance_of(entry.manifest_json, entry.results_json)["source_sha256"]
        if sha in made:
            found[entry.path] = made[sha]
    runs = (*collection.runs, *collection.evaluations)
    return found | {run.path: run.parent for run in runs if run.parent}


def _difference(base: dict[str, str], settings: dict[str, str]) -> dict[str, Any]:
    """Settings as differences from the stage's first run, since most are shared."""
    return {
        "changed": {name: value for name, value in settings.items() if base.get(name) != value},
        "absent": [name for name in base if name not in settings],
    }


def _summary(entry: Entry, detail: dict[str, Any]) -> dict[str, Any]:
    manifest, results = entry.manifest_json, entry.results_json
    schedule, start = mapping(results.get("schedule")), mapping(results.get("initialization"))
    found = {}
    for task, metrics in mapping(results.get("metrics")).items():
        # Detection has metrics by task; classification only metrics.
        nested = mapping(metrics) or {"": metrics}
        for name, raw in nested.items():
            if (value := number(raw, 6)) is not None:
                found[f"{task}/{name}" if name else str(task)] = value
    for name in ("knn_accuracy", "final_loss"):
        if (value := number(results.get(name))) is not None:
            found[name] = value
    built = mapping(results.get("architecture"))
    dataset = results.get("dataset")
    return {
        "name": text(manifest.get("name")) or entry.path.name,
        "path": str(entry.path),
        "stage": entry.stage or None,
        "status": entry.status,
        "reason": entry.detail or None,
        "external": entry.external,
        "method": text(manifest.get("method") or results.get("method") or start.get("method")),
        "config_name": text(manifest.get("config_name")),
        "seed": text(entry.seed),
        "started": text(manifest.get("started")),
        "ended": text(manifest.get("ended")),
        "dataset": text(mapping(dataset).get("name") if isinstance(dataset, dict) else dataset),
        "detector": " ".join(
            str(built[part]) for part in ("meta", "backbone", "head") if built.get(part)
        )
        or text(results.get("backbone")),
        "schedule": text(schedule.get("name")),
        "batch_size": text(schedule.get("batch_size") or results.get("batch_size")),
        "base_lr": text(schedule.get("base_lr")),
        "epochs": text(results.get("epochs")),
        "wall_time": number(results.get("wall_time_s")),
        "figures": found,
        "last": detail["series"]["last"],
        "total": detail["total"],
    }


def _row_of_each_run(tables: Iterable[Table]) -> dict[Path, str]:
    """The table of a run; of two, the later one, which is of its own data set."""
    rows = ((table, row) for table in tables for row in table.rows)
    return {run.path: _row_key(table, row) for table, row in rows for run in row.runs}


def _protocol_of_each_run(
    tables: Sequence[Table], protocols: Sequence[Sequence[Alike]]
) -> dict[Path, str]:
    """The key of what each run was measured alike with; none of runs that are in no table."""
    return {
        run.path: one.key
        for table, found in zip(tables, protocols, strict=True)
        for one in found
        for row in table.rows
        for run in one.runs(row)
    }


def _row_key(table: Table, row: Row) -> str:
    """A key that is stable between builds, whatever rows are added or removed.

    Measured rows have the key of their initialization: names need not differ from external ones'.
    """
    own = [row.start_key] if row.runs else [row.name, row.detail, row.source]
    return _short_hash([table.title, *own])


def _short_hash(words: Any) -> str:
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:12]


def _names(tables: Sequence[Table]) -> list[str]:
    """Unique short names of tables: data set and schedule, otherwise more of the title."""
    names = []
    for table in tables:
        short = [f"{part.dataset}, schedule {part.schedule}" for part in table.parts]
        names.append(" and ".join(short) or table.title)
    return unique_names(names, [table.title for table in tables], [table.key for table in tables])


def _table(table: Table, keys: dict[Path, str], protocols: Sequence[Alike]) -> dict[str, Any]:
    notes: list[str] = []
    for row in table.rows:
        notes += [note for note in row.notes if note not in notes]
    return {
        "key": table.key,
        "title": table.title,
        "parts": [
            {"title": part.title, "dataset": part.dataset, "tasks": list(part.tasks)}
            for part in table.parts
        ],
        "protocols": [
            {"key": one.key, "name": one.name, "title": one.title, "columns": one.shown(table)}
            for one in protocols
        ],
        "columns": [
            {"task": task, "metric": metric, "group": table.heading(task)}
            for task, metric in table.columns()
        ],
        "notes": notes,
        "legend": list(table.legend),
        "rows": [_row(table, row, notes, keys, protocols) for row in table.rows],
    }


def _row(
    table: Table,
    row: Row,
    notes: list[str],
    keys: dict[Path, str],
    protocols: Sequence[Alike],
) -> dict[str, Any]:
    runs = [run for run in row.runs if run.path in keys]
    measured = [
        {
            "key": one.key,
            "n": one.count(row),
            "runs": [keys[run.path] for run in one.runs(row) if run.path in keys],
        }
        for one in protocols
    ]
    return {
        "key": _row_key(table, row),
        "method": row.title,
        "detail": row.detail,
        "n": table.count(row),
        "published": row.published,
        "group": row.group,
        "evidence": evidence_of(table, row),
        "notes": [notes.index(note) + 1 for note in row.notes],
        "figures": [_cell(table, row, column) for column in table.columns()],
        "runs": [keys[run.path] for run in runs],
        "measured": [found for found in measured if found["runs"]],
        "each": [_of_each_run(row, runs, column) for column in table.columns()],
    }


def _cell(table: Table, row: Row, column: Column) -> dict[str, Any] | None:
    summary = row.metrics.get(column)
    if summary is None:
        return None
    mark = row.marks.get(column)
    arrow = ""
    if mark and mark.comparison and mark.comparison.significant():
        arrow = "↑" if mark.comparison.difference > 0 else "↓"
    return {
        "mean": number(summary.mean, 12),
        "std": number(summary.std, 12),
        "best": bool(mark and mark.best),
        "alone": bool(mark and mark.alone),
        "arrow": arrow,
        "n": table.fewer(row, column),
    }


def _of_each_run(row: Row, runs: Sequence[Run], column: Column) -> list[float | int | None]:
    """A column's value for every run; None if missing."""
    values = row.each.get(column, {})
    return [number(values.get(run.path), 6) for run in runs]
