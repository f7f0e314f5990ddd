"""Collects run directories; unusable ones are reported, never dropped silently."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.results import external
from intl_transfer.results.cache import Cache, stamp_of
from intl_transfer.results.checks import problem_of, warnings_of
from intl_transfer.results.copies import without_copies, without_repeats
from intl_transfer.results.reading import (
    Entry,
    read_hand_made,
    read_run,
    records_of,
    state_of,
)
from intl_transfer.results.run import Run
from intl_transfer.results.starts import start_of, with_keys
from intl_transfer.runs import MANIFEST, RESULTS
from intl_transfer.runs.folders import (
    CONFIG,
    LOG,
    METRICS_JSON,
    looks_external,
    run_folders,
    unsearched,
)
from intl_transfer.runs.records import (
    STAGES,
    AnyResults,
    DetectionResults,
    EvaluationResults,
    Manifest,
    PretrainResults,
)

#: Seconds without output after which a run with status running counts as stalled. An evaluation
#: writes nothing while it is in progress.
STALLED_AFTER = 3600.0


@dataclass
class Collection:
    """The result of collecting.

    Attributes:
        runs: finished, consistent detection runs, one for each seed of each row.
        pretraining: results of finished pretraining runs, by directory.
        unfinished: (directory, status) of runs without results.
        problems: one line for each omitted or suspicious item.
        evaluations: finished, consistent runs of the stage ``evaluation``.
        entries: all run directories found, in any state, by path.
        manifests: manifests of the finished pretraining runs, by directory.
        cached: number of directories unchanged since an earlier collection.
    """

    runs: list[Run] = field(default_factory=list)
    pretraining: dict[Path, PretrainResults] = field(default_factory=dict)
    unfinished: list[tuple[Path, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    evaluations: list[Run] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    manifests: dict[Path, Manifest] = field(default_factory=dict)
    cached: int = 0


def collect(
    paths: str | Path | Iterable[str | Path],
    labels: Mapping[str, str] | None = None,
    cache: bool = True,
    stalled_after: float = STALLED_AFTER,
) -> Collection:
    """Reads all run directories in the given folders.

    Args:
        paths: run directories, or folders that contain some at any depth; or one of them.
        labels: method names of external folders, by path.
        cache: use the user's cache, and read only what has changed.
        stalled_after: seconds without output after which a run with status running counts as
            stalled.

    Returns:
        Finished runs, unfinished ones, and problems.

    Raises:
        UserError: if a path does not exist, or a label is for a folder that was not found.
    """
    with paused_collector():
        roots = [paths] if isinstance(paths, (str, Path)) else paths
        return _collect(roots, labels or {}, cache, stalled_after)


@contextlib.contextmanager
def paused_collector() -> Iterator[None]:
    """Disables garbage collection while thousands of files are read."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _collect(
    paths: Iterable[str | Path], labels: Mapping[str, str], cache: bool, stalled_after: float
) -> Collection:
    found = Collection()
    given = {Path(path).resolve(): name for path, name in labels.items()}
    entries: list[Entry] = []
    visited: set[tuple[int, int]] = set()
    skipped: dict[Path, str] = {}
    for root in map(Path, paths):
        if not root.is_dir():
            raise UserError(f"{root} is not a folder; expected run directories or a folder of them")
        memory = Cache(root, cache)
        for folder, files in run_folders(root, found.problems, skipped, visited):
            if MANIFEST in files:
                entry = _own(folder, files, memory, stalled_after)
            elif looks_external(files):
                entry = _external(folder, files, memory, given.pop(folder.resolve(), None))
            else:
                entry = _hand_made(folder, files, memory)
            entries.append(entry)
        memory.save()
        found.cached += memory.hits
    if given:
        missing = ", ".join(map(str, given))
        raise UserError(
            f"--label: no Detectron2 folder at {missing} below the folders given; expected one "
            f"with {METRICS_JSON} or {LOG}, and {CONFIG}"
        )
    found.problems += unsearched(skipped, [entry.path for entry in entries])
    whole, copies = without_copies(entries, found.problems)
    found.entries += copies
    _sort_out(sorted(whole, key=lambda entry: str(entry.path)), found)
    found.entries.sort(key=lambda entry: str(entry.path))
    return found


def _own(
    folder: Path, files: Mapping[str, os.stat_result], memory: Cache, stalled_after: float
) -> Entry:
    found = _remembered(folder, files, memory, lambda: read_run(folder, files))
    if isinstance(found, Entry):
        return found
    manifest, results = found
    status, detail = state_of(folder, manifest, results, stalled_after)
    is_external = results is not None and results.external is not None
    return Entry(folder, status, detail, manifest, results, external=is_external)


def _hand_made(folder: Path, files: Mapping[str, os.stat_result], memory: Cache) -> Entry:
    """Results without a manifest that state that they are external."""
    found = _remembered(folder, files, memory, lambda: read_hand_made(folder, files))
    if isinstance(found, Entry):
        return found
    manifest, results = found
    return Entry(folder, "finished", "", manifest, results, external=True)


