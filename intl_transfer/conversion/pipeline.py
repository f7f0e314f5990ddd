"""Checkpoint in, verified weights out; or nothing at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from intl_transfer.conversion import verify
from intl_transfer.conversion.adapters import WRITTEN
from intl_transfer.conversion.audit import audit, has_small_stem
from intl_transfer.conversion.detectron2 import to_detectron2
from intl_transfer.conversion.evidence import of_images
from intl_transfer.conversion.evidence import told as told_by
from intl_transfer.conversion.formats import Backbone, read_backbone
from intl_transfer.conversion.hub import HUB, WEIGHTS, files_beside, names_beside
from intl_transfer.conversion.settings import PIXELS, config_values
from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.models import Stem
from intl_transfer.runs import sha256_file, write_atomically, write_json
from intl_transfer.runs.atomic import sync_folder
from intl_transfer.runs.lock import file_lock
from intl_transfer.runs.private import portable_path
from intl_transfer.runs.records import Initialisation, Provenance

DETECTRON2, TORCHVISION = "detectron2", "torchvision"
# Of a report, what is known before anything is written: the same again makes the same file.
_DECIDE = ("provenance", "config", "format")
# By the name of the library that reads it.
_ALSO_CALLED = dict.fromkeys(("mmdet", "mmpretrain", "mmsegmentation"), "openmmlab")
_SUFFIXES = {".pth": DETECTRON2, ".pkl": DETECTRON2, ".safetensors": TORCHVISION}


@dataclass(frozen=True)
class Told:
    """What the user says of a checkpoint that does not say it itself.

    Attributes:
        method: the pretraining method, for tables.
        name: of the pretraining, in place of a configuration's name.
        epochs: of pretraining.
        dataset: it was pretrained on.
        pixels: how it takes its images, by a name of
            :data:`intl_transfer.conversion.settings.PIXELS`.
        label: a word of one's own for it, which tables use where nothing else tells rows apart.
        stem: of a network for small images, ``cifar`` or ``cifar_published``.
    """

    method: str | None = None
    name: str | None = None
    epochs: int | None = None
    dataset: str | None = None
    pixels: str | None = None
    label: str | None = None
    stem: Stem | None = None


def convert(
    source: str | Path,
    out: str | Path,
    branch: str | None = None,
    force: bool = False,
    *,
    to: str | None = None,
    told: Told | None = None,
) -> dict[str, Any]:
    """Converts a checkpoint and proves the result right.

    The file is written under a temporary name, loaded by Detectron2's own checkpointer, compared
    with torchvision's network stage by stage, and only then takes its name. Other formats than
    Detectron2's are read back and compared tensor by tensor.

    Args:
        source: a pretraining run's directory or a checkpoint.
        out: the file to write: ``.pth`` or ``.pkl`` for Detectron2, ``.safetensors`` for
            torchvision, ``FOLDER/model.safetensors`` with ``to`` for timm's or transformers'
            whole folder; the report goes beside it as ``.json``, for Detectron2 also the
            settings as ``.yaml``.
        branch: ``"online"`` or ``"target"`` where a checkpoint holds both; None: its format's
            default.
        force: replace an existing file.
        to: another format to write, one of
            :data:`intl_transfer.conversion.adapters.WRITTEN`.
        told: what the file does not say.

    Returns:
        The report: ``provenance``, ``architecture``, ``parity``, ``sha256``, ``config``, …; of an
        earlier conversion that made the same, which stays, with ``converted_before``.

    Raises:
        UserError: if the source is not a whole, sound ResNet, the features differ, or the file
            cannot be written. Nothing is written then.
    """
    source, out, told = Path(source), Path(out), told or Told()
    to = _format_of(out, to)
    _check_target(source, out, to)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out.parent} cannot be made: {error.strerror}") from None
    # What is converted to one name, whatever its suffix, shares the report.
    lock = out.parent / f".{out.stem}.lock"
    harm = "two conversions at once would mix weights and reports"
    with file_lock(lock, str(out), harm, remove=True):
        _clear_leftovers(out)
        return _convert(source, out, branch, force, to, told)


def _convert(
    source: Path, out: Path, branch: str | None, force: bool, to: str, told: Told
) -> dict[str, Any]:
    """The work of :func:`convert`, which holds the place."""
    backbone = with_told(read_backbone(source, branch), told)
    try:
        # A file whose metadata name the stem can hold a small one.
        small = out.suffix == ".safetensors" and to not in HUB
        architecture = audit(backbone.state, small_stem=small)
    except UserError as error:
        raise UserError(f"{backbone.place}: {error}") from None
    report = _described(backbone, architecture, to)
    beside: dict[str, bytes] = {}
    if _is_folder(out, to):
        beside = files_beside(to, architecture, backbone.settings, report["provenance"])
    if not force:
        before = _converted_before(out, report)
        if before is not None:
            return before
        _refuse_existing(out, report, to)
    try:
        with tempfile.TemporaryDirectory(prefix=_drafts(out), dir=out.parent) as folder:
            written = Path(folder) / out.name
            for name, data in beside.items():
                (Path(folder) / name).write_bytes(data)
            report["tensors"] = _write(written, backbone.state, to, report)
            if to == DETECTRON2:
                report["parity"] = _checked_parity(backbone, architecture, written)
            else:
                _check_read_back(written, backbone.state)
            report["sha256"] = sha256_file(written)
            _publish(written, out, report, tuple(beside))
    except OSError as error:
        # Not under the temporary name, which is gone.
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from None
    return report


def _drafts(out: Path) -> str:
    """How the temporary folders begin in which a file is made."""
    return f".{out.stem}.convert-"


def _clear_leftovers(out: Path) -> None:
    """Removes what a killed conversion to the same name left."""
    for leftover in out.parent.glob(f"{_drafts(out)}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def provenance_of(backbone: Backbone, architecture: str) -> dict[str, Any]:
    """Where a backbone comes from, as reports, converted files and results tell it."""
    return {
        "source_path": portable_path(backbone.source_path),
        "source_sha256": backbone.source_sha256,
        "source_format": backbone.source_format,
        "branch": backbone.branch,
        "backbone": architecture,
        "method": backbone.method,
        "pretrain_run": backbone.pretrain_run,
        **({"label": backbone.label} if backbone.label is not None else {}),
        "stem": backbone.stem,
        "stem_source": backbone.stem_source,
        "pixels": {**backbone.settings.described(), "source": backbone.settings.said_by},
        "evidence": {fact: source.as_json() for fact, source in backbone.evidence().items()},
    }


def initialisation(
    weights_sha256: str | None = None, provenance: Mapping[str, Any] | None = None
) -> Initialisation:
    """What results say a network began with.

    Args:
        weights_sha256: of the file that was loaded; None for random initialisation.
        provenance: where the file comes from, if it says.

    Returns:
        With the kind ``random``, ``pretrained`` or ``supervised``.
    """
    method: str | None = "random init"
    kind = "random"
    if weights_sha256 is not None:
        method = provenance.get("method") if provenance else None
        supervised = method is not None and "supervised" in method.lower().split("-")
        kind = "supervised" if supervised else "pretrained"
    origin = None if provenance is None else Provenance.of(dict(provenance), "provenance")
    return Initialisation(
        kind=kind, method=method, weights_sha256=weights_sha256, provenance=origin
    )


def _described(backbone: Backbone, architecture: str, to: str) -> dict[str, Any]:
    """What the report says before anything is written."""
    return {
        "provenance": provenance_of(backbone, architecture),
        "architecture": architecture,
        "branches": list(backbone.branches),
        "epochs": backbone.epochs,
        "dropped": backbone.dropped,
        "format": to,
        "config": config_values(architecture, backbone.settings),
        "config_said_by": backbone.settings.said_by,
    }


def _format_of(out: Path, to: str | None) -> str:
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
    """What a conversion makes."""
    suffixes = (".json", ".yaml") if to == DETECTRON2 else (".json",)
    beside = names_beside(to) if _is_folder(out, to) else ()
    files = [out.with_suffix(suffix) for suffix in suffixes]
    return [out, *files, *(out.parent / name for name in beside)]


def _is_folder(out: Path, to: str) -> bool:
    """Whether a library's whole folder is written."""
    return to in HUB and out.suffix == ".safetensors"


