"""Validates run directories, of this project or written by other tools.

    intl-transfer check runs/ my_evaluator/run_0

Lists every invalid field, with what was expected and found; docs/run-directory.md describes all
fields. The exit status is 1 if there are errors.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.results.checks import problem_of, warnings_of
from intl_transfer.results.reading import disagreement, unfinished_with_results
from intl_transfer.runs import MANIFEST, METRICS, RESULTS, sha256_file
from intl_transfer.runs.directory import read_json_object
from intl_transfer.runs.folders import looks_external, run_folders, unsearched
from intl_transfer.runs.metrics import numbered_lines
from intl_transfer.runs.records import (
    DOCUMENTED,
    STAGES,
    Manifest,
    MetricsLine,
    PretrainResults,
    Record,
    problems_of,
    results_class,
)

_MOST = 20  # problems listed per file


@dataclass
class Findings:
    """The findings on one run directory.

    Attributes:
        folder: the directory.
        errors: that must be corrected.
        warnings: suspicious values.
        words: description of the directory.
    """

    folder: Path
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    words: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``intl-transfer check``."""
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="run directories, or folders of them"
    )


def run(arguments: argparse.Namespace) -> int:
    """Checks; returns 0, or 1 if there are errors."""
    problems: list[str] = []
    skipped: dict[Path, str] = {}
    roots = arguments.folders
    found = [check(folder) for root in roots for folder in _folders(root, problems, skipped)]
    if not found:
        names = ", ".join(map(str, roots))
        raise UserError(f"no run directory in {names}; expected {MANIFEST} or {RESULTS} in it")
    for one in found:
        verdict = "wrong" if one.errors else "ok"
        print(f"{verdict:6s} {one.folder}" + (f": {one.words}" if one.words else ""))
        for text in one.errors:
            print(f"       error: {text}")
        for text in one.warnings:
            print(f"       warning: {text}")
    wrong = sum(bool(one.errors) for one in found) + len(problems)
    for text in problems:
        print(f"wrong  {text}")
    for text in unsearched(skipped, [one.folder for one in found]):
        print(f"       {text}")
    print(f"{len(found)} run directories, {wrong} to correct ({DOCUMENTED} has the fields)")
    return 1 if wrong else 0


def _folders(root: Path, problems: list[str], skipped: dict[Path, str]) -> Iterator[Path]:
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; expected a run directory or a folder of them")
    for folder, files in run_folders(root, problems, skipped):
        if MANIFEST in files or not looks_external(files):
            yield folder


def check(folder: Path) -> Findings:
    """Checks one run directory.

    Args:
        folder: with ``manifest.json``, or only ``results.json`` with the field ``external``.
    """
    found = Findings(folder)
    manifest = results = None
    if (folder / MANIFEST).exists():
        manifest = _record(folder / MANIFEST, Manifest, found)
    content = _content(folder / RESULTS, found) if (folder / RESULTS).exists() else None
    if content is not None:
        stage = content.get("stage")
        kind = results_class(stage)
        if kind is None:
            found.errors.append(
                f"{RESULTS}: stage: expected one of {', '.join(STAGES)}, found {stage!r}."
                f"{did_you_mean(str(stage), STAGES)}"
            )
        else:
            results = _record(folder / RESULTS, kind, found, content)
    is_alone = content is not None and not (folder / MANIFEST).exists()
    if is_alone and (content or {}).get("external") is None:
        found.errors.append(
            f'{RESULTS} without {MANIFEST}: give "external": "who measured this", or copy the '
            "rest of the run directory"
        )
    if manifest is not None:
        _check_status(folder, manifest, content if results is not None else None, content, found)
    if results is not None:
        problem = problem_of(results, manifest.config if manifest is not None else None)
        if problem:
            found.errors.append(f"{RESULTS}: {problem}")
        found.warnings += [f"{RESULTS}: {text}" for text in warnings_of(results)]
        if isinstance(results, PretrainResults):
            _check_backbone(folder, results, found)
    _check_metrics(folder / METRICS, found)
    stage = manifest.stage if manifest is not None else getattr(results, "stage", None)
    status = manifest.status if manifest is not None else "made by hand"
    found.words = ", ".join(str(part) for part in (stage, status) if part)
    return found


