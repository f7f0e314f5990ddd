"""The data of one run's page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.files.jsons import parse_json
from intl_transfer.files.stamps import stamp_of
from intl_transfer.results.reading import Entry
from intl_transfer.results.report.logs import last_lines
from intl_transfer.results.report.pictures import (
    PREDICTIONS,
    SHEET,
    VIEWS,
    read_predictions,
    read_views,
)
from intl_transfer.results.report.series import read_series, read_spectra
from intl_transfer.results.report.values import (
    as_text,
    mapping,
    number,
    sequence,
    text,
)
from intl_transfer.runs import MANIFEST, METRICS, RESULTS
from intl_transfer.runs.folders import METRICS_JSON

CURVES = "curves.json"
FILES = (MANIFEST, METRICS, RESULTS, CURVES, PREDICTIONS, SHEET, VIEWS, METRICS_JSON, "log.txt")
# Detection metrics in reading order; others follow.
_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")

_STEPS = (1, 2, 4, 5, 10, 20, 50, 100, 10**9)  # divisors of 100: both ends are kept
_VALUES = 3000  # of the precision-recall curves of a task at one overlap

Fingerprint = tuple[tuple[Any, ...], ...]
Cache = dict[Path, tuple[object, dict[str, Any]]]


def fingerprint(folder: Path) -> Fingerprint:
    """Name and stamp of a run's existing files that the page uses."""
    found = []
    for name in FILES:
        try:
            state = (folder / name).stat()
        except OSError:
            continue
        found.append((name, *stamp_of(state)))
    return tuple(found)


def describe(
    entry: Entry, points: int, pictures: int, cache: Cache | None = None
) -> dict[str, Any]:
    """The data of a run's page, beyond its summary.

    Args:
        entry: the run.
        points: maximum per curve.
        pictures: maximum number of images with detections.
        cache: of earlier descriptions, read and updated.

    Returns:
        JSON-compatible data.
    """
    folder, manifest, results = entry.path, entry.manifest_json, entry.results_json
    state = (fingerprint(folder), points, pictures, entry.status)
    # Some logs of a run in progress are elsewhere: it is always read again.
    finished = entry.status in ("finished", "superseded")
    if cache is not None and finished and folder in cache and cache[folder][0] == state:
        return cache[folder][1]
    metrics = mapping(results.get("metrics"))
    detail = {
        "series": read_series(folder, points, METRICS_JSON if entry.external else METRICS),
        "spectra": read_spectra(folder),
        "metrics": _by_task(metrics),
        "classes": {str(task): _classes(mapping(found)) for task, found in metrics.items()},
        "precision": _precision_recall(folder),
        "pictures": read_predictions(folder, pictures) if finished else {},
        "views": read_views(folder),
        "log": [] if finished else last_lines(folder),
        "total": _total(manifest),
        "provenance": provenance_of(manifest, results),
        "facts": as_text(_facts(results)),
        "environment": _environment(manifest),
        "sessions": [_session(mapping(session)) for session in sequence(manifest.get("sessions"))],
        "error": text(manifest.get("error")),
        "collapse": _collapse_bounds(manifest),
    }
    if cache is not None:
        cache[folder] = (state, detail)
    return detail


def _by_task(metrics: Mapping[str, Any]) -> dict[str, Any]:
    tasks = {str(task): _figures(found) for task, found in metrics.items() if mapping(found)}
    plain = {str(name): number(v, 6) for name, v in metrics.items() if number(v) is not None}
    return {**tasks, **({"accuracy": plain} if plain else {})}


def _figures(found: Mapping[str, Any]) -> dict[str, float | int | None]:
    names = [name for name in _METRICS if name in found]
    names += [n for n in found if n not in names and isinstance(found[n], (int, float))]
    return {name: number(found[name], 6) for name in names}


def _classes(found: Mapping[str, Any]) -> dict[str, float | int | None]:
    return {str(name): number(value, 6) for name, value in mapping(found.get("per_class")).items()}


def _precision_recall(folder: Path) -> dict[str, Any]:
    """``curves.json`` with three digits; invalid parts are ignored."""
    try:
        content = parse_json((folder / CURVES).read_bytes(), CURVES)
    except (OSError, UserError):
        return {}
    tasks: dict[str, Any] = {}
    for task, overlaps in mapping(content).items():
        for overlap, curve in mapping(overlaps).items():
            recall, found = (mapping(curve).get(name) for name in ("recall", "precision"))
            if not (isinstance(recall, list) and recall):
                continue
            if any(number(value) is None for value in recall):  # there would be no place for it
                continue
            precision = {
                str(name): values
                for name, values in mapping(found).items()
                if isinstance(values, list) and len(values) == len(recall)
            }
            # Eighty classes do not need a hundred points each.
            step = next(s for s in _STEPS if len(precision) * len(recall) / s <= _VALUES)
            if precision:
                tasks.setdefault(str(task), {})[str(overlap)] = {
                    "recall": [number(v, 3) for v in recall[::step]],
                    "precision": {
                        name: [number(v, 3) for v in values[::step]]
                        for name, values in precision.items()
                    },
                }
    return tasks


