"""Checkpoint in, verified Detectron2 weights out; or nothing at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intl_transfer.conversion import verify
from intl_transfer.conversion.detectron2 import audit, to_detectron2
from intl_transfer.conversion.formats import Branch, read_backbone
from intl_transfer.errors import UserError
from intl_transfer.runs import sha256_file, write_json


def convert(
    source: str | Path, out: str | Path, branch: Branch = "online", force: bool = False
) -> dict[str, Any]:
    """Converts a checkpoint to Detectron2 weights and proves the result right.

    The file is written under a temporary name, loaded by Detectron2's own checkpointer, compared
    with torchvision's network stage by stage, and only then takes its name.

    Args:
        source: a pretraining run's directory or a checkpoint.
        out: the ``.pth`` to write; the report goes beside it as ``.json``.
        branch: ``"online"`` or ``"target"`` where a checkpoint holds both.
        force: replace an existing file.

    Returns:
        The report: ``provenance``, ``architecture``, ``parity``, ``sha256``, ``config``.

    Raises:
        UserError: if the source is not a whole, sound ResNet, the features differ, or the file
            cannot be written. Nothing is written then.
    """
    source, out = Path(source), Path(out)
    _check_target(source, out, force)
    backbone = read_backbone(source, branch)
    try:
        architecture = audit(backbone.state)
    except UserError as error:
        raise UserError(f"{backbone.source_path}: {error}") from None
    provenance = {
        "source_path": backbone.source_path,
        "source_sha256": backbone.source_sha256,
        "source_format": backbone.source_format,
        "branch": branch,
        "backbone": architecture,
        "method": backbone.method,
        "pretrain_run": backbone.pretrain_run,
    }
    # Copies: a tensor that is a view would take its whole storage along into the file.
    model = {key: tensor.clone() for key, tensor in to_detectron2(backbone.state).items()}
    content = {
        "model": model,
        "__author__": "intl-transfer",
        # Lets Detectron2 find res5 in the box head of C4 and below the pyramid of FPN.
        "matching_heuristics": True,
        "provenance": provenance,
    }
    report: dict[str, Any] = {
        "provenance": provenance,
        "architecture": architecture,
        "tensors": len(model),
        "dropped": backbone.dropped,
        "config": verify.config_values(architecture),
    }
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.stem}.", dir=out.parent) as folder:
            written = Path(folder) / out.name
            torch.save(content, written)
            report["parity"] = _checked_parity(backbone.state, architecture, written)
            report["sha256"] = sha256_file(written)
            _publish(written, out, report)
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written: {error.strerror}") from None
    return report


def _check_target(source: Path, out: Path, force: bool) -> None:
    """Refuses, before anything is read, a target that must not be written."""
    if out.suffix != ".pth":
        raise UserError(f"{out}: expected a file name ending in .pth")
    for file in (out, out.with_suffix(".json")):
        if file.is_dir():
            raise UserError(f"{file} is a folder; expected the name of a file")
        if file.exists() and source.exists() and file.samefile(source):
            raise UserError(f"{file} is the source itself; give another name")
        if file.exists() and not force:
            raise UserError(f"{file} exists already; give another name, or --force to replace it")


def _checked_parity(
    state: Mapping[str, Tensor], architecture: str, written: Path
) -> dict[str, float]:
    errors = verify.parity(state, architecture, written)
    worst = max(errors, key=lambda stage: errors[stage])
    if not errors[worst] <= verify.TOLERANCE:
        raise UserError(
            f"conversion refused: features differ by {errors[worst]:.2g} (relative) at "
            f"{worst}, at most {verify.TOLERANCE:g} is allowed. Nothing was written"
        )
    return errors


def _publish(written: Path, out: Path, report: dict[str, Any]) -> None:
    """Gives the verified file its name, so that weights never lie beside another file's report."""
    with open(written, "rb") as file:
        os.fsync(file.fileno())
    final = out.with_suffix(".json")
    draft = written.with_suffix(".json")
    write_json(draft, report)
    final.unlink(missing_ok=True)
    os.replace(written, out)
    os.replace(draft, final)
