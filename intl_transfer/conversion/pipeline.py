"""Checkpoint in, verified Detectron2 weights out; or nothing at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

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
        UserError: if the source is not a whole, sound ResNet or the features differ. Nothing is
            written then.
    """
    out = Path(out)
    if out.suffix != ".pth":
        raise UserError(f"{out}: expected a file name ending in .pth")
    if out.exists() and not force:
        raise UserError(f"{out} exists already; give another name, or --force to replace it")
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
    content = {
        "model": to_detectron2(backbone.state),
        "__author__": "intl-transfer",
        # Lets Detectron2 find res5 in the box head of C4 and below the pyramid of FPN.
        "matching_heuristics": True,
        "provenance": provenance,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.stem}.", dir=out.parent) as folder:
        written = Path(folder) / out.name
        torch.save(content, written)
        errors = verify.parity(backbone.state, architecture, written)
        worst = max(errors, key=lambda stage: errors[stage])
        if not errors[worst] <= verify.TOLERANCE:
            raise UserError(
                f"conversion refused: features differ by {errors[worst]:.2g} (relative) at "
                f"{worst}, at most {verify.TOLERANCE:g} is allowed. Nothing was written"
            )
        report = {
            "provenance": provenance,
            "architecture": architecture,
            "tensors": len(content["model"]),  # type: ignore[arg-type]
            "dropped": backbone.dropped,
            "parity": errors,
            "sha256": sha256_file(written),
            "config": verify.config_values(architecture),
        }
        with open(written, "rb") as file:
            os.fsync(file.fileno())
        os.replace(written, out)
    write_json(out.with_suffix(".json"), report)
    return report
