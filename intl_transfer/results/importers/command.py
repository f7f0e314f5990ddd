"""Imports logs and results of other programs, as external rows of tables.

intl-transfer import openmmlab work_dirs/mask_rcnn --out runs/external/mask_rcnn --method "MoCo v2"
intl-transfer import coco detections.json --annotations instances.json --out runs/x --method A
intl-transfer import lightning metrics.csv --out runs/external/byol --method BYOL --dataset cifar10
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.results.arguments import one_of
from intl_transfer.results.checks import problem_of
from intl_transfer.results.importers import coco, lightning, openmmlab, vissl
from intl_transfer.results.importers.found import Found
from intl_transfer.runs import RESULTS, write_json
from intl_transfer.runs.records import SCHEMA, results_of

FORMS = ("openmmlab", "vissl", "lightning", "coco")
_UNKNOWN = "not stated"
# Facts needed by tables: option and description.
_WORDS = {
    "dataset": "data set",
    "seed": "seed",
    "backbone": "backbone",
    "detector": "detector",
    "head": "head",
    "schedule": "schedule",
    "iterations": "iterations",
    "batch_size": "batch size",
    "lr": "learning rate",
    "epochs": "epochs of the evaluation",
    "detail": "pretraining",
}
_DETECTION = (
    *("dataset", "seed", "backbone", "detector", "head", "schedule", "iterations"),
    *("batch_size", "lr", "detail"),
)
_CLASSIFICATION = ("dataset", "seed", "backbone", "epochs", "batch_size", "lr", "detail")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``intl-transfer import``."""
    add = parser.add_argument
    add("form", type=one_of(*FORMS), metavar="|".join(FORMS), help="format of the source")
    add("source", type=Path, help="the file, or a folder with a single such file")
    add("--out", type=Path, required=True, metavar="FOLDER", help="run directory to write")
    add("--method", required=True, help="name of the method in tables")
    add("--annotations", type=Path, metavar="FILE", help="coco: annotation file (instances_….json)")
    add("--layer", help="vissl: name of the head to use")
    add("--column", help="lightning: column with top-1, if not solo-learn's")
    add(
        "--unit",
        type=one_of("percent", "fraction"),
        metavar="percent|fraction",
        help="lightning: unit of --column",
    )
    kinds = ("linear", "knn", "semi")
    text = "lightning, vissl: kind of evaluation (default: linear)"
    add("--kind", type=one_of(*kinds), default="linear", metavar="|".join(kinds), help=text)
    facts = parser.add_argument_group("protocol, as far as the file does not state it")
    for name in _WORDS:
        whole = name in ("seed", "iterations", "batch_size", "epochs")
        kind = int if whole else float if name == "lr" else str
        facts.add_argument(f"--{name.replace('_', '-')}", type=kind, help=_WORDS[name])


def run(arguments: argparse.Namespace) -> int:
    """Imports; returns 0."""
    facts = {name: getattr(arguments, name) for name in _WORDS}
    found = _read(arguments)
    folder = import_results(
        found, arguments.out, arguments.method, arguments.source.name, facts, arguments.kind
    )
    tasks = ", ".join(found.metrics)
    print(f"wrote {folder / RESULTS}: {tasks}, {found.at or 'as it is'}", file=sys.stderr)
    return 0


def _read(arguments: argparse.Namespace) -> Found:
    source = arguments.source
    if arguments.form == "openmmlab":
        return openmmlab.read(source)
    if arguments.form == "vissl":
        return vissl.read(source, arguments.layer)
    if arguments.form == "lightning":
        return lightning.read(source, arguments.kind, arguments.column, arguments.unit)
    return coco.read(source, arguments.annotations)


def import_results(
    found: Found,
    folder: Path,
    method: str,
    source: str = "",
    facts: Mapping[str, Any] | None = None,
    kind: str = "linear",
) -> Path:
    """Writes external results, with the unknown facts of their protocol.

    Args:
        found: from an importer.
        folder: of the new run; must not contain results.
        method: name of the method in tables.
        source: the file's name.
        facts: known in addition to the file's, by option; None if unknown.
        kind: of a classification.

    Returns:
        The folder.

    Raises:
        UserError: if the folder already has results, metrics are not percentages, or a fact
            contradicts the file.
    """
    if (folder / RESULTS).exists() or (folder / "manifest.json").exists():
        raise UserError(f"{folder} already contains a run; choose another --out")
    given = {name: value for name, value in (facts or {}).items() if value is not None}
    for name, value in found.stated.items():
        if name in given and given[name] != value:
            raise UserError(f"--{name} {given[name]}: the file states {value}")
    known = {**given, **found.stated}
    names = _DETECTION if found.detection else _CLASSIFICATION
    missing = [_WORDS[name] for name in names if name not in known]
    common = {
        "schema": SCHEMA,
        "external": found.producer,
        "source": source or None,
        "seed": known.get("seed", 0),
        "not_stated": missing,
        "dataset": {
            "name": known.get("dataset", _UNKNOWN),
            **({"images": known["images"]} if "images" in known else {}),
        },
        "initialization": {"kind": "pretrained", "method": method, "detail": known.get("detail")},
        "metrics": found.metrics,
    }
    content = {**common, **(_detection(known) if found.detection else _classification(known, kind))}
    if not found.detection:
        content["epoch"] = found.epoch
    results = results_of(content, str(folder))
    if problem := problem_of(results):
        raise UserError(f"{source}: {problem}")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RESULTS, results.as_json())
    return folder


def _detection(known: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol's part of a detection's results."""
    return {
        "stage": "detection",
        "architecture": {
            "backbone": known.get("backbone", _UNKNOWN),
            "meta": known.get("detector", ""),
            "head": known.get("head", ""),
        },
        "schedule": {
            "name": known.get("schedule", _UNKNOWN),
            "iterations": known.get("iterations"),
            "batch_size": known.get("batch_size"),
            "base_lr": known.get("lr"),
        },
    }


def _classification(known: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The protocol's part of a classification's results."""
    return {
        "stage": "evaluation",
        "kind": kind,
        "architecture": {"backbone": known.get("backbone", _UNKNOWN)},
        "protocol": {key: known[key] for key in ("epochs", "batch_size", "lr") if key in known},
    }
