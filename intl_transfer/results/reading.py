"""Reads one run directory: manifest, results, and status."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.runs import MANIFEST, METRICS, RESULTS
from intl_transfer.runs.directory import read_json_object
from intl_transfer.runs.lock import holder_alive
from intl_transfer.runs.records import (
    DOCUMENTED,
    SCHEMA,
    AnyResults,
    Manifest,
    Record,
    results_of,
)

#: Upper limit, larger than any manifest or results file of ours.
LARGEST_BYTES = 64 << 20


@dataclass(frozen=True)
class Entry:
    """One run directory, in any state.

    Attributes:
        path: the folder.
        status: ``finished``, ``running``, ``stalled`` (status running, but no output for long),
            ``failed``, ``interrupted``, ``inconsistent``, ``copy`` or ``superseded`` (the newer run
            with the same seed and settings counts).
        detail: why, as text; may be empty.
        manifest: its manifest, or None if unreadable.
        results: its results, or None if there are none.
        external: whether it was not written by this project.
    """

    path: Path
    status: str
    detail: str = ""
    manifest: Manifest | None = field(default=None, repr=False)
    results: AnyResults | None = field(default=None, repr=False)
    external: bool = False

    @cached_property
    def manifest_json(self) -> dict[str, Any]:
        """The manifest as a JSON object; empty if there is none."""
        return {} if self.manifest is None else self.manifest.as_json()

    @cached_property
    def results_json(self) -> dict[str, Any]:
        """The results as a JSON object; empty if there are none."""
        return {} if self.results is None else self.results.as_json()

    @property
    def stage(self) -> str:
        """``pretrain``, ``detection``, ``evaluation``, or "" if unknown."""
        return self.manifest.stage if self.manifest else ""

    @property
    def seed(self) -> int | None:
        """None if nobody stated it; an external folder does so with its results."""
        if self.results is not None:
            return self.results.known_seed
        return None if self.manifest is None or self.external else self.manifest.seed


def check_plain(path: Path, status: os.stat_result, limited: bool = True) -> None:
    """Refuses anything but a regular file of limited size, before opening it.

    Args:
        path: the file.
        status: its ``stat`` result.
        limited: False for files of any size, which are read in part.

    Raises:
        UserError: for a pipe, a device, or a file too large to be one of ours.
    """
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is not a regular file")
    if limited and status.st_size > LARGEST_BYTES:
        raise UserError(
            f"{path} has {status.st_size >> 20} MiB; expected less than {LARGEST_BYTES >> 20}"
        )


def read_run(path: Path, files: Mapping[str, os.stat_result]) -> tuple[Any, Any]:
    """Manifest and results of a run directory, as JSON objects.

    Args:
        path: the folder.
        files: ``stat`` results of the two files, if they exist.

    Returns:
        The manifest, and the results or None, for :func:`records_of`.

    Raises:
        UserError: if one of them is damaged, not a regular file, or unreadable.
    """
    with _named(path, files):
        manifest = read_json_object(path / MANIFEST)
        return manifest, read_json_object(path / RESULTS) if RESULTS in files else None


def read_hand_made(path: Path, files: Mapping[str, os.stat_result]) -> tuple[Any, Any]:
    """External results without a manifest, with a substitute for it.

    Args:
        path: the folder.
        files: ``stat`` result of the results, if they exist.

    Raises:
        UserError: if there are none, or they lack the field ``external``: then they are an
            incomplete run directory of this project.
    """
    file = path / RESULTS
    if RESULTS not in files:
        raise UserError(f"{path} has no {MANIFEST}")
    with _named(path, files):
        content = read_json_object(file)
    results = results_of(content, str(file))
    if results.external is None:
        raise UserError(
            f"{path} has no {MANIFEST}: it was copied half. (Results of an evaluator of your own "
            f'say so with "external": "its name", see {DOCUMENTED})'
        )
    manifest = Manifest(
        schema_version=SCHEMA,
        id="",
        stage=results.stage,
        name=path.name,
        status="finished",
        config={},
        seed=results.seed,
        inputs=[],
        sessions=[],
    )
    return manifest.as_json(), content


@contextlib.contextmanager
def _named(path: Path, files: Mapping[str, os.stat_result]) -> Iterator[None]:
    """Converts errors while reading files to errors that name the folder."""
    for name, status in files.items():
        check_plain(path / name, status)
    try:
        yield
    except (TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not in the format of a run directory ({error})") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def records_of(as_read: Any, path: Path) -> tuple[Manifest, AnyResults | None]:
    """Manifest and results as records.

    Args:
        as_read: both as JSON objects, from the files or the cache.
        path: the folder.

    Raises:
        UserError: naming the first invalid field, or a contradiction between the two.
    """
    content, found = as_read
    manifest = Manifest.of(content, str(path / MANIFEST))
    if found is None:
        return manifest, None
    if problem := disagreement(manifest, found):  # before it is read as another stage's
        raise UserError(f"{path / RESULTS}: {problem}")
    return manifest, results_of(found, str(path / RESULTS))


def state_of(
    path: Path, manifest: Manifest, results: AnyResults | None, stalled_after: float
) -> tuple[str, str]:
    """The status of a run directory, with details.

    Args:
        path: the folder.
        manifest: its manifest.
        results: its results.
        stalled_after: seconds without output after which a run with status running counts as
            stalled.
    """
    status = manifest.status
    if status == "finished":
        if results is None:
            return "inconsistent", f"{path} is marked finished and has no {RESULTS}"
        return "finished", ""
    if status != "running":
        return status, manifest.error or ""
    if results is not None and (problem := unfinished_with_results(path, manifest, results)):
        return "inconsistent", f"{path}: {problem}"
    return _alive(path, stalled_after)


def unfinished_with_results(
    path: Path, manifest: Manifest, results: AnyResults | Mapping[str, Any]
) -> str | None:
    """What is wrong with a run that is not finished and has results; None for one that goes on.

    Args:
        path: the folder.
        manifest: its manifest.
        results: its results, which may be those of an earlier session.
    """
    if _of_other_sessions(manifest, results):
        return None
    holder = holder_alive(path) if manifest.status == "running" else None
    if holder is not None and holder[1]:
        return None
    return (
        f"{MANIFEST}: status is {manifest.status}, and there is {RESULTS}; it was copied half, or "
        "stopped in its last moment: copy it again, or run the same command again"
    )


def disagreement(manifest: Manifest, results: Mapping[str, Any]) -> str | None:
    """A contradiction between the two files of a run, if any."""
    for key in ("stage", "seed"):
        there, here = manifest[key], results.get(key, manifest[key])
        if here != there:
            return f"{key} is {there!r} in {MANIFEST} and {here!r} in {RESULTS}"
    problem = _of_other_sessions(manifest, results) if manifest.status == "finished" else None
    return None if problem is None else f"{problem}. They were copied at different times"


#: By stage, the length of a run in its configuration and in its results.
_LENGTHS = {
    "pretrain": ("optim.epochs", "epochs"),
    "detection": ("SOLVER.MAX_ITER", "schedule.iterations"),
    "evaluation": ("optim.epochs", "epoch"),
}


def _of_other_sessions(manifest: Manifest, results: AnyResults | Mapping[str, Any]) -> str | None:
    """Why results are not of the manifest's last session; None if they may be.

    Earlier versions did not record the session. A run that was continued had another length.
    """
    if results.get("external") is not None:
        return None
    run, session = results.get("run"), results.get("session")
    if run is not None and run != manifest.id:
        return f"run is {manifest.id} in {MANIFEST} and {run} in {RESULTS}"
    if session is not None and session != len(manifest.sessions):
        return f"{RESULTS} is of session {session}, {MANIFEST} of {len(manifest.sessions)}"
    if manifest.stage not in _LENGTHS:
        return None
    key, name = _LENGTHS[manifest.stage]
    planned, made = _at(manifest.config, key), _at(results, name)
    stated = all(isinstance(length, (int, float)) for length in (planned, made))
    if not stated or planned == made:
        return None
    return f"{key} is {planned} in {MANIFEST}, and {name} is {made} in {RESULTS}"


def _at(values: Any, key: str) -> Any:
    """A nested value by its dotted key; None if there is none."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, (Mapping, Record)) else None
    return values


def _alive(path: Path, stalled_after: float) -> tuple[str, str]:
    """Why a run with status running counts as stalled, if it does."""
    holder = holder_alive(path)
    if holder is not None and not holder[1]:
        return "stalled", f"its process {holder[0]} has ended without recording it"
    times = []
    for name in (METRICS, MANIFEST, "checkpoints"):
        try:
            times.append((path / name).stat().st_mtime)
        except OSError:
            continue
    silent = time.time() - max(times, default=0.0)
    if silent > stalled_after:
        return "stalled", f"nothing was written for {_duration(silent)}"
    return "running", ""


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 60:.0f} min"
