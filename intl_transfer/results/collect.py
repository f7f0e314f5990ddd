"""Run directories in, rows out; what cannot be used is named, never dropped in silence."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.results import foreign
from intl_transfer.results.cache import Cache, stamp_of
from intl_transfer.results.checks import (
    detection_problem,
    evaluation_problem,
    pretraining_problem,
)
from intl_transfer.results.protocol import fingerprint
from intl_transfer.results.reading import Entry, read_run, state_of
from intl_transfer.runs import MANIFEST, RESULTS

# Figures in the order in which the literature prints them.
METRICS = ("AP50", "AP", "AP75")
TASKS = ("box", "mask", "voc")
#: Seconds without a sign of life after which a run that says it is running is called stalled. An
#: evaluation writes nothing while it goes on.
STALLED_AFTER = 3600.0


@dataclass(frozen=True)
class Run:
    """One finished detection run, or evaluation of frozen or fine-tuned classification.

    Attributes:
        path: its directory.
        manifest: its manifest.
        results: its results.
        parent: directory of the pretraining run behind it, if that was found.
        parent_known: whether its weights name a pretraining run of this project.
        foreign: True for a Detectron2 folder that was not written by this project.
    """

    path: Path
    manifest: dict[str, Any]
    results: dict[str, Any]
    parent: Path | None = None
    parent_known: bool = False
    foreign: bool = False

    @property
    def comparable(self) -> tuple[str, ...]:
        """What two runs must share to stand in one table: data, architecture, schedule."""
        data, built, plan = (self.results[k] for k in ("dataset", "architecture", "schedule"))
        known = ("name", "iterations", "batch_size", "base_lr")
        further = {k: v for k, v in plan.items() if k not in known and v not in (None, False)}
        return (
            data["name"],
            f"{built['meta']} {built['backbone']}-{built['head']}",
            str(plan["name"]),
            str(plan["iterations"]),
            str(plan["batch_size"]),
            f"{plan['base_lr']:g}",
            # What a schedule says beyond that, such as having been scaled to another batch.
            ", ".join(f"{key} {value}" for key, value in sorted(further.items())),
        )

    @property
    def initialisation(self) -> tuple[str, str, str]:
        """What makes a row: kind, method, and the pretraining's configuration, epochs and data."""
        start = self.results["initialisation"]
        provenance = start.get("provenance") or {}
        run = provenance.get("pretrain_run") or {}
        method = start.get("method")
        if start.get("detail"):
            detail = str(start["detail"])
        elif run:
            detail = f"{run.get('config_name')}, {run.get('epochs')} ep, {run.get('dataset')}"
        elif start["kind"] == "random":
            detail = ""
        else:
            # Without a name, different weights are different rows.
            detail = f"weights {str(start.get('weights_sha256'))[:8]}"
        return start["kind"], method or "unknown", detail

    @property
    def seed(self) -> int:
        """Of the run itself, not of the pretraining behind it."""
        return int(self.results["seed"])

    def figure(self, task: str, metric: str) -> float | None:
        """One figure in %, or None."""
        value = (self.results["metrics"].get(task) or {}).get(metric)
        return None if value is None else float(value)


