"""Checkpoints: written atomically, verified when read, recovered after crashes."""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from intl_transfer.errors import UserError, first_line
from intl_transfer.files.pickles import PickleError
from intl_transfer.files.torch_files import read_pickled, unreadable_in
from intl_transfer.runs.atomic import clear_leftovers, write_atomically
from intl_transfer.runs.directory import Origin, RunDirectory
from intl_transfer.runs.distributed import Ranks
from intl_transfer.runs.finite import require_finite
from intl_transfer.runs.late import wait_until
from intl_transfer.runs.records import SCHEMA as SCHEMA_OF_RECORDS
from intl_transfer.runs.records import Manifest, PretrainRun
from intl_transfer.runs.settings import CHANGED, nested

FORMAT = "intl-transfer checkpoint"
SCHEMA = 1
T = TypeVar("T")
_NAME = re.compile(r"step_(\d+)\.pt")


# Records of a run rather than learned state; a metric may be NaN.
_TOLD = ("format", "schema", "progress", "figures", "config", "run", "manifest", "rng")


class CheckpointNotWrittenError(Exception):
    """A checkpoint could not be written; older ones are unchanged."""


def checkpoint_path(folder: str | Path, step: int) -> Path:
    """The path of the checkpoint after ``step`` optimizer steps."""
    return Path(folder) / f"step_{step:08d}.pt"


def save_checkpoint(
    folder: str | Path,
    step: int,
    state: dict[str, Any],
    keep: int = 2,
    is_milestone: Callable[[int], bool] = lambda step: False,
) -> Path:
    """Writes a checkpoint atomically, then removes all but the newest ones and the milestones.

    Args:
        folder: the run's ``checkpoints`` folder; created if missing.
        step: number of optimizer steps taken, 0 or more.
        state: only dense tensors, numbers, strings, lists and dictionaries, as
            :func:`read_checkpoint` requires; without the keys ``format`` and ``schema``, unless as
            they were read.
        keep: number of checkpoints to keep, in addition to milestones; at least 1.
        is_milestone: whether a step's checkpoint is never removed.

    Returns:
        The file written.

    Raises:
        ValueError: if ``step`` or ``keep`` is too small.
        UserError: if ``state`` contains what could not be read back; nothing is written or removed.
        StateNotFiniteError: if it contains NaN or infinity; nothing is written or removed.
        CheckpointNotWrittenError: if the disk is full or the folder cannot be written. Nothing is
            removed, and no partial file is left.
    """
    if step < 0 or keep < 1:
        raise ValueError(f"expected step >= 0 and keep >= 1, found step={step} and keep={keep}")
    path = checkpoint_path(folder, step)
    value = _marked(state, f"{path} was not written")
    try:
        write_atomically(path, lambda file: torch.save(value, file))
    except OSError as error:
        why = error.strerror or error
        raise CheckpointNotWrittenError(f"{path} was not written ({why})") from error
    # Those of later steps were passed over when the run was resumed: damaged, and nothing that
    # could stand in for the one just written.
    taken = [old for old in list_checkpoints(folder) if step_of(old) <= step]
    keep_newest([old for old in taken if not is_milestone(step_of(old))], keep)
    return path


def _marked(state: dict[str, Any], what: str) -> dict[str, Any]:
    """The content of a checkpoint's file: a state, with the marks of this project.

    Raises:
        UserError: if :func:`read_checkpoint` would refuse it.
    """
    marks = {"format": FORMAT, "schema": SCHEMA}
    taken = [key for key, mark in marks.items() if key in state and repr(state[key]) != repr(mark)]
    if taken:
        raise UserError(f"{what}: its key '{taken[0]}' is this project's own. Rename yours")
    if (other := unreadable_in(state)) is not None:
        raise UserError(
            f"{what}: expected only dense tensors, numbers, strings, lists and dictionaries, found "
            f"{other}. Save a path as str(path), a tensor as tensor.detach().to_dense()"
        )
    require_finite(_trained(state), what)
    return {**state, **marks}


def keep_newest(paths: Sequence[Path], keep: int) -> None:
    """Removes all but the first few of the files, given newest first."""
    for old in paths[keep:]:
        with contextlib.suppress(OSError):  # an extra checkpoint is harmless
            old.unlink()


