"""Collects run directories; unusable ones are reported, never dropped silently."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.results import external
from intl_transfer.results.cache import Cache, stamp_of
from intl_transfer.results.checks import problem_of, warnings_of
from intl_transfer.results.reading import (
    Entry,
    read_hand_made,
    read_run,
    records_of,
    state_of,
)
from intl_transfer.results.run import Run, set_name
from intl_transfer.results.starts import start_of, with_keys
from intl_transfer.runs import MANIFEST, RESULTS
from intl_transfer.runs.records import (
    STAGES,
    AnyResults,
    DetectionResults,
    EvaluationResults,
    Manifest,
    PretrainResults,
)
from intl_transfer.runs.settings import comparable, differences, fingerprint
from intl_transfer.runs.times import in_seconds

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
    paths: Iterable[str | Path],
    labels: Mapping[str, str] | None = None,
    cache: bool = True,
    stalled_after: float = STALLED_AFTER,
) -> Collection:
    """Reads all run directories in the given folders.

    Args:
        paths: run directories, or folders that contain some at any depth.
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
        return _collect(paths, labels or {}, cache, stalled_after)


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
            elif external.looks_external(files):
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
            f"with {external.METRICS_JSON} or {external.LOG}, and {external.CONFIG}"
        )
    found.problems += unsearched(skipped, [entry.path for entry in entries])
    whole = _without_copies(entries, found)
    _sort_out(sorted(whole, key=lambda entry: str(entry.path)), found)
    found.entries.sort(key=lambda entry: str(entry.path))
    return found


def run_folders(
    root: Path,
    problems: list[str],
    skipped: dict[Path, str],
    visited: set[tuple[int, int]] | None = None,
) -> Iterator[tuple[Path, dict[str, os.stat_result]]]:
    """Folders with a run, each once, with the ``stat`` results of the relevant files.

    Args:
        root: a run directory, or a folder that contains some at any depth.
        problems: unreadable items are added to it.
        skipped: folders that are not searched are added to it, with the reason.
        visited: folders already visited, by device and inode.
    """
    visited = set() if visited is None else visited
    waiting = [(str(root), "")]
    while waiting:
        folder, around = waiting.pop()  # and the run directory that it is in
        try:
            with os.scandir(folder) as found:
                entries = {entry.name: entry for entry in found}
            whole = MANIFEST in entries or external.looks_external(entries)
            if around and (whole or RESULTS in entries):
                # Run directories are not nested: this may be a part of the other, or a run.
                skipped[Path(folder).resolve()] = (
                    f"left out: {folder} is inside the run directory {around}; move it out, or "
                    "give it as a folder of its own"
                )
                continue
            if not around and (whole or any(name in entries for name in external.OURS)):
                where = os.stat(folder)
                if (where.st_dev, where.st_ino) in visited:
                    continue
                visited.add((where.st_dev, where.st_ino))
                yield Path(folder), _files_that_matter(entries)
                around = folder if whole else ""  # any tool may have left a results.json
            # Snapshots of file servers (.snapshot) and hidden folders are not runs.
            inner = [e for name, e in entries.items() if name[0] != "." and _is_searched(e)]
            waiting += sorted(((entry.path, around) for entry in inner), reverse=True)
            if not around:
                skipped |= _links_out(entries.values(), root)
        except OSError as error:  # no permission, removed meanwhile, a broken link
            if not around:
                name = error.filename or folder
                problems.append(f"left out: {name} cannot be read: {error.strerror}")


def unsearched(skipped: Mapping[Path, str], read: Iterable[Path]) -> list[str]:
    """Why folders were not searched, of those that no other folder given led to.

    Args:
        skipped: from :func:`run_folders`.
        read: all run directories that were found.
    """
    found = [folder.resolve() for folder in read] if skipped else []
    return [
        text
        for folder, text in skipped.items()
        if not any(one.is_relative_to(folder) for one in found)
    ]


def _is_searched(entry: os.DirEntry[str]) -> bool:
    """Folders, and links to run directories; other links could be circular."""
    if not entry.is_symlink():
        return entry.is_dir()
    names = (MANIFEST, RESULTS, *external.FILES)
    there = {n: None for n in names if os.path.exists(os.path.join(entry.path, n))}
    return MANIFEST in there or RESULTS in there or external.looks_external(there)


def _links_out(entries: Iterable[os.DirEntry[str]], root: Path) -> dict[Path, str]:
    """Links to folders that are not searched, also not as they lie below the root themselves."""
    links = [e for e in entries if e.is_symlink() and e.is_dir() and not _is_searched(e)]
    return {
        target: f"left out: {link.path} is a link to a folder that is no run directory, and was "
        "not searched; give the folder itself"
        for link in links
        if not (target := Path(link.path).resolve()).is_relative_to(root.resolve())
    }


def _files_that_matter(entries: Mapping[str, os.DirEntry[str]]) -> dict[str, os.stat_result]:
    if MANIFEST in entries:  # ours, whatever else Detectron2 wrote
        names: tuple[str, ...] = (MANIFEST, RESULTS)
    elif any(
        name in entries for name in external.OURS
    ):  # written by another tool, or copied incompletely
        names = (RESULTS,)
    else:
        names = external.FILES
    return {name: entries[name].stat() for name in names if name in entries}


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