def _content(file: Path, found: Findings) -> dict[str, Any] | None:
    try:
        return read_json_object(file)
    except (UserError, OSError, RecursionError) as error:
        found.errors.append(str(error).removeprefix(f"{file.parent}/"))
        return None


def _record(
    file: Path, kind: type[Record], found: Findings, content: dict[str, Any] | None = None
) -> Any:
    """The file as a record; None, after adding all problems, if it is invalid."""
    content = content if content is not None else _content(file, found)
    if content is None:
        return None
    try:
        record = kind.model_validate(content)
    except ValidationError as error:
        problems = list(problems_of(error))
        found.errors += [f"{file.name}: {text}" for text in problems[:_MOST]]
        if len(problems) > _MOST:
            found.errors.append(f"{file.name}: and {len(problems) - _MOST} more")
        return None
    for name, known in _unknown(record):
        hint = did_you_mean(name.rsplit(".", 1)[-1], known)
        if hint:  # further fields are allowed, except misspellings of known ones
            found.warnings.append(f"{file.name}: no field '{name}' is known.{hint}")
    return record


def _unknown(record: Record, place: str = "") -> Iterator[tuple[str, list[str]]]:
    """Undocumented fields, with the documented ones that are missing in the same object."""
    names = {
        str(info.validation_alias or name): name for name, info in type(record).model_fields.items()
    }
    open_names = [shown for shown, name in names.items() if name not in record.model_fields_set]
    for name in record.model_extra or {}:
        yield f"{place}{name}", open_names
    for shown, name in names.items():
        value = getattr(record, name)
        if isinstance(value, Record):
            yield from _unknown(value, f"{place}{shown}.")
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            yield from itertools.chain.from_iterable(
                _unknown(item, f"{place}{shown}[{index}].") for index, item in enumerate(value)
            )


def _check_status(
    folder: Path,
    manifest: Manifest,
    results: Mapping[str, Any] | None,
    content: Mapping[str, Any] | None,
    found: Findings,
) -> None:
    if manifest.stage not in STAGES:
        known, stage = ", ".join(STAGES), manifest.stage
        found.errors.append(
            f"{MANIFEST}: stage: expected one of {known}, found '{stage}'."
            f"{did_you_mean(stage, STAGES)}"
        )
    if manifest.status == "finished" and content is None and not found.errors:
        found.errors.append(f"{MANIFEST}: status is finished, and there is no {RESULTS}")
    if manifest.status != "finished" and content is not None:
        problem = unfinished_with_results(folder, manifest, content)
        found.errors += [] if problem is None else [problem]
    problem = disagreement(manifest, results or {})
    if problem:
        found.errors.append(f"{RESULTS}: {problem}")


def _check_backbone(folder: Path, results: PretrainResults, found: Findings) -> None:
    file = folder / (results.backbone_file or "")
    if results.backbone_file is None or results.backbone_sha256 is None:
        return
    if not file.is_file():
        found.warnings.append(f"{RESULTS}: backbone_file {file.name} is not there")
    elif sha256_file(file) != results.backbone_sha256:
        found.errors.append(f"{file.name} is not the file whose backbone_sha256 is in {RESULTS}")


def _check_metrics(file: Path, found: Findings) -> None:
    """Checks every line; those cut short by a crash are accepted."""
    for number, line in numbered_lines(file):
        if line is None:
            found.errors.append(
                f"{file.name}: line {number}: expected a JSON object; the file is damaged: copy it "
                "again"
            )
            return
        try:
            MetricsLine.model_validate(line)
        except ValidationError as error:
            found.errors.append(f"{file.name}: line {number}: {next(problems_of(error))}")
            return
