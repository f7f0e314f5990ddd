"""Run directories in, rows out; what cannot be used is named, never dropped in silence."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.runs import MANIFEST, read_manifest, read_results

# Figures in the order in which the literature prints them.
METRICS = ("AP50", "AP", "AP75")
TASKS = ("box", "mask", "voc")


@dataclass(frozen=True)
class Run:
    """One finished detection run.

    Attributes:
        path: its directory.
        manifest: its manifest.
        results: its results.
        parent: directory of the pretraining run behind it, if that was found.
        parent_known: whether its weights name a pretraining run at all.
    """

    path: Path
    manifest: dict[str, Any]
    results: dict[str, Any]
    parent: Path | None = None
    parent_known: bool = False

    @property
    def comparable(self) -> tuple[str, ...]:
        """What two runs must share to stand in one table: data, architecture, schedule."""
        data, built, plan = (self.results[k] for k in ("dataset", "architecture", "schedule"))
        return (
            data["name"],
            f"{built['meta']} {built['backbone']}-{built['head']}",
            str(plan["name"]),
            str(plan["iterations"]),
            str(plan["batch_size"]),
            f"{plan['base_lr']:g}",
        )

    @property
    def initialisation(self) -> tuple[str, str, str]:
        """What makes a row: kind, method, and the pretraining's configuration, epochs and data."""
        start = self.results["initialisation"]
        provenance = start.get("provenance") or {}
        run = provenance.get("pretrain_run") or {}
        method = start.get("method")
        if run:
            detail = f"{run.get('config_name')}, {run.get('epochs')} ep, {run.get('dataset')}"
        elif start["kind"] == "random":
            detail = ""
        else:
            # Without a name, different weights are different rows.
            detail = f"weights {str(start.get('weights_sha256'))[:8]}"
        return start["kind"], method or "unknown", detail

    def figure(self, task: str, metric: str) -> float | None:
        """One figure in %, or None."""
        value = self.results["metrics"].get(task, {}).get(metric)
        return None if value is None else float(value)


@dataclass
class Collection:
    """All that was found.

    Attributes:
        runs: finished, consistent detection runs, one for each seed of each row.
        pretraining: results of finished pretraining runs, by directory.
        unfinished: (directory, status) of runs that have no results yet.
        problems: one line for everything that was left out or looks wrong.
    """

    runs: list[Run] = field(default_factory=list)
    pretraining: dict[Path, dict[str, Any]] = field(default_factory=dict)
    unfinished: list[tuple[Path, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def collect(paths: Iterable[str | Path]) -> Collection:
    """Reads every run directory below the given folders.

    Args:
        paths: run directories, or folders that hold some at any depth.

    Returns:
        Finished runs, unfinished ones, and what was wrong.

    Raises:
        UserError: if a path does not exist.
    """
    found = Collection()
    seen: dict[str, Path] = {}
    detection: list[Run] = []
    for folder in _run_directories(paths):
        try:
            manifest, results = read_manifest(folder), read_results(folder)
        except UserError as error:
            found.problems.append(f"left out: {error}")
            continue
        if manifest["id"] in seen:
            found.problems.append(f"left out: {folder} is a copy of {seen[manifest['id']]}")
            continue
        seen[manifest["id"]] = folder
        if manifest["status"] != "finished":
            found.unfinished.append((folder, _status(manifest)))
        elif results is None:
            found.problems.append(f"left out: {folder} is marked finished and has no results.json")
        elif manifest["stage"] == "pretrain":
            found.pretraining[folder] = results
        elif problem := _inconsistency(results):
            found.problems.append(f"left out: {folder}/results.json: {problem}")
        else:
            detection.append(Run(folder, manifest, results))
    found.runs = _without_repeats([_with_parent(run, found) for run in detection], found.problems)
    return found


def _run_directories(paths: Iterable[str | Path]) -> Iterator[Path]:
    visited: set[Path] = set()
    for path in map(Path, paths):
        if not path.is_dir():
            raise UserError(f"{path} is not a folder; expected run directories or a folder of them")
        for folder, inner, files in os.walk(path):
            inner.sort()
            if MANIFEST in files:
                inner.clear()  # nothing below a run directory is another run
                if (real := Path(folder).resolve()) not in visited:
                    visited.add(real)
                    yield Path(folder)


def _status(manifest: dict[str, Any]) -> str:
    error = manifest.get("error")
    return f"{manifest['status']} ({error})" if error else str(manifest["status"])


def _inconsistency(results: dict[str, Any]) -> str | None:
    """What makes a detection run's results unusable, if anything does."""
    try:
        if results["iteration"] != results["schedule"]["iterations"]:
            return (
                f"evaluated at iteration {results['iteration']} of "
                f"{results['schedule']['iterations']}; only the final one counts"
            )
        for key in ("name", "layout"):
            results["dataset"][key]
        for key in ("meta", "backbone", "head"):
            results["architecture"][key]
        for key in ("name", "batch_size"):
            results["schedule"][key]
        float(results["schedule"]["base_lr"])
        results["initialisation"]["kind"]
        int(results["seed"])
        figures = {
            f"{task} {metric}": results["metrics"][task].get(metric)
            for task in results["metrics"]
            for metric in METRICS
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return f"not in the form of a detection run's results ({error!r})"
    for name, value in figures.items():
        if value is not None and not (isinstance(value, (int, float)) and 0 <= value <= 100):
            return f"{name} is {value!r}; expected a percentage from 0 to 100"
    return None if any(v is not None for v in figures.values()) else "holds no figure at all"


def _with_parent(run: Run, found: Collection) -> Run:
    """Follows the weights' hash to the pretraining run, by its id if the hash leads nowhere."""
    provenance = run.results["initialisation"].get("provenance") or {}
    sha, origin = provenance.get("source_sha256"), provenance.get("pretrain_run") or {}
    parent = next(
        (path for path, res in found.pretraining.items() if res.get("backbone_sha256") == sha), None
    )
    if parent is None and origin.get("id"):
        for path in found.pretraining:
            if read_manifest(path)["id"] == origin["id"]:
                parent = path
    return Run(run.path, run.manifest, run.results, parent, bool(origin))


def _without_repeats(runs: list[Run], problems: list[str]) -> list[Run]:
    """Of runs with the same seed, weights and settings, the newest."""
    newest: dict[tuple[Any, ...], Run] = {}
    for run in sorted(runs, key=lambda run: str(run.manifest.get("ended"))):
        weights = run.results["initialisation"].get("weights_sha256")
        key = (*run.comparable, *run.initialisation, weights, run.results["seed"])
        if key in newest:
            problems.append(
                f"left out: {newest[key].path} repeats {run.path} with the same seed; the newer "
                "one counts"
            )
        newest[key] = run
    return sorted(newest.values(), key=lambda run: str(run.path))