def _check_target(source: Path, out: Path, to: str) -> None:
    """Refuses, before anything is read, a target that must not be written."""
    for file in _files(out, to):
        if file.is_dir():
            raise UserError(f"{file} is a folder; expected the name of a file")
        if file.exists() and source.exists() and file.samefile(source):
            raise UserError(f"{file} is the source itself; give another name")


def _converted_before(out: Path, report: Mapping[str, Any]) -> dict[str, Any] | None:
    """The report beside a file, if that is what would be made again now."""
    try:
        found = json.loads(out.with_suffix(".json").read_text())
        wanted = json.loads(json.dumps({key: report[key] for key in _DECIDE}))
        same = all(found.get(key) == value for key, value in wanted.items())
        if not same or found["sha256"] != sha256_file(out):
            return None
        return {**found, "converted_before": True}
    except (OSError, ValueError, KeyError, AttributeError, RecursionError):
        return None


def _refuse_existing(out: Path, report: Mapping[str, Any], to: str) -> None:
    """Refuses to replace a file, but for one whose conversion was killed before its report."""
    if out.is_file() and not out.with_suffix(".json").exists():
        with contextlib.suppress(UserError):
            said = read_backbone(out).provenance or {}
            if said.get("source_sha256") == report["provenance"]["source_sha256"]:
                return
    for file in _files(out, to):
        if file.exists():
            raise UserError(f"{file} exists already; give another name, or --force to replace it")