def try_to_save(
    run: RunDirectory | None,
    save: Callable[[], Any],
    existing: Callable[[], Sequence[Path]],
    is_needed: bool = False,
) -> bool:
    """Writes a checkpoint; on failure (a full disk), warns and continues without it.

    Args:
        run: its manifest counts failed saves.
        save: writes it.
        existing: the run's checkpoints, newest first, for the warning.
        is_needed: whether a failure is an error.

    Returns:
        Whether it was written.

    Raises:
        OSError: if it is needed and cannot be written.
    """
    try:
        save()
    except CheckpointNotWrittenError as error:
        if run is not None:
            run.save_failed(str(error))
        if is_needed:
            raise (error.__cause__ or error) from None
        older = existing()
        has = f"the newest is {older[0].name}" if older else "there is none yet"
        print(f"warning: {error}; the run continues, {has}", file=sys.stderr, flush=True)
        return False
    if run is not None:
        run.save_succeeded()
    return True


def set_aside(folder: str | Path, step: int) -> Path | None:
    """Renames a checkpoint, so that a run does not resume from it.

    Args:
        folder: the run's ``checkpoints`` folder.
        step: its number of steps.

    Returns:
        Its new path; None if that step has no checkpoint.
    """
    path = checkpoint_path(folder, step)
    if not path.exists():
        return None
    return path.rename(path.with_name(f"unproven_{path.name}"))


def step_of(path: Path) -> int:
    """A checkpoint's number of steps, from its name."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path.name} is not the name of a checkpoint; expected step_N.pt")
    return int(match.group(1))


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in a folder, newest (most steps) first."""
    folder = Path(folder)
    found = [(m, p) for p in folder.glob("step_*.pt") if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found, key=lambda item: int(item[0][1]), reverse=True)]


def _trained(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key not in _TOLD}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint and verifies the checksum of every record; never executes code in it.

    Raises:
        UserError: if the file is absent, damaged, or not a checkpoint of this project, or holds
            NaN or infinity.
    """
    path = Path(path)
    try:
        found = read_pickled(path, verified=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected a checkpoint") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    except PickleError as error:
        raise UserError(f"{path} is damaged or not a checkpoint ({error})") from None
    value = found.value
    if found.names:
        raise UserError(
            f"{path} is not a checkpoint of this project: it imports {found.names[0]}. No code in "
            "it was executed"
        )
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this project (it has no format key)")
    schema = value.get("schema")
    if type(schema) is not int:
        raise UserError(f"{path} is damaged: it has no schema version")
    if schema > SCHEMA:
        raise UserError(
            f"{path} was written with schema {schema}, this version reads up to {SCHEMA}; "
            "upgrade intl-transfer"
        )
    require_finite(_trained(value), f"{path} is incomplete", "; training cannot continue from it")
    return value


def load_newest(folder: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Reads the newest intact checkpoint; damaged ones are skipped with a warning.

    Returns:
        The file and its content, or None if the folder has no checkpoints.

    Raises:
        UserError: if there are checkpoints and none can be read.
    """
    found = take_newest(list_checkpoints(folder), read_checkpoint, folder)
    return None if found is None else (found[0], found[1])


def take_newest(
    paths: Sequence[Path],
    take: Callable[[Path], T],
    folder: str | Path,
    gather: Callable[[Any], list[Any]] = lambda value: [value],
    is_main: bool = True,
) -> tuple[Path, T] | None:
    """Loads the newest usable checkpoint, by trying to read, verify and load each.

    One rank lists the files and all load the same one, since ranks may see different files on a
    shared disk. If any rank cannot load a file, a warning names it and the next older one is tried.
    ``take`` must overwrite all state that a failed attempt may have changed.

    Args:
        paths: newest first; only those of global rank 0 are used.
        take: reads and loads a file; any error means that it is unusable.
        folder: that contains them.
        gather: gathers a value from all ranks, in rank order.
        is_main: whether this rank warns.

    Returns:
        The file and the result of ``take``, or None if there are no files.

    Raises:
        UserError: if there are files and none is usable.
    """
    names = gather([str(path) for path in paths])[0]
    first = None
    for path in map(Path, names):
        value, problem = None, None
        wait_until(path.exists, folder)
        try:
            value = take(path)
        except UserError as error:
            problem = str(error)
        except Exception as error:
            problem = f"{path} cannot be loaded ({type(error).__name__}: {first_line(error)})"
        problems = [text for text in gather(problem) if text is not None]
        if not problems:
            return path, cast(T, value)
        first = first or problems[0]
        if is_main:
            warnings.warn(f"skipped: {problems[0]}", stacklevel=3)
    if not names:
        return None
    raise UserError(
        f"none of the {len(names)} checkpoints in {folder} is usable ({first}); move the folder "
        "away to start the run from scratch"
    )


