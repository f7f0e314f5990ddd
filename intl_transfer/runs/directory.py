"""The run directory: the only interface between the stages.

``manifest.json`` describes the run and its inputs; ``metrics.jsonl`` grows while it runs;
``results.json`` is written once, at the end. ``docs/run-directory.md`` documents every field.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from intl_transfer.errors import UserError, first_line
from intl_transfer.files.jsons import parse_json
from intl_transfer.runs.atomic import write_json
from intl_transfer.runs.jsonable import jsonable
from intl_transfer.runs.metrics import METRICS, append_line
from intl_transfer.runs.records import (
    SCHEMA,
    AnyResults,
    ImageSet,
    Input,
    Manifest,
    Session,
    Stage,
    results_of,
)

MANIFEST = "manifest.json"
RESULTS = "results.json"

_LIBRARIES = (
    "intl-transfer",
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "opencv-python-headless",
    "simplejpeg",
    "fvcore",
    "pycocotools",
    "submitit",
)


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a session continues from.

    Attributes:
        path: its file.
        manifest: of the run that wrote it, as far as the checkpoint states it; None if not at all.
    """

    path: Path
    manifest: Manifest | None


class RunDirectory:
    """One run's folder, opened by the process that runs it (global rank 0).

    Use :meth:`start`: it creates the folder, or continues an existing run with the same id and adds
    a session to its manifest.

    Attributes:
        path: the folder.
        manifest: the content of ``manifest.json``, kept in sync with the file.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def start(
        cls,
        path: str | Path,
        *,
        stage: Stage,
        name: str,
        config_name: str,
        config: Mapping[str, Any],
        seed: int,
        method: str | None = None,
        inputs: Sequence[Mapping[str, Any]] = (),
        world_size: int = 1,
        details: Mapping[str, Any] | None = None,
        dataset: Mapping[str, ImageSet] | None = None,
        changes: Mapping[str, Any] | None = None,
        origin: Origin | None = None,
    ) -> RunDirectory:
        """Opens a run directory for writing and records a new session in its manifest.

        Args:
            path: the folder; created if missing.
            stage: ``"pretrain"``, ``"detection"`` or ``"evaluation"``.
            name: a short name for tables and logs.
            config_name: the configuration file's name, as the user gave it.
            config: the fully resolved configuration. What JSON lacks is converted
                (:func:`~intl_transfer.runs.jsonable.jsonable`), here as in ``details`` and
                ``changes``.
            seed: the seed of this run.
            method: the pretraining method behind the run (``"INTL"``, ``"random init"``, ...).
            inputs: input files, each ``{"role", "path", "sha256", ...}``.
            world_size: number of ranks.
            details: further facts for the manifest, kept from session to session.
            dataset: content of the data sets, by name; default: as in the earlier session.
            changes: settings that differ from the previous session's, by dotted key, each
                ``{"before", "now"}``.
            origin: the checkpoint to be continued, if the folder's manifest does not record the run
                that wrote it. Without a manifest, the one in the checkpoint is continued.

        Returns:
            The open run directory, its manifest already on disk with status ``running``.

        Raises:
            UserError: if the folder contains a run of another stage or a damaged manifest, or a
                value has the wrong type.
        """
        path = Path(path)
        file = str(path / MANIFEST)
        existing = _existing(path, stage, origin)
        session = {
            "started": _now(),
            "ended": None,
            "command": [sys.executable, *sys.argv],
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "world_size": world_size,
            **({"changes": jsonable(changes, f"{file}: changes")} if changes else {}),
            **({} if origin is None else {"continues": _named(origin)}),
        }
        found = dict(dataset) if dataset is not None else existing.dataset if existing else {}
        values = {
            "schema": SCHEMA,
            "id": existing.id if existing else uuid.uuid4().hex,
            "stage": stage,
            "name": name,
            "method": method,
            "status": "running",
            "config_name": config_name,
            "config": jsonable(config, f"{file}: config"),
            "seed": jsonable(seed, f"{file}: seed"),
            "inputs": [Input.of(dict(item), "inputs") for item in inputs],
            "git": git_state(),
            "versions": library_versions(),
            "hardware": hardware(),
            "details": {
                **(existing.details if existing else {}),
                **jsonable(details or {}, f"{file}: details"),
            },
            "dataset": found,
            "started": existing.started if existing else session["started"],
            "ended": None,
            "error": None,
            "failed_saves": existing.failed_saves if existing else None,
            "sessions": [*(existing.sessions if existing else []), Session.of(session, file)],
        }
        manifest = Manifest.of(values, file)
        run = cls(path, manifest)
        run.save()
        return run

    def save(self) -> None:
        """Writes the manifest to disk, atomically."""
        write_json(self.path / MANIFEST, self.manifest.as_json())

    def log(self, **values: Any) -> None:
        """Appends one line to ``metrics.jsonl``.

        The line is written in one call, so that readers see it incomplete only if the machine
        crashed; they skip a damaged last line.

        Args:
            values: numbers (also numpy's and torch's), strings or lists of them; by convention
                ``step`` and, in the pretraining stage, ``epoch`` are among them. ``time`` (Unix
                seconds) is added.
                NaN and infinities are stored as the strings ``"nan"``, ``"inf"``, ``"-inf"``.
        """
        append_line(self.path / METRICS, values)

    def finish(self, results: AnyResults | Mapping[str, Any]) -> None:
        """Writes ``results.json`` and marks the run finished, in this order.

        Raises:
            UserError: if the results do not match their stage's schema.
        """
        file = self.path / RESULTS
        if isinstance(results, Mapping):
            known = {"schema": SCHEMA, "stage": self.manifest.stage, "seed": self.manifest.seed}
            # NaN stays what it is: a metric that is not defined.
            values = jsonable({**known, **results}, str(file), nonfinite=float)
            results = results_of(values, str(file))
        # So that the manifest and the results of two sessions are not taken for one run.
        results.run, results.session = self.manifest.id, len(self.manifest.sessions)
        write_json(file, results.as_json())
        self._close("finished", None)

    def fail(self, error: BaseException | str) -> None:
        """Marks the run failed with the error's text."""
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self._close("failed", text)

    def interrupt(self, reason: str) -> None:
        """Marks the run interrupted: it can be continued."""
        self._close("interrupted", reason)

    def save_failed(self, reason: str) -> None:
        """Records that a checkpoint could not be written; never raises."""
        manifest = self.manifest
        manifest.failed_saves = (manifest.failed_saves or 0) + 1
        manifest.failed_save = reason
        self._try_to_save()

    def save_succeeded(self) -> None:
        """Records that a checkpoint was written after failed saves; never raises."""
        if self.manifest.failed_save is not None:
            self.manifest.failed_save = None
            self._try_to_save()

    def _close(
        self, status: Literal["finished", "failed", "interrupted"], error: str | None
    ) -> None:
        manifest = self.manifest
        manifest.status, manifest.ended, manifest.error = status, _now(), error
        manifest.sessions[-1].ended = manifest.ended
        if status == "finished":
            self.save()
        else:
            self._try_to_save()

    def _try_to_save(self) -> None:
        """Saves the manifest if possible; must not hide the original error."""
        try:
            self.save()
        except Exception as error:
            with contextlib.suppress(OSError, ValueError):
                print(
                    f"warning: {self.path / MANIFEST} was not written ({first_line(error)})",
                    file=sys.stderr,
                    flush=True,
                )

    @contextlib.contextmanager
    def recording(self) -> Iterator[RunDirectory]:
        """Marks the run failed or interrupted if the block raises; re-raises the error."""
        try:
            yield self
        except KeyboardInterrupt:
            self.interrupt("stopped from the keyboard")
            raise
        except SystemExit as error:
            if error.code not in (None, 0):
                self.interrupt(f"stopped with exit status {error.code}")
            raise
        except BrokenPipeError as error:  # of a line that nobody reads, after the end
            if self.manifest.status == "running":
                self.fail(error)
            raise
        except BaseException as error:
            self.fail(error)
            raise


