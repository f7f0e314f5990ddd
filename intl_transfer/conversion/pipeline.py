"""Converts a checkpoint to verified weights, atomically."""

from __future__ import annotations

import errno
import json
import pickle
import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from intl_transfer.conversion import verify
from intl_transfer.conversion.adapters import WRITTEN
from intl_transfer.conversion.audit import audit, blank_filters
from intl_transfer.conversion.backbone import Backbone
from intl_transfer.conversion.detectron2 import to_detectron2
from intl_transfer.conversion.formats import read_backbone
from intl_transfer.conversion.hub import HUB, files_beside
from intl_transfer.conversion.metadata import CheckpointMetadata, with_metadata
from intl_transfer.conversion.origin import initialization, provenance_of
from intl_transfer.conversion.publishing import publish
from intl_transfer.conversion.settings import config_values
from intl_transfer.conversion.targets import (
    DETECTRON2,
    check_target,
    clear_leftovers,
    converted_before,
    drafts_of,
    format_of,
    is_folder,
    refuse_existing,
)
from intl_transfer.errors import UserError
from intl_transfer.runs import sha256_file, write_atomically, write_json
from intl_transfer.runs.lock import file_lock

__all__ = ["CheckpointMetadata", "convert", "initialization", "provenance_of", "with_metadata"]


def convert(
    source: str | Path,
    out: str | Path,
    branch: str | None = None,
    force: bool = False,
    *,
    to: str | None = None,
    given: CheckpointMetadata | None = None,
) -> dict[str, Any]:
    """Converts a checkpoint and verifies the result.

    The file is written under a temporary name, loaded by Detectron2's own checkpointer, compared
    with torchvision's network stage by stage, and only then renamed. Formats other than
    Detectron2's are read back and compared tensor by tensor.

    Args:
        source: a pretraining run's directory or a checkpoint.
        out: the file to write: ``.pth`` or ``.pkl`` for Detectron2, ``.safetensors`` for
            torchvision, ``FOLDER/model.safetensors`` with ``to`` for timm's or transformers'
            whole folder; the report goes beside it as ``.json``, for Detectron2 also the
            settings as ``.yaml``.
        branch: ``"online"`` or ``"target"`` if a checkpoint contains both; None for its format's
            default.
        force: replace an existing file.
        to: another format to write, one of
            :data:`intl_transfer.conversion.adapters.WRITTEN`.
        given: metadata that the file does not contain.

    Returns:
        The report: ``provenance``, ``architecture``, ``parity``, ``sha256``, ``config``, …; if an
        identical earlier conversion exists, its report, with ``converted_before``.

    Raises:
        UserError: if the source is not a complete, valid ResNet, the features differ, or the file
            cannot be written. Nothing is written in these cases.
    """
    source, out, given = Path(source), Path(out), given or CheckpointMetadata()
    to = format_of(out, to)
    check_target((source,), out, to)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out.parent} cannot be made: {error.strerror}") from None
    # Conversions to one name share the report, whatever their extension.
    lock = out.parent / f".{out.stem}.lock"
    harm = "two conversions at once would mix weights and reports"
    with file_lock(lock, str(out), harm, remove=True):
        clear_leftovers(out)
        return _convert(source, out, branch, force, to, given)


def _convert(
    source: Path, out: Path, branch: str | None, force: bool, to: str, given: CheckpointMetadata
) -> dict[str, Any]:
    """The work of :func:`convert`, which holds the lock."""
    backbone = with_metadata(read_backbone(source, branch), given)
    check_target(backbone.files, out, to)
    try:
        # Only a file with the stem in its metadata can contain a small one.
        small = out.suffix == ".safetensors" and to not in HUB
        architecture = audit(backbone.state, small_stem=small)
    except UserError as error:
        raise UserError(f"{backbone.place}: {error}") from None
    if (odd := blank_filters(backbone.state)) is not None:
        warnings.warn(f"{backbone.place}: {odd}")
    report = _described(backbone, architecture, to)
    beside: dict[str, bytes] = {}
    if is_folder(out, to):
        beside = files_beside(to, architecture, backbone.settings, report["provenance"])
    if not force:
        before = converted_before(out, report)
        if before is not None:
            return before
        refuse_existing(out, report, to)
    try:
        with tempfile.TemporaryDirectory(prefix=drafts_of(out), dir=out.parent) as folder:
            written = Path(folder) / out.name
            for name, data in beside.items():
                (Path(folder) / name).write_bytes(data)
            report["tensors"] = _write(written, backbone.state, to, report)
            if to == DETECTRON2:
                report["parity"] = _checked_parity(backbone, architecture, written)
            report["sha256"] = sha256_file(written)
            if to != DETECTRON2:
                _check_read_back(written, backbone, report)
            publish(written, out, report, tuple(beside))
    except OSError as error:
        # Not with the temporary name.
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from None
    return report


