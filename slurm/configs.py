"""The configuration of a job: what was checked at launch, in the copy of the sources that it runs.

A file of the clone is named in the copy. Any other is copied into ``given/`` of it, under its whole
path, with the files that it is based on. So edits do not affect queued jobs.
"""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path

import yaml

from intl_transfer.errors import UserError
from intl_transfer.files.yamls import read_yaml
from intl_transfer.runs import write_atomically
from intl_transfer.runs.config import resolve_base, resolve_config

ROOT = Path(__file__).resolve().parents[1]
_GIVEN = "given"


def config_of_job(code: Path, stage: str, name: str) -> str:
    """The path of a configuration, for a job's command line.

    A name means the same at launch and in the job, whatever lies in the working directory.

    Args:
        code: the sources to run; files that they lack are copied there, unless they are the clone.
        stage: a folder of ``configs/``.
        name: in that folder, or a path; valid, since circular bases would not end.

    Raises:
        UserError: if there is no such file.
    """
    file = _exact(resolve_config(name, ROOT / "configs" / stage))
    return str(file if code == ROOT else _copied(code.resolve(), stage, file))


def _exact(file: Path) -> Path:
    """An absolute path without links in its folders; the file keeps its name."""
    return file.parent.resolve() / file.name


@functools.cache
def _copied(code: Path, stage: str, file: Path) -> Path:
    """The copy of a file, with copies of its bases; jobs of one launch share it."""
    is_ours = file.is_relative_to(ROOT)
    target = code / (file.relative_to(ROOT) if is_ours else Path(_GIVEN, *file.parts[1:]))
    values = read_yaml(file)
    key = "_BASE_" if stage == "detection" else "base"
    named = values.get(key, [])
    bases = named if isinstance(named, list) else [named]
    copies = [_copied(code, stage, _base(base, file, stage, ROOT)) for base in bases]
    target.parent.mkdir(parents=True, exist_ok=True)
    if not _leads_to(copies, bases, target, stage, code):
        paths = [str(copied) for copied in copies]
        values[key] = paths if isinstance(named, list) else paths[0]
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        write_atomically(target, lambda out: out.write(text.encode()))
    elif not target.exists():
        shutil.copyfile(file, target)  # to the byte: files of this project are known by that
    return target


def _base(base: str, file: Path, stage: str, root: Path) -> Path:
    """The file that a base named in a file is, as the sources in ``root`` read it."""
    if stage == "detection":
        return _exact(file.parent / os.path.expanduser(base))
    return _exact(resolve_base(base, file, root / "configs" / stage))


def _leads_to(copies: list[Path], bases: list[str], file: Path, stage: str, code: Path) -> bool:
    """Whether bases named in a file of the copy are the copies, as the job reads it."""
    try:
        return [_base(base, file, stage, code) for base in bases] == copies
    except UserError:
        return False