def with_told(backbone: Backbone, told: Told) -> Backbone:
    """The backbone with what the user says of it; what a run of this project says stays.

    Raises:
        UserError: if the file says itself what the user says.
    """
    changes: dict[str, Any] = {}
    sources = dict(backbone.sources)
    if told.method is not None:
        changes["method"] = told.method
        sources["method"] = told_by("--method")
    if told.label is not None:
        changes["label"] = told.label
    if told.pixels is not None:
        changes["settings"] = PIXELS[told.pixels].known_by(told_by(f"--pixels {told.pixels}"))
    if told.stem is not None:
        _check_stem(backbone, told.stem)
        changes["stem"] = told.stem
        sources["stem"] = told_by(f"--stem {told.stem}")
    if told.name is not None or told.epochs is not None or told.dataset is not None:
        if backbone.pretrain_run is not None and backbone.pretrain_run.get("id") is not None:
            raise UserError(
                f"{backbone.source_path} says itself that it is of run "
                f"'{backbone.pretrain_run.get('name')}'; leave --name, --epochs and --dataset away"
            )
        name = told.name or Path(backbone.source_path).stem
        epochs = told.epochs if told.epochs is not None else backbone.epochs
        changes["pretrain_run"] = {
            "id": None,
            "name": name,
            "config_name": name,
            "epochs": "?" if epochs is None else epochs,
            "dataset": told.dataset or "unknown data",
            "seed": None,
        }
        if told.epochs is not None:
            sources["epochs"] = told_by("--epochs")
        if told.dataset is not None:
            sources["dataset"] = told_by("--dataset")
    return replace(backbone, **changes, sources=sources)


def _check_stem(backbone: Backbone, stem: Stem) -> None:
    """Refuses a stem that a file contradicts."""
    if not has_small_stem(backbone.state):
        raise UserError(
            f"--stem {stem}: the first convolution of {backbone.place} is no 3x3; leave --stem away"
        )
    if backbone.sources["stem"].is_known and backbone.stem != stem:
        raise UserError(
            f"--stem {stem}: {backbone.source_path} says itself that its stem is "
            f"'{backbone.stem}'; leave --stem away"
        )


def _write(file: Path, state: Mapping[str, Tensor], to: str, report: Mapping[str, Any]) -> int:
    """Writes the file; gives back how many tensors it wrote, counters aside."""
    said = {key: report[key] for key in ("provenance", "config", "config_said_by")}
    # Copies: a tensor that is a view would take its whole storage along into the file.
    copies = {
        key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in state.items()
    }
    if to == DETECTRON2:
        copies = to_detectron2(copies)
        content = {
            "model": copies,
            "__author__": "intl-transfer",
            # Lets Detectron2 find res5 in the box head of C4 and below the pyramid of FPN.
            "matching_heuristics": True,
            **said,
        }
    else:
        content = WRITTEN[to].from_torchvision(copies)
        if any(isinstance(value, Mapping) for value in content.values()):
            content.update(said)
    if file.suffix == ".safetensors":
        try:
            metadata = {key: json.dumps(value) for key, value in said.items()}
            if to in HUB:
                copies, metadata = dict(content), {**metadata, "format": "pt"}
            save_file(copies, file, metadata)
        except SafetensorError as error:  # of a full disk, in words alone
            found = re.search(r"os error (\d+)", str(error))
            raise OSError(int(found[1]) if found else errno.EIO, str(error), str(file)) from None
    elif file.suffix == ".pkl":
        content["model"] = {key: tensor.numpy() for key, tensor in content["model"].items()}
        write_atomically(file, lambda opened: pickle.dump(content, opened, protocol=4))
    else:
        write_atomically(file, lambda opened: torch.save(content, opened))
    return sum(not key.endswith("num_batches_tracked") for key in copies)


def _check_read_back(written: Path, state: Mapping[str, Tensor]) -> None:
    """Every tensor has to come back as it went in."""
    found = read_backbone(written).state
    for key, tensor in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        if key not in found or not torch.equal(found[key], tensor):
            raise UserError(
                f"conversion refused: '{key}' does not come back from the written file. Nothing "
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


def _publish(
    written: Path, out: Path, report: dict[str, Any], beside: tuple[str, ...] = ()
) -> None:
    """Gives the verified file its name, so that weights never lie beside another file's report."""
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
    sync_folder(out.parent)  # else a crash could bring an older report back beside new weights
    os.replace(written, out)
    for name in beside:
        os.replace(written.parent / name, out.parent / name)
    for suffix in (".yaml", ".json"):  # the report last: where it is, all is
        if suffix in drafts:
            os.replace(drafts[suffix], out.with_suffix(suffix))
    sync_folder(out.parent)


def fragment(name: str, report: Mapping[str, Any]) -> str:
    """The settings that belong to a file of weights, as a Detectron2 configuration.

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
