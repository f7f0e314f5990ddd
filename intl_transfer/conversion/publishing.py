"""Renames verified weights and their accompanying files to their final names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from intl_transfer.conversion.evidence import of_images
from intl_transfer.conversion.targets import DETECTRON2
from intl_transfer.runs import write_atomically, write_json
from intl_transfer.runs.atomic import sync_folder


def publish(written: Path, out: Path, report: dict[str, Any], beside: tuple[str, ...] = ()) -> None:
    """Renames the verified file, so that weights never have the report of others."""
    with open(written, "rb") as file:
        os.fsync(file.fileno())
    drafts = {".json": written.with_suffix(".json")}
    write_json(drafts[".json"], report)
    if report["format"] == DETECTRON2:
        drafts[".yaml"] = written.with_suffix(".yaml")
        text = fragment(out.name, report).encode()
        write_atomically(drafts[".yaml"], lambda file: file.write(text))
    for suffix in drafts:
        out.with_suffix(suffix).unlink(missing_ok=True)
    for name in beside:
        (out.parent / name).unlink(missing_ok=True)
    sync_folder(out.parent)  # otherwise a crash could leave an older report with new weights
    os.replace(written, out)
    for name in beside:
        os.replace(written.parent / name, out.parent / name)
    for suffix in (".yaml", ".json"):  # the report last: it marks completeness
        if suffix in drafts:
            os.replace(drafts[suffix], out.with_suffix(suffix))
    sync_folder(out.parent)


def fragment(name: str, report: Mapping[str, Any]) -> str:
    """The settings of a weights file, as a Detectron2 configuration.

    Args:
        name: of the file.
        report: of the conversion.
    """
    nested: dict[str, Any] = {}
    for key, value in report["config"].items():
        *folders, leaf = key.split(".")
        place = nested
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = value
    evidence = report["provenance"]["evidence"]
    source = "; ".join(of_images(evidence)) + "."
    return (
        f"# How {name} takes its images (sha256 {report['sha256'][:16]}). train_net.py follows\n"
        f"# these values and refuses a configuration that contradicts them.\n# {source}\n"
        + yaml.safe_dump(nested, sort_keys=False, default_flow_style=None)
    )