def _described(backbone: Backbone, architecture: str, to: str) -> dict[str, Any]:
    """The part of the report that is known before writing."""
    return {
        "provenance": provenance_of(backbone, architecture),
        "read_sha256": backbone.source_sha256,  # of a converted file not that of its source
        "architecture": architecture,
        "branches": list(backbone.branches),
        "epochs": backbone.epochs,
        "dropped": backbone.dropped,
        "format": to,
        "config": config_values(architecture, backbone.settings),
        "config_source": backbone.settings.source,
    }


def _write(file: Path, state: Mapping[str, Tensor], to: str, report: Mapping[str, Any]) -> int:
    """Writes the file; returns the number of tensors, without counters."""
    recorded = {key: report[key] for key in ("provenance", "config", "config_source")}
    # Copies: a view would be saved with its whole storage.
    copies = {
        key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in state.items()
    }
    if to == DETECTRON2:
        copies = to_detectron2(copies)
        content = {
            "model": copies,
            "__author__": "intl-transfer",
            # Makes Detectron2 match res5 in the box head of C4 and in the bottom-up network of FPN.
            "matching_heuristics": True,
            **recorded,
        }
    else:
        content = WRITTEN[to].from_torchvision(copies)
        if any(isinstance(value, Mapping) for value in content.values()):
            content.update(recorded)
    if file.suffix == ".safetensors":
        try:
            metadata = {key: json.dumps(value) for key, value in recorded.items()}
            if to in HUB:
                copies, metadata = dict(content), {**metadata, "format": "pt"}
            save_file(copies, file, metadata)
        except SafetensorError as error:  # of a full disk, only as text
            found = re.search(r"os error (\d+)", str(error))
            raise OSError(int(found[1]) if found else errno.EIO, str(error), str(file)) from None
    elif file.suffix == ".pkl":
        content["model"] = {key: tensor.numpy() for key, tensor in content["model"].items()}
        write_atomically(file, lambda opened: pickle.dump(content, opened, protocol=4))
    else:
        write_atomically(file, lambda opened: torch.save(content, opened))
    return sum(not key.endswith("num_batches_tracked") for key in copies)


def _check_read_back(written: Path, backbone: Backbone, report: Mapping[str, Any]) -> None:
    """Checks that every tensor is read back unchanged, and what cannot be seen in them."""
    write_json(written.with_suffix(".json"), report)  # of some formats the only place for it
    again = read_backbone(written)
    for name in ("settings", "method", "stem"):
        facts = [getattr(one, name) for one in (backbone, again)]
        if name == "settings":
            facts = [(one.described(), one.stride_in_1x1) for one in facts]
        if facts[0] is not None and facts[0] != facts[1]:
            raise UserError(
                f"conversion refused: {name} of the written file are read back as {facts[1]}, "
                f"expected {facts[0]}. Nothing was written"
            )
    kept, found = report["provenance"], provenance_of(again, report["architecture"])
    for name in ("branch", "source_sha256"):
        if found[name] != kept[name]:
            raise UserError(
                f"conversion refused: {name} of the written file is read back as {found[name]}, "
                f"expected {kept[name]}. Nothing was written"
            )
    for key, tensor in backbone.state.items():
        if key.endswith("num_batches_tracked"):
            continue
        if key not in again.state or not torch.equal(again.state[key], tensor):
            raise UserError(
                f"conversion refused: '{key}' is not read back unchanged from the written file. "
                "Nothing "
                "was written"
            )


def _checked_parity(backbone: Backbone, architecture: str, written: Path) -> dict[str, float]:
    errors = verify.parity(backbone.state, architecture, written, settings=backbone.settings)
    worst = max(errors, key=lambda stage: errors[stage])
    if not errors[worst] <= verify.TOLERANCE:
        raise UserError(
            f"conversion refused: features differ by {errors[worst]:.2g} (relative) at "
            f"{worst}, at most {verify.TOLERANCE:g} is allowed. Nothing was written"
        )
    return errors
