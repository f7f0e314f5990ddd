"""Checkpoints that are whole, verified when read, and found again after any crash."""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from intl_transfer.errors import UserError, first_line
from intl_transfer.files.pickles import PickleError
from intl_transfer.files.torch_files import read_pickled
from intl_transfer.runs.atomic import clear_leftovers, write_atomically
from intl_transfer.runs.directory import RunDirectory
from intl_transfer.runs.distributed import Ranks
from intl_transfer.runs.finite import require_finite
from intl_transfer.runs.late import wait_until

FORMAT = "intl-transfer checkpoint"
SCHEMA = 1
T = TypeVar("T")
_NAME = re.compile(r"step_(\d+)\.pt")


# What tells of a run and is not learned: a figure may be NaN.
_TOLD = ("format", "schema", "progress", "figures", "config", "run", "rng")


class CheckpointNotWrittenError(Exception):
    """A checkpoint could not be written; older ones are as they were."""


def checkpoint_path(folder: str | Path, step: int) -> Path:
    """Where the checkpoint taken after ``step`` optimizer steps lies."""
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
        folder: the run's ``checkpoints`` folder; made if absent.
        step: number of optimizer steps taken.
        state: tensors, numbers, strings, lists and dictionaries only, so that it can be read
            with ``weights_only=True``.
        keep: how many checkpoints stay, milestones aside.
        is_milestone: tells of a step whether its checkpoint is never removed.

    Returns:
        The file written.

    Raises:
        StateNotFiniteError: if it holds NaN or infinity; nothing is written or removed then.
        CheckpointNotWrittenError: if the disk is full or the folder cannot be written. Nothing is
            removed then, and no part of a file is left behind.
    """
    path = checkpoint_path(folder, step)
    require_finite(_trained(state), f"{path} was not written")
    value = {"format": FORMAT, "schema": SCHEMA, **state}
    try:
        write_atomically(path, lambda file: torch.save(value, file))
    except OSError as error:
        why = error.strerror or error
        raise CheckpointNotWrittenError(f"{path} was not written ({why})") from error
    keep_newest([old for old in list_checkpoints(folder) if not is_milestone(step_of(old))], keep)
    return path


def keep_newest(paths: Sequence[Path], keep: int) -> None:
    """Removes all but the first few of some files, the newest first."""
    for old in paths[keep:]:
        with contextlib.suppress(OSError):  # one too many does no harm
            old.unlink()


def try_to_save(
    run: RunDirectory | None,
    save: Callable[[], Any],
    existing: Callable[[], Sequence[Path]],
    is_needed: bool = False,
) -> bool:
    """Writes a checkpoint; where that fails (a full disk), the run continues with what it has.

    Args:
        run: whose manifest counts checkpoints that were not written.
        save: writes it.
        existing: the run's checkpoints, the newest first, for the warning.
        is_needed: whether the run cannot continue without.

    Returns:
        Whether it was written.

    Raises:
        OSError: where it was needed, what kept it from being written.
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
    """Takes a checkpoint out of those that a run continues from, without removing it.

    Args:
        folder: the run's ``checkpoints`` folder.
        step: the number of steps after which it was taken.

    Returns:
        Where it lies now; None where there is none of that step.
    """
    path = checkpoint_path(folder, step)
    if not path.exists():
        return None
    return path.rename(path.with_name(f"unproven_{path.name}"))


def step_of(path: Path) -> int:
    """The number of steps after which a checkpoint was taken, from its name."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path.name} is no checkpoint's name; expected step_N.pt")
    return int(match.group(1))


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in a folder, newest (most steps) first."""
    folder = Path(folder)
    found = [(m, p) for p in folder.glob("step_*.pt") if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found, key=lambda item: int(item[0][1]), reverse=True)]


def _trained(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key not in _TOLD}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads one checkpoint, verifying every record's checksum, without running any code in it.

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
            f"{path} is not a checkpoint of this project: it asks for {found.names[0]}, as none "
            "does. Nothing in it was run"
        )
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this project (no format mark in it)")
    schema = value.get("schema")
    if type(schema) is not int:
        raise UserError(f"{path} is damaged: it does not say by which schema it was written")
    if schema > SCHEMA:
        raise UserError(
            f"{path} was written with schema {schema}, this version reads up to {SCHEMA}; "
            "upgrade intl-transfer"
        )
    require_finite(_trained(value), f"{path} is not whole", "; training cannot continue from it")
    return value


def load_newest(folder: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Reads the newest whole checkpoint; a damaged one is named in a warning and passed over.

    Returns:
        The file and its content, or None where the folder holds none at all.

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
    """Takes up the newest checkpoint that can be taken up, by trying: reading, checking, loading.

    One rank looks, all take the same file: on a shared disk others may see less. A file that any
    rank cannot take is named in a warning, and the one before it is tried. Whatever ``take``
    changes has to be set again by the next file.

    Args:
        paths: newest first; those of global rank 0 count.
        take: reads a file and makes use of it; any error means that it cannot.
        folder: where they lie.
        gather: a value's counterparts on all ranks, in rank order, on every rank.
        is_main: whether this rank warns.

    Returns:
        The file and what ``take`` gave, or None where there are no files.

    Raises:
        UserError: if there are files and none can be taken up.
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
            warnings.warn(f"passed over: {problems[0]}", stacklevel=3)
    if not names:
        return None
    raise UserError(
        f"none of the {len(names)} checkpoints in {folder} can be read and is whole ({first}); "
        "move the folder away to start the run again"
    )


def resume(folder: str | Path, load: Callable[[dict[str, Any]], T], ranks: Ranks) -> T | None:
    """Takes up a run's newest whole checkpoint on all ranks; clears away what a killed run left.

    Args:
        folder: the run's ``checkpoints`` folder.
        load: takes up a checkpoint's content; what it raises means that the content does not fit.
        ranks: this process's place.

    Returns:
        What ``load`` gave, or None where there is no checkpoint.

    Raises:
        UserError: if there are checkpoints and none can be taken up.
    """

    def take(path: Path) -> T:
        content = read_checkpoint(path)
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