def _total(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The planned length of the run: iterations or epochs, from its configuration."""
    config = mapping(manifest.get("config"))
    iterations = number(mapping(config.get("SOLVER")).get("MAX_ITER"))
    epochs = number(mapping(config.get("optim")).get("epochs"))
    return {"iterations": iterations, "epochs": epochs}


def provenance_of(manifest: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance of a run's weights, from its results, otherwise from its manifest."""
    start = mapping(results.get("initialization"))
    inputs = [mapping(item) for item in sequence(manifest.get("inputs"))]
    weights = next((item for item in inputs if item.get("role") == "weights"), {})
    source = mapping(start.get("provenance") or weights.get("provenance"))
    origin = mapping(source.get("pretrain_run"))
    return {
        "kind": text(start.get("kind")),
        "weights_path": text(weights.get("path")),
        "weights_sha256": text(start.get("weights_sha256") or weights.get("sha256")),
        "source_path": text(source.get("source_path")),
        "source_sha256": text(source.get("source_sha256")),
        "source_format": text(source.get("source_format")),
        "branch": text(source.get("branch")),
        "evidence": {
            str(fact): _evidence(value) for fact, value in mapping(source.get("evidence")).items()
        },
        "backbone": text(source.get("backbone")),
        "origin": {str(n): text(v) for n, v in origin.items() if n != "settings"},
        "backbone_file": text(results.get("backbone_file")),
        "backbone_sha256": text(results.get("backbone_sha256")),
    }


def _evidence(value: Any) -> str:
    """The evidence for one fact, as text."""
    level, detail = (text(mapping(value).get(key)) for key in ("level", "detail"))
    return f"{level} ({detail})" if detail else str(level)


def _facts(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results other than metrics, which are shown separately; null for what nobody stated."""
    shown = ("metrics", "initialization", "schema", "stage")
    unknown = sequence(results.get("not_stated"))
    return {
        name: None if name in unknown else value
        for name, value in results.items()
        if name not in shown
    }


def _environment(manifest: Mapping[str, Any]) -> dict[str, str]:
    parts = {
        "git": mapping(manifest.get("git")),
        "versions": mapping(manifest.get("versions")),
        "hardware": mapping(manifest.get("hardware")),
        "details": mapping(manifest.get("details")),
    }
    return as_text({name: part for name, part in parts.items() if part})


def _session(session: Mapping[str, Any]) -> dict[str, Any]:
    command = session.get("command")
    words = [str(word) for word in command] if isinstance(command, list) else [str(command or "")]
    return {
        "started": text(session.get("started")),
        "ended": text(session.get("ended")),
        "host": text(session.get("host")),
        "ranks": text(session.get("world_size")),
        "command": " ".join(words),
        "changes": as_text(mapping(session.get("changes"))),
    }


def _collapse_bounds(manifest: Mapping[str, Any]) -> dict[str, float] | None:
    """The bound of INTL's trace loss, and the threshold of its collapse alarm.

    :func:`intl_transfer.spectral.diagnostics.trace_loss_bound` without torch, which a report need
    not load.
    """
    config = mapping(manifest.get("config"))
    loss = mapping(config.get("loss"))
    if not str(loss.get("method")).startswith("intl"):
        return None
    rows = mapping(config.get("optim")).get("batch_size")
    width = mapping(config.get("model")).get("embedding")
    iterations = loss.get("iterations")
    if not (isinstance(rows, int) and isinstance(width, int) and isinstance(iterations, int)):
        return None
    if not (rows > 1 and width > 1 and 0 <= iterations <= 1000):
        return None
    is_batch = loss.get("axis") == "batch"
    size = width if is_batch else rows
    attainable = min(rows - 1, width) if is_batch else min(rows, width - 1)
    alarm = max(1, attainable // 32)
    return {
        "floor": float(f"{_bound(size, attainable, iterations):.6g}"),
        "alarm": float(f"{_bound(size, alarm, iterations):.6g}"),
        "rank": alarm,
    }


def _bound(size: int, rank: int, iterations: int) -> float:
    share, f = 1 / rank, 1.0
    for _ in range(iterations):
        f = 1.5 * f - 0.5 * share * f**3
    return size * (1 - rank / size * share * f * f) ** 2
