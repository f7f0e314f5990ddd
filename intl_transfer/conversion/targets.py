"""The files that a conversion writes, and checks before writing."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from intl_transfer.conversion.adapters import WRITTEN
from intl_transfer.conversion.formats import read_backbone
from intl_transfer.conversion.hub import HUB, WEIGHTS, names_beside
from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.runs import MANIFEST, sha256_file

DETECTRON2, TORCHVISION = "detectron2", "torchvision"
# Fields of a report that determine the output; equal fields mean an identical file.
_DECIDE = ("provenance", "config", "format")
# By the name of the library that reads it.
_ALSO_CALLED = dict.fromkeys(("mmdet", "mmpretrain", "mmsegmentation"), "openmmlab")
_SUFFIXES = {".pth": DETECTRON2, ".pkl": DETECTRON2, ".safetensors": TORCHVISION}


def format_of(out: Path, to: str | None) -> str:
    """The format that is written, by name.

    Args:
        out: the file to write.
        to: as the user gives it; None: by the file's ending.

    Raises:
        UserError: for an unknown format, or one that does not match the extension.
    """
    to = _ALSO_CALLED.get(to, to) if to is not None else None
    if to is not None and to not in WRITTEN:
        hint = did_you_mean(to, WRITTEN)
        raise UserError(f"no format '{to}' to write.{hint} Known: {', '.join(WRITTEN)}")
    if out.suffix not in _SUFFIXES:
        raise UserError(
            f"{out}: expected a file name ending in .pth or .pkl (Detectron2), or in .safetensors "
            "(torchvision's names)"
        )
    to = to or _SUFFIXES[out.suffix]
    if out.suffix == ".safetensors" and to in HUB and out.name != WEIGHTS:
        raise UserError(f"{out}: {to} loads a folder; give {out.with_suffix('') / WEIGHTS}")
    if out.suffix == ".safetensors" and to not in (TORCHVISION, *HUB):
        raise UserError(f"{out}: .safetensors is for torchvision's names; write {to} as .pth")
    if out.suffix == ".pkl" and to not in (DETECTRON2, "caffe2"):
        raise UserError(f"{out}: .pkl is for Detectron2; write {to} as .pth")
    return to


def _files(out: Path, to: str) -> list[Path]:
    """The output files of a conversion."""
    suffixes = (".json", ".yaml") if to == DETECTRON2 else (".json",)
    beside = names_beside(to) if is_folder(out, to) else ()
    files = [out.with_suffix(suffix) for suffix in suffixes]
    return [out, *files, *(out.parent / name for name in beside)]


def is_folder(out: Path, to: str) -> bool:
    """Whether a library's folder is written."""
    return to in HUB and out.suffix == ".safetensors"


def check_target(sources: Iterable[str | Path], out: Path, to: str) -> None:
    """Refuses an invalid target, with `--force`, too.

    Args:
        sources: files that the conversion reads: its source, and what lies beside it.
        out: the file to write.
        to: its format.

    Raises:
        UserError: if a file to write is a folder, one of the sources, or among those of a run.
    """
    read = [Path(source) for source in sources]
    for file in _files(out, to):
        if file.is_dir():
            raise UserError(f"{file} is a folder; expected the name of a file")
        for source in read:
            if file.exists() and source.exists() and file.samefile(source):
                part = "the source itself" if source == read[0] else "read for the source"
                raise UserError(f"{file} is {part}; give another name")
    # Its checkpoints are in a folder of their own.
    for folder in out.resolve().parents[:2]:
        if (folder / MANIFEST).exists():
            raise UserError(
                f"{out} is in the directory of a run, {folder}, whose files are its record; "
                "write to another folder"
            )


def converted_before(out: Path, report: Mapping[str, Any]) -> dict[str, Any] | None:
    """The report of an existing file, if the conversion would produce the same."""
    try:
        found = json.loads(out.with_suffix(".json").read_text())
        deciding = json.loads(json.dumps({key: report[key] for key in _DECIDE}))
        same = all(found.get(key) == value for key, value in deciding.items())
        if not same or found["sha256"] != sha256_file(out):
            return None
        return {**found, "converted_before": True}
    except (OSError, ValueError, KeyError, AttributeError, RecursionError):
        return None


def refuse_existing(out: Path, report: Mapping[str, Any], to: str) -> None:
    """Refuses to replace a file, unless its conversion was killed before writing its report."""
    if out.is_file() and not out.with_suffix(".json").exists():
        with contextlib.suppress(UserError):
            provenance = read_backbone(out).provenance or {}
            if provenance.get("source_sha256") == report["provenance"]["source_sha256"]:
                return
    for file in _files(out, to):
        if file.exists():
            raise UserError(f"{file} exists already; give another name, or --force to replace it")


def drafts_of(out: Path) -> str:
    """Prefix of temporary folders."""
    return f".{out.stem}.convert-"


def clear_leftovers(out: Path) -> None:
    """Removes temporary files of a killed conversion to the same name."""
    for leftover in out.parent.glob(f"{drafts_of(out)}*"):
        shutil.rmtree(leftover, ignore_errors=True)