_FURTHER = ("inconsistent", "stalled", "running", "failed", "interrupted", "finished")


def _without_copies(entries: list[Entry], found: Collection) -> list[Entry]:
    """Of copies of one run, keeps the most advanced; the others are reported.

    Folders with the same run id are copies if their contents agree; otherwise all count. So are
    folders without an id that agree in everything, to the last digit of every metric.
    """
    alike: dict[str, list[Entry]] = {}
    kept = []
    for entry in entries:
        identity = _identity(entry)
        if identity:
            alike.setdefault(identity, []).append(entry)
        else:
            kept.append(entry)
    for members in alike.values():
        while members:
            whole = min(members, key=lambda entry: _order(entry, members))
            kept.append(whole)
            others = []
            for other in members:
                if other is whole:
                    continue
                difference = _disagreement(whole, other)
                if difference is None:
                    text = f"{other.path} is a copy of {whole.path}"
                    found.problems.append(f"left out: {text}")
                    found.entries.append(dataclasses.replace(other, status="copy", detail=text))
                    continue
                found.problems.append(
                    f"{other.path} and {whole.path} have one id, but differ in {difference}; both "
                    "count. Was one of them copied and run again?"
                )
                others.append(other)
            members = others
    return kept


def _identity(entry: Entry) -> str:
    """A run's id; of external results, which have none, a digest of all that they state."""
    if entry.manifest is None or entry.manifest.id:
        return "" if entry.manifest is None else entry.manifest.id
    if entry.results is None:
        return ""
    # A copy may have another folder's name.
    stated = {key: value for key, value in entry.manifest_json.items() if key != "name"}
    return fingerprint({"manifest": stated, "results": entry.results_json})


def _order(entry: Entry, members: Sequence[Entry]) -> tuple[int, bool, int, str]:
    """Sort key of copies: most advanced first, then not inside another's folder, then by path."""
    inside = any(entry.path.is_relative_to(other.path) for other in members if other is not entry)
    return -_FURTHER.index(entry.status), inside, len(entry.path.parts), str(entry.path)


def _disagreement(one: Entry, other: Entry) -> str | None:
    """A difference between two folders with the same id, apart from progress; None for copies."""
    assert one.manifest is not None
    assert other.manifest is not None
    if one.stage != other.stage:
        return "their stage"
    changed = differences(one.stage, one.manifest.config, other.manifest.config)
    if changed:
        return ", ".join(changed)
    results = [
        None if entry.results is None else comparable(entry.results.as_json())
        for entry in (one, other)
    ]
    if None not in results and results[0] != results[1]:
        return "their results"
    return None


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
    found.runs = _without_repeats(with_keys(runs["detection"]), found)
    found.evaluations = _without_repeats(with_keys(runs["evaluation"]), found)


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


def _without_repeats(runs: list[Run], found: Collection) -> list[Run]:
    """Of runs with the same seed, weights and settings, keeps the newest.

    A seed that nobody stated makes no repeat; of runs of which one has no time, both count.
    """
    alike: dict[tuple[Any, ...], list[Run]] = {}
    for run in sorted(runs, key=lambda run: _ended(run) or -math.inf):
        plan = _plan(run)
        seed = run.path if run.seed is None else run.seed
        key = (*plan, run.start.key, run.start.unit, seed)
        alike.setdefault(key, []).append(run)
    kept: list[Run] = []
    older: dict[Path, str] = {}
    for members in alike.values():
        newest: dict[Any, Run] = {}
        for run in members:
            # Comparing settings is the slowest part, so it comes after all else.
            settings = comparable(run.protocol) if len(members) > 1 else None
            former = newest.get(settings)
            if former is not None and former.manifest.id == run.manifest.id != "":
                settings = (settings, run.path)  # reported before: same id, different content
            elif former is not None and None in (_ended(former), _ended(run)):
                found.problems.append(
                    f"{former.path} and {run.path} have the same seed, weights and settings, and "
                    "no times say which is newer; both count. Remove one, or state their seeds"
                )
                newest[settings, former.path] = former
            elif former is not None:
                text = f"{former.path} repeats {run.path} with the same seed; the newer one counts"
                found.problems.append(f"left out: {text}")
                older[former.path] = text
            newest[settings] = run
        kept += newest.values()
    for index, entry in enumerate(found.entries):
        if entry.path in older:
            found.entries[index] = dataclasses.replace(
                entry, status="superseded", detail=older[entry.path]
            )
    for run in kept:
        texts = [*warnings_of(run.results), *external.unread(run.manifest, run.results)]
        found.problems += [f"{run.path}: {text}" for text in texts]
    return sorted(kept, key=lambda run: str(run.path))


def _ended(run: Run) -> float | None:
    """When a run ended, in Unix seconds; None if unknown."""
    return in_seconds(run.manifest.ended)


def _plan(run: Run) -> tuple[Any, ...]:
    results = run.results
    if isinstance(results, EvaluationResults):
        network = comparable(results.architecture.as_json())
        protocol = comparable(results.protocol)
        return (results.kind, protocol, set_name(results.dataset.name), network)
    return run.comparable