def _existing(path: Path, stage: Stage, origin: Origin | None) -> Manifest | None:
    """What is known of the run in a folder: by its manifest, otherwise by its checkpoint."""
    found = read_manifest(path) if (path / MANIFEST).exists() else None
    if found is None and origin is not None:
        found = origin.manifest
    if found is not None and found.stage != stage:
        raise UserError(
            f"{path} contains a '{found.stage}' run; this is a '{stage}' run. Choose another "
            "output directory."
        )
    return found


def _named(origin: Origin) -> dict[str, Any]:
    run = None if origin.manifest is None else origin.manifest.id
    return {"checkpoint": origin.path.name, "run": run}


def read_manifest(path: str | Path) -> Manifest:
    """Reads and checks a run directory's manifest.

    Args:
        path: the run directory.

    Returns:
        The manifest.

    Raises:
        UserError: if it is missing, is not JSON, lacks a field, or was written by a newer version.
    """
    file = Path(path) / MANIFEST
    return Manifest.of(read_json_object(file), str(file))


def read_results(path: str | Path) -> AnyResults | None:
    """Reads ``results.json`` of a run directory, or ``None`` if there is none yet.

    Raises:
        UserError: if the file is not a JSON object or does not match its stage's schema.
    """
    file = Path(path) / RESULTS
    return results_of(read_json_object(file), str(file)) if file.exists() else None


#: Written into the package when it is built (``setup.py``).
STAMP = "_revision.json"
_OWN_FILE = "intl_transfer/runs/directory.py"


def git_state(folder: str | Path | None = None) -> dict[str, Any]:
    """The revision of the sources: ``{"revision": str | None, "dirty": bool | None}``.

    In this order: for a job's copy of the sources, the revision it was copied from; for an
    installed package, the one recorded when it was built; for a clone, git's, if the repository
    tracks the package's files (a package may be installed inside an unrelated repository).

    Args:
        folder: that contains the package; default: this package's.
    """
    folder = Path(folder) if folder else Path(__file__).resolve().parents[2]
    for stamp in (folder / "REVISION.json", folder / "intl_transfer" / STAMP):
        if stamp.is_file():
            with contextlib.suppress(UserError, OSError):
                state = read_json_object(stamp)
                return {"revision": state.get("revision"), "dirty": state.get("dirty")}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", _OWN_FILE)
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"revision": None, "dirty": None}


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that affect results."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    detectron2 = sys.modules.get("detectron2")
    if detectron2 is not None:
        versions["detectron2"] = getattr(detectron2, "__version__", "unknown")
    return versions


def hardware() -> dict[str, Any]:
    """The hardware: host, CPU count, names of GPUs."""
    import torch

    from intl_transfer.devices import gpus as usable

    gpus = list(usable().names)
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": gpus,
        "cuda": torch.version.cuda if gpus else None,
    }


def read_json_object(file: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        UserError: if the file is missing, damaged, or not a JSON object.
    """
    try:
        value = parse_json(file.read_bytes(), str(file))
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; expected a run directory") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: expected a JSON object, found {type(value).__name__}")
    return value


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
