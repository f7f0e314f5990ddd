"""Finds run directories below folders, and says which folders were not searched.

Those of this project, external results with a ``results.json``, and Detectron2's own folders.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from intl_transfer.runs import MANIFEST, METRICS, RESULTS

METRICS_JSON, LOG, CONFIG, LABEL = "metrics.json", "log.txt", "config.yaml", "label.yaml"
#: The files of an external Detectron2 folder.
EXTERNAL = (METRICS_JSON, LOG, CONFIG, LABEL)
#: Files of this project's own runs, which such a folder does not have.
OURS = (MANIFEST, RESULTS, METRICS)


def looks_external(names: Mapping[str, Any]) -> bool:
    """Whether files of these names are an external Detectron2 folder."""
    return (METRICS_JSON in names or LOG in names) and CONFIG in names


def run_folders(
    root: Path,
    problems: list[str] | None = None,
    skipped: dict[Path, str] | None = None,
    visited: set[tuple[int, int]] | None = None,
) -> Iterator[tuple[Path, dict[str, os.stat_result]]]:
    """Folders with a run, each once, with the ``stat`` results of the relevant files.

    Args:
        root: a run directory, or a folder that contains some at any depth.
        problems: unreadable items are added to it.
        skipped: folders that are not searched are added to it, with the reason. None saves
            looking inside run directories, for which there is no other reason.
        visited: folders already visited, by device and inode.
    """
    visited = set() if visited is None else visited
    problems = [] if problems is None else problems
    waiting = [(str(root), "")]
    while waiting:
        folder, around = waiting.pop()  # and the run directory that it is in
        try:
            with os.scandir(folder) as found:
                entries = {entry.name: entry for entry in found}
            whole = MANIFEST in entries or looks_external(entries)
            if skipped is not None and around and (whole or RESULTS in entries):
                # Run directories are not nested: this may be a part of the other, or a run.
                skipped[Path(folder).resolve()] = (
                    f"left out: {folder} is inside the run directory {around}; move it out, or "
                    "give it as a folder of its own"
                )
                continue
            if not around and (whole or any(name in entries for name in OURS)):
                where = os.stat(folder)
                if (where.st_dev, where.st_ino) in visited:
                    continue
                visited.add((where.st_dev, where.st_ino))
                yield Path(folder), _files_that_matter(entries)
                around = folder if whole else ""  # any tool may have left a results.json
            if around and skipped is None:
                continue
            # Snapshots of file servers (.snapshot) and hidden folders are not runs.
            inner = [e for name, e in entries.items() if name[0] != "." and _is_searched(e)]
            waiting += sorted(((entry.path, around) for entry in inner), reverse=True)
            if not around and skipped is not None:
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
    names = (MANIFEST, RESULTS, *EXTERNAL)
    there = {n: None for n in names if os.path.exists(os.path.join(entry.path, n))}
    return MANIFEST in there or RESULTS in there or looks_external(there)


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
    elif any(name in entries for name in OURS):  # by another tool, or copied incompletely
        names = (RESULTS,)
    else:
        names = EXTERNAL
    return {name: entries[name].stat() for name in names if name in entries}