def newest_origin(
    paths: Sequence[Path], read: Callable[[Path], Manifest | None] | None = None
) -> Origin | None:
    """What the newest readable checkpoint states of its run.

    Args:
        paths: newest first.
        read: the statement in a checkpoint; by default in one of this module, without its tensors.
    """
    for path in paths:
        with contextlib.suppress(OSError, PickleError, UserError):  # which resuming names
            return Origin(path, (read or _read_manifest)(path))
    return None


def _read_manifest(path: Path) -> Manifest | None:
    content = read_pickled(path, mapped=True).value
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is no checkpoint of this project")
    return manifest_in(content, str(path))


def origin_of_all(folder: str | Path, ranks: Ranks) -> Origin | None:
    """What the newest readable checkpoint of a folder states, as rank 0 sees it, on every rank."""
    own = newest_origin(list_checkpoints(folder)) if ranks.is_main else None
    found: Origin | None = ranks.gather_objects(own)[0]
    return found


def manifest_in(content: Mapping[str, Any], where: str) -> Manifest | None:
    """The manifest in a checkpoint, of the run that wrote it.

    Pretraining of earlier versions stored its configuration and what weights say of their run, from
    which as much is taken as there is.

    Args:
        content: of the checkpoint.
        where: its file, for messages.

    Returns:
        None if it states no settings.

    Raises:
        UserError: if the statement is damaged.
    """
    if "manifest" in content:
        return Manifest.of(content["manifest"], f"{where}: manifest")
    config, run = content.get("config"), content.get("run")
    if not isinstance(config, dict) or not isinstance(run, dict):
        return None
    settings = PretrainRun.of(run, f"{where}: run").settings or {}
    images = {key: value for key, value in settings.items() if key.startswith("dataset.")}
    session: dict[str, Any] = {"world_size": settings.get("batch_norm.ranks"), "changes": {}}
    for key, text in settings.items():
        if key.startswith(CHANGED):
            before, _, now = str(text).partition(" to ")
            session["changes"][key.removeprefix(CHANGED)] = {"before": before, "now": now}
    found = {
        "schema": SCHEMA_OF_RECORDS,
        "id": run.get("id") or "",
        "stage": "pretrain",
        "name": run.get("name") or "",
        "status": "interrupted",
        "config": config,
        "seed": config.get("seed"),
        "inputs": [],
        "sessions": [session],
        "dataset": nested(images).get("dataset", {}),
    }
    return Manifest.of(found, f"{where}: config and run")


def resume(
    folder: str | Path,
    load: Callable[[dict[str, Any]], T],
    ranks: Ranks,
    admit: Callable[[Path, Manifest | None], None] = lambda path, manifest: None,
) -> T | None:
    """Resumes from the newest usable checkpoint on all ranks; removes partial files.

    Args:
        folder: the run's ``checkpoints`` folder.
        load: loads a checkpoint's content; an error means that it does not fit.
        ranks: this process's place.
        admit: refuses the checkpoint of another run, given the manifest in it.

    Returns:
        The result of ``load``, or None if there is no checkpoint.

    Raises:
        UserError: if there are checkpoints and none is usable.
    """

    def take(path: Path) -> T:
        content = read_checkpoint(path)
        admit(path, manifest_in(content, str(path)))
        try:
            return load(content)
        except Exception as error:
            raise UserError(
                f"{path} does not fit this configuration ({first_line(error)})"
            ) from error

    paths: list[Path] = []
    if ranks.is_main:
        clear_leftovers(folder)
        paths = list_checkpoints(folder)
    found = take_newest(paths, take, folder, ranks.gather_objects, ranks.is_main)
    return None if found is None else found[1]