@dataclass
class Collection:
    """All that was found.

    Attributes:
        runs: finished, consistent detection runs, one for each seed of each row.
        pretraining: results of finished pretraining runs, by directory.
        unfinished: (directory, status) of runs that have no results yet.
        problems: one line for everything that was left out or looks wrong.
        evaluations: finished, consistent runs of the stage ``evaluation``.
        entries: every run directory that was found, in whatever state, by path.
        manifests: manifests of the finished pretraining runs, by directory.
        cached: how many directories were unchanged since an earlier collection.
    """

    runs: list[Run] = field(default_factory=list)
    pretraining: dict[Path, dict[str, Any]] = field(default_factory=dict)
    unfinished: list[tuple[Path, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    evaluations: list[Run] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    manifests: dict[Path, dict[str, Any]] = field(default_factory=dict)
    cached: int = 0


def collect(
    paths: Iterable[str | Path],
    labels: Mapping[str, str] | None = None,
    cache: bool = True,
    stalled_after: float = STALLED_AFTER,
) -> Collection:
    """Reads every run directory below the given folders.

    Args:
        paths: run directories, or folders that hold some at any depth.
        labels: method names of foreign folders, by path.
        cache: keep in the user's cache what was read, and read only what has changed since.
        stalled_after: seconds without a sign of life after which a run that says it is running is
            called stalled.

    Returns:
        Finished runs, unfinished ones, and what was wrong.

    Raises:
        UserError: if a path does not exist, or a label is for a folder that was not found.
    """
    found = Collection()
    given = {Path(path).resolve(): name for path, name in (labels or {}).items()}
    entries: list[Entry] = []
    visited: set[tuple[int, int]] = set()
    for root in map(Path, paths):
        if not root.is_dir():
            raise UserError(f"{root} is not a folder; expected run directories or a folder of them")
        memory = Cache(root, cache)
        for folder, files in _folders(root, visited, found.problems):
            if MANIFEST in files:
                entry = _own(folder, files, memory, stalled_after)
            elif foreign.looks_foreign(files):
                entry = _foreign(folder, files, memory, given.pop(folder.resolve(), None))
            else:
                entry = Entry(folder, "inconsistent", f"{folder} has no {MANIFEST}")
            entries.append(entry)
        memory.save()
        found.cached += memory.hits
    if given:
        missing = ", ".join(map(str, given))
        raise UserError(
            f"--label: no Detectron2 folder at {missing} below the folders given; expected one "
            f"with {foreign.METRICS_JSON} or {foreign.LOG}, and {foreign.CONFIG}"
        )
    whole = _without_copies(entries, found)
    _sort_out(sorted(whole, key=lambda entry: str(entry.path)), found)
    found.entries.sort(key=lambda entry: str(entry.path))
    return found


def _folders(
    root: Path, visited: set[tuple[int, int]], problems: list[str]
) -> Iterator[tuple[Path, dict[str, os.stat_result]]]:
    """Folders that hold a run, each once, with what ``stat`` says of the files that matter."""
    waiting = [str(root)]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as found:
                entries = {entry.name: entry for entry in found}
            if any(name in entries for name in foreign.OURS) or foreign.looks_foreign(entries):
                # Nothing below a run directory is another run.
                where = os.stat(folder)
                if (where.st_dev, where.st_ino) not in visited:
                    visited.add((where.st_dev, where.st_ino))
                    yield Path(folder), _files_that_matter(entries)
                continue
            # Snapshots that file servers keep (.snapshot), and what tools hide, are no runs.
            inner = [e for name, e in entries.items() if name[0] != "." and _is_searched(e)]
            waiting += sorted((entry.path for entry in inner), reverse=True)
        except OSError as error:  # no permission, removed meanwhile, a link to nothing
            name = error.filename or folder
            problems.append(f"left out: {name} cannot be read: {error.strerror}")


def _is_searched(entry: os.DirEntry[str]) -> bool:
    """Folders, and links to run directories; other links could lead round in circles."""
    if entry.is_symlink():
        return os.path.exists(os.path.join(entry.path, MANIFEST))
    return entry.is_dir()


def _files_that_matter(entries: Mapping[str, os.DirEntry[str]]) -> dict[str, os.stat_result]:
    if MANIFEST in entries:  # ours, whatever Detectron2 left beside it
        wanted: tuple[str, ...] = (MANIFEST, RESULTS)
    elif any(name in entries for name in foreign.OURS):  # copied half
        wanted = ()
    else:
        wanted = foreign.FILES
    return {name: entries[name].stat() for name in wanted if name in entries}


def _own(
    folder: Path, files: Mapping[str, os.stat_result], memory: Cache, stalled_after: float
) -> Entry:
    stamp = stamp_of(files)
    known = memory.get(folder, stamp)
    try:
        if known is None:
            known = read_run(folder, files)
            memory.put(folder, stamp, known)
    except UserError as error:
        return Entry(folder, "inconsistent", str(error))
    manifest, results = known
    status, detail = state_of(folder, manifest, results, stalled_after)
    return Entry(folder, status, detail, manifest, results)


def _foreign(
    folder: Path, files: Mapping[str, os.stat_result], memory: Cache, label: str | None
) -> Entry:
    stamp = [*stamp_of(files), ["--label", 0, label or ""]]
    known = memory.get(folder, stamp)
    try:
        if known is None:
            known = foreign.read_foreign(folder, files, label)
            memory.put(folder, stamp, known)
    except UserError as error:
        return Entry(folder, "inconsistent", str(error), foreign=True)
    manifest, results = known
    status = "finished" if results else "running"
    detail = "" if results else "no evaluation of its last iteration"
    return Entry(folder, status, detail, manifest, results, foreign=True)


def _without_copies(entries: list[Entry], found: Collection) -> list[Entry]:
    """Of folders with one run's id, the one that is furthest; the others are named."""
    order = ("inconsistent", "stalled", "running", "failed", "interrupted", "finished")
    best: dict[str, Entry] = {}
    kept = []
    for entry in entries:
        identity = "" if entry.manifest is None else entry.manifest["id"]
        if not identity:
            kept.append(entry)
            continue
        other = best.get(identity)
        if other is None:
            best[identity] = entry
            continue
        # The first one stays, unless the other is further.
        further = order.index(entry.status) > order.index(other.status)
        copy, whole = (other, entry) if further else (entry, other)
        best[identity] = whole
        text = f"{copy.path} is a copy of {whole.path}"
        found.problems.append(f"left out: {text}")
        found.entries.append(dataclasses.replace(copy, status="copy", detail=text))
    return [*kept, *best.values()]


def _sort_out(entries: list[Entry], found: Collection) -> None:
    """Files every entry where it belongs, and follows weights to their pretraining run."""
    finished: list[Entry] = []
    origins = _Origins()
    for entry in entries:
        if entry.stage == "pretrain" and entry.manifest is not None:
            origins.add(entry)
        if entry.status == "inconsistent":
            found.problems.append(f"left out: {entry.detail}")
        elif entry.status != "finished":
            text = f"{entry.status} ({entry.detail})" if entry.detail else entry.status
            found.unfinished.append((entry.path, text))
        elif problem := _problem(entry):
            text = f"{entry.path / RESULTS}: {problem}"
            if entry.foreign:
                text = f"{entry.path}: {problem}"
            found.problems.append(f"left out: {text}")
            entry = dataclasses.replace(entry, status="inconsistent", detail=text)
        else:
            finished.append(entry)
        found.entries.append(entry)
    runs: dict[str, list[Run]] = {"detection": [], "evaluation": []}
    for entry in finished:
        assert entry.manifest is not None
        assert entry.results is not None
        if entry.stage == "pretrain":
            found.pretraining[entry.path] = entry.results
            found.manifests[entry.path] = entry.manifest
        else:
            parent, known = origins.of(entry.results)
            run = Run(entry.path, entry.manifest, entry.results, parent, known, entry.foreign)
            runs[entry.stage].append(run)
    found.runs = _without_repeats(runs["detection"], found)
    found.evaluations = _without_repeats(runs["evaluation"], found)


def _problem(entry: Entry) -> str | None:
    """What makes a finished run's results unusable, if anything does."""
    checks = {
        "pretrain": pretraining_problem,
        "detection": detection_problem,
        "evaluation": evaluation_problem,
    }
    if entry.stage not in checks:
        return f"stage is '{entry.stage}', expected one of {', '.join(checks)}"
    assert entry.results is not None
    return checks[entry.stage](entry.results)


class _Origins:
    """Pretraining runs by their backbone's hash and by their id."""

    def __init__(self) -> None:
        self._by_hash: dict[str, Path] = {}
        self._by_id: dict[str, Path] = {}

    def add(self, entry: Entry) -> None:
        assert entry.manifest is not None
        self._by_id.setdefault(entry.manifest["id"], entry.path)
        sha = (entry.results or {}).get("backbone_sha256")
        if entry.status == "finished" and isinstance(sha, str):
            self._by_hash.setdefault(sha, entry.path)

    def of(self, results: dict[str, Any]) -> tuple[Path | None, bool]:
        """The run that the weights' hash leads to, by its id if that leads nowhere.

        Returns:
            Its folder or None, and whether the weights name a pretraining run at all.
        """
        provenance = results["initialisation"].get("provenance") or {}
        origin = provenance.get("pretrain_run") or {}
        parent = self._by_hash.get(provenance.get("source_sha256") or "")
        return parent or self._by_id.get(origin.get("id") or ""), bool(origin.get("id"))


def _without_repeats(runs: list[Run], found: Collection) -> list[Run]:
    """Of runs with the same seed, weights and settings, the newest."""
    alike: dict[tuple[Any, ...], list[Run]] = {}
    for run in sorted(runs, key=lambda run: str(run.manifest.get("ended"))):
        weights = run.results["initialisation"].get("weights_sha256")
        plan = _plan(run)
        alike.setdefault((*plan, *run.initialisation, weights, run.seed), []).append(run)
    kept: list[Run] = []
    older: dict[Path, str] = {}
    for members in alike.values():
        newest: dict[str, Run] = {}
        for run in members:
            # Flattening a configuration takes longer than all else; few runs share the rest.
            settings = fingerprint(run) if len(members) > 1 else ""
            if settings in newest:
                text = (
                    f"{newest[settings].path} repeats {run.path} with the same seed; the newer "
                    "one counts"
                )
                found.problems.append(f"left out: {text}")
                older[newest[settings].path] = text
            newest[settings] = run
        kept += newest.values()
    for index, entry in enumerate(found.entries):
        if entry.path in older:
            found.entries[index] = dataclasses.replace(
                entry, status="superseded", detail=older[entry.path]
            )
    return sorted(kept, key=lambda run: str(run.path))


def _plan(run: Run) -> tuple[Any, ...]:
    if run.manifest["stage"] == "evaluation":
        results = run.results
        protocol = repr(sorted(results["protocol"].items()))
        return (results["kind"], protocol, results["dataset"]["name"], str(results["architecture"]))
    return run.comparable