def _external(
    folder: Path, files: Mapping[str, os.stat_result], memory: Cache, label: str | None
) -> Entry:
    found = _remembered(folder, files, memory, lambda: _as_read(folder, files, label), label or "")
    if isinstance(found, Entry):
        return dataclasses.replace(found, external=True)
    manifest, results = found
    status = "finished" if results else "running"
    detail = "" if results else "no evaluation of its last iteration"
    return Entry(folder, status, detail, manifest, results, external=True)


def _as_read(
    folder: Path, files: Mapping[str, os.stat_result], label: str | None
) -> tuple[Any, Any]:
    manifest, results = external.read_external(folder, files, label)
    return manifest.as_json(), None if results is None else results.as_json()


def _remembered(
    folder: Path,
    files: Mapping[str, os.stat_result],
    memory: Cache,
    read: Callable[[], tuple[Any, Any]],
    label: str | None = None,
) -> tuple[Manifest, AnyResults | None] | Entry:
    """The content of a folder, cached if unchanged; or why it is unreadable."""
    stamp = stamp_of(files) + ([] if label is None else [["--label", 0, label]])
    known = memory.get(folder, stamp)
    try:
        as_read = known if known is not None else read()
        found = records_of(as_read, folder)
        if known is None:
            memory.put(folder, stamp, list(as_read))
        return found
    except UserError as error:
        return Entry(folder, "inconsistent", str(error))


def _sort_out(entries: list[Entry], found: Collection) -> None:
    """Sorts entries by stage, and links weights to their pretraining runs."""
    finished: list[Entry] = []
    origins = _Origins()
    for entry in entries:
        if entry.stage in _TRAINING_BACKBONES and entry.manifest is not None:
            origins.add(entry)
        if entry.status == "inconsistent":
            found.problems.append(f"left out: {entry.detail}")
        elif entry.status != "finished":
            text = f"{entry.status} ({entry.detail})" if entry.detail else entry.status
            found.unfinished.append((entry.path, text))
        elif problem := _problem(entry):
            text = f"{entry.path / RESULTS}: {problem}"
            if entry.external:
                text = f"{entry.path}: {problem}"
            found.problems.append(f"left out: {text}")
            entry = dataclasses.replace(entry, status="inconsistent", detail=text)
        else:
            finished.append(entry)
        found.entries.append(entry)
    runs: dict[str, list[Run]] = {"detection": [], "evaluation": []}
    for entry in finished:
        manifest, results = entry.manifest, entry.results
        assert manifest is not None
        if isinstance(results, PretrainResults):
            found.pretraining[entry.path] = results
            found.manifests[entry.path] = manifest
        elif isinstance(results, (DetectionResults, EvaluationResults)):
            parent, known, by_hash = origins.of(results)
            start = start_of(
                results.initialization,
                entry.stage,
                manifest.config,
                origins.manifests[parent] if parent is not None else None,
                by_hash,
            )
            run = Run(entry.path, manifest, results, start, parent, known, entry.external)
            runs[entry.stage].append(run)
    found.runs = _counted(runs["detection"], found)
    found.evaluations = _counted(runs["evaluation"], found)


def _counted(runs: list[Run], found: Collection) -> list[Run]:
    """The runs of one stage that count, with what is to be said of them."""
    kept = without_repeats(with_keys(runs), found.entries, found.problems)
    for run in kept:
        texts = [*warnings_of(run.results), *external.unread(run.manifest, run.results)]
        found.problems += [f"{run.path}: {text}" for text in texts]
    return kept


def _problem(entry: Entry) -> str | None:
    """Why a finished run's results are unusable; None if they are usable."""
    if entry.stage not in STAGES:
        return f"stage is '{entry.stage}', expected one of {', '.join(STAGES)}"
    assert entry.results is not None
    return problem_of(entry.results, entry.manifest.config if entry.manifest else None)


#: Stages whose runs leave a backbone: an evaluation by fine-tuning is a supervised start.
_TRAINING_BACKBONES = ("pretrain", "evaluation")


class _Origins:
    """Pretraining runs by their backbone's hash and by their id."""

    def __init__(self) -> None:
        self.manifests: dict[Path, Manifest] = {}
        self._by_hash: dict[str, Path] = {}
        self._by_id: dict[str, Path] = {}

    def add(self, entry: Entry) -> None:
        assert entry.manifest is not None
        self.manifests[entry.path] = entry.manifest
        if entry.manifest.id:  # "" for external results
            self._by_id.setdefault(entry.manifest.id, entry.path)
        if entry.status == "finished" and isinstance(entry.results, PretrainResults):
            self._by_hash.setdefault(entry.results.backbone_sha256 or "", entry.path)

    def of(self, results: DetectionResults | EvaluationResults) -> tuple[Path | None, bool, bool]:
        """The pretraining run of some weights, by their hash, otherwise by the run's id.

        Returns:
            Its folder or None, whether the weights state a pretraining run, and whether it was
            found by hash.
        """
        provenance = results.initialization.provenance
        origin = provenance.pretrain_run if provenance is not None else None
        sha, identity = provenance and provenance.source_sha256, origin and origin.id
        parent = self._by_hash.get(sha) if sha else None
        if parent is not None:
            return parent, bool(identity), True
        return self._by_id.get(identity) if identity else None, bool(identity), False
