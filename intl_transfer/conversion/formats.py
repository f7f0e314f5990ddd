"""Reads checkpoints of any known format, detected from their keys, never from a file's name.

All are converted to one form: a ResNet's state dict under torchvision's names, without the
classifier. The formats are in :mod:`intl_transfer.conversion.adapters`.
"""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from intl_transfer.conversion.adapters import Adapter, recognize
from intl_transfer.conversion.adapters.base import ALIASES, ONLINE, TARGET, chosen, quoted
from intl_transfer.conversion.averages import unread_average
from intl_transfer.conversion.backbone import (
    FORMER_STEM,
    Backbone,
    build_backbone,
    origin_of,
    own_settings,
)
from intl_transfer.conversion.configurations import with_configurations
from intl_transfer.conversion.evidence import (
    ASSUMED,
    Source,
    stated,
)
from intl_transfer.conversion.folders import network_file, read_sharded
from intl_transfer.conversion.identify import shard
from intl_transfer.conversion.layers import checked_layers
from intl_transfer.conversion.reading import (
    Content,
    first_keys,
    read_content,
    small_json,
    unchanged,
    unwrapped,
)
from intl_transfer.conversion.refusals import count, refuse_odd, unknown
from intl_transfer.conversion.remainder import name_remainder, name_unseen, with_normalization
from intl_transfer.conversion.settings import Settings, from_config
from intl_transfer.conversion.stated import (
    branch_source,
    epochs_of,
    evidence_before,
    run_so_far,
    sources_of_run,
    was_assumed,
    with_sources,
)
from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.files.jsons import parse_json
from intl_transfer.runs import MANIFEST, RESULTS, read_manifest, read_results, sha256_file
from intl_transfer.runs.checkpoint import FORMAT, load_newest
from intl_transfer.runs.checkpoint import read_checkpoint as read_own_checkpoint
from intl_transfer.runs.settings import flatten


def load_backbone(path: str | Path, branch: str | None = None) -> dict[str, Tensor]:
    """Reads any known checkpoint as a torchvision-named ResNet state dict.

    Args:
        path: a pretraining run's directory or a checkpoint file.
        branch: ``"online"`` or ``"target"`` (the moving-average copy) if a file contains both; None
            for the format's default.

    Returns:
        Name to tensor, float32, without the classifier.

    Raises:
        UserError: if the file is missing, damaged, unsafe or has an unknown format, or its numbers
            are not finite.
    """
    return read_backbone(path, branch).state


def read_backbone(path: str | Path, branch: str | None = None) -> Backbone:
    """Like :func:`load_backbone`, with the backbone's origin.

    In a pretraining run's directory the exported backbone is read (``target`` and unfinished runs:
    the newest intact checkpoint), in a fine-tuning run's the detector.
    """
    path = Path(path)
    if path.is_dir() and not (path / MANIFEST).exists():
        if branch is not None and not any(path.iterdir()):
            _one_of_two(branch)
        path = network_file(path)
    if path.is_dir():
        return _from_run(path, branch)
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a checkpoint or a run directory")
    return _from_file(path, branch)


def _from_run(folder: Path, requested: str | None) -> Backbone:
    branch = _one_of_two(requested)
    manifest = read_manifest(folder)
    if manifest.stage == "detection" and (folder / "model_final.pth").exists():
        return _from_file(folder / "model_final.pth", requested)
    if manifest.stage != "pretrain":
        raise UserError(
            f"{folder} contains a '{manifest.stage}' run; expected a pretraining run, or a "
            "detector with its model_final.pth"
        )
    exported = folder / "backbone.safetensors"
    if exported.exists() and branch == ONLINE:
        found = _from_file(exported, requested)
        # A safetensors file has no checksums; the run's results contain its hash.
        results = read_results(folder)
        expected = results.get("backbone_sha256") if results is not None else None
        if expected not in (None, found.source_sha256):
            raise UserError(
                f"{exported} is damaged or not this run's: its sha256 is {found.source_sha256}, "
                f"{RESULTS} says {expected}. Restore it, or convert a file in {folder}/checkpoints"
            )
        return found
    newest = load_newest(folder / "checkpoints")
    if newest is None:
        raise UserError(
            f"{folder} has no {'backbone.safetensors and no ' if branch == ONLINE else ''}"
            f"readable checkpoint; its status is '{manifest.status}'"
        )
    path, content = newest
    return _from_own(path, content, branch)


def _one_of_two(wish: str | None) -> str:
    """The branch that was asked for, of a file that has no others than the two."""
    branch = ONLINE if wish is None else ALIASES.get(wish, wish)
    if branch not in (ONLINE, TARGET):
        hint = did_you_mean(branch, (ONLINE, TARGET))
        raise UserError(f"no branch '{branch}'; expected online or target.{hint}")
    return branch


def _from_file(path: Path, branch: str | None) -> Backbone:
    try:
        with unchanged(path):
            return _network_in(path, branch)
    except UserError as error:
        part = shard(path)  # which may contain all of a network, or a part
        if part is None or part in str(error):
            raise
        raise UserError(f"{error}. It is {part}") from None


def _network_in(path: Path, branch: str | None) -> Backbone:
    content, sha256 = _opened(path)
    if content.values.get("format") == FORMAT:
        # Read again, with every record's checksum verified.
        return _from_own(path, read_own_checkpoint(path), _one_of_two(branch))
    adapter, branches = _recognized(path, content)
    branch, requested = _branch_of(path, content, adapter, branches, branch)
    try:
        state, dropped = adapter.to_torchvision(content, branch)
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    prefix = adapter.prefix(content, branch)
    refuse_odd(content, prefix)
    content, sha256 = _with_report(content, sha256)
    recorded = {key: _recorded(content, key) for key in ("provenance", "config")}
    origin: Mapping[str, Any] = recorded["provenance"] or content.metadata
    kind = adapter.name
    settings = _settings_of(content, adapter, recorded["config"])
    known = recorded["provenance"].get("stem_source") is not None  # else it was assumed
    stem = recorded["provenance"].get("stem") if known else None
    format_stem = adapter.small_stem(content)
    before = evidence_before(recorded["provenance"])
    if "pretrain_run" in content.metadata:
        kind = "intl-transfer backbone"
        settings = own_settings(content.metadata.get("normalize"), path)
        stem, format_stem = content.metadata.get("stem"), FORMER_STEM
    _name_unread(content, prefix)
    settings, stem = _by_layers(content, state, prefix, settings, stem)
    state = content.kept(state)  # after the layers, which are found by their tensors
    method, run = origin_of(origin.get("method"), origin.get("pretrain_run"), path)
    sources: dict[str, Source] = {"branch": branch_source(adapter, content, branches, requested)}
    if method is not None:
        sources["method"] = stated("method")
    elif (fact := adapter.method(content)) is not None:
        method, sources["method"] = fact.value, fact.source
    epochs, counted = epochs_of(content)
    if counted is not None:
        sources["epochs"] = counted
    sources |= sources_of_run(run) | before
    if recorded["provenance"]:
        settings = with_sources(settings, before)
    return build_backbone(
        path,
        state,
        kind,
        branch=_branch_converted(path, recorded["provenance"], branch, requested),
        method=method,
        pretrain_run=run,
        dropped=dropped,
        settings=settings,
        epochs=epochs,
        branches=tuple(branches),
        prefix=prefix,
        provenance=recorded["provenance"] or None,
        stem=stem,
        format_stem=format_stem,
        sources=sources,
        sha256=sha256,
        files=content.files,
    )


def _name_unread(content: Content, prefix: str) -> None:
    """Warns of a moving average, or parts of the network, that are not read."""
    if (average := unread_average(content)) is not None:
        warnings.warn(f"{content.path}: {average}")
    name_remainder(content, prefix)
    name_unseen(content, prefix)


def _recognized(path: Path, content: Content) -> tuple[Adapter, list[str]]:
    """The adapter of a file, and the networks in it."""
    found = recognize(content)
    if found is None:
        raise UserError(f"{path}: {unknown(content)}")
    return found


def _by_layers(
    content: Content, state: Mapping[str, Tensor], prefix: str, settings: Settings, stem: Any
) -> tuple[Settings, Any]:
    """Settings and stem, with what layers in the file say of them."""
    settings = with_normalization(settings, content, state)
    layers = checked_layers(content, state, prefix)
    return (settings, stem) if layers is None else (layers.applied(settings), layers.stem)


def _branch_of(
    path: Path, content: Content, adapter: Adapter, branches: list[str], branch: str | None
) -> tuple[str, str | None]:
    """The network to read, and the requested one in the file's spelling.

    Raises:
        UserError: if there are several without a default, or the requested one does not exist.
    """
    if branch is not None and branch not in branches:
        branch = unwrapped(branch)  # in the file's own spelling
    if branch is None and len(branches) > 1 and not {ONLINE, TARGET}.issuperset(branches):
        counts = ", ".join(f"{quoted(n)} ({count(content, n)} tensors)" for n in branches)
        raise UserError(
            f"{path}: tensors of {len(branches)} ResNets, or of one whose names are mixed, behind "
            f"the prefixes {counts}. Choose one with --branch PREFIX, as in: intl-transfer convert "
            f"{path} OUT --branch {shlex.quote(branches[0].strip(chr(39)))}"
        )
    return chosen(branches, branch, f"{path} ({adapter.name})"), branch


def _branch_converted(
    path: Path, provenance: Mapping[str, Any], branch: str, requested: str | None
) -> str:
    """The branch of a file's network: of a converted one, that of its source.

    Raises:
        UserError: if the other one of the two was requested.
    """
    before = provenance.get("branch")
    if not isinstance(before, str):
        return branch
    asked = None if requested is None else ALIASES.get(requested, requested)
    if asked is not None and {asked, before} == {ONLINE, TARGET}:
        raise UserError(f"{path} was converted from the branch '{before}'; omit --branch {asked}")
    return before


def _opened(path: Path) -> tuple[Content, str | None]:
    """A file's content, or that of the files in an index, with their hash."""
    if path.name.endswith(".index.json"):
        return read_sharded(path)
    return read_content(path), None


def _settings_of(content: Content, adapter: Adapter, config: dict[str, Any]) -> Settings:
    """Image preprocessing stated in a file converted by this project, or found elsewhere."""
    own = from_config(config, ASSUMED if was_assumed(content) else stated("config"))
    return own or with_configurations(adapter.settings(content), content)


def _with_report(content: Content, sha256: str | None) -> tuple[Content, str | None]:
    """Adds the metadata of the conversion's report beside a file that has names of tensors alone.

    Returns:
        The content, and the file's hash where it was computed.
    """
    file = content.path.with_suffix(".json")
    if sha256 is not None or "pretrain_run" in content.metadata or _recorded(content, "provenance"):
        return content, sha256
    report = small_json(file)
    kept = {key: report.get(key) for key in ("provenance", "config", "config_source")}
    if not isinstance(kept["provenance"], dict) or not isinstance(kept["config"], dict):
        return content, None
    sha256 = sha256_file(content.path)
    if report.get("sha256") != sha256:  # of another file
        return content, sha256
    content.beside(file.name)
    return replace(content, values={**content.values, **kept}), sha256


def _recorded(content: Content, key: str) -> dict[str, Any]:
    """Metadata of a file converted by this project; empty for others."""
    value: Any = content.values.get(key)
    if key in content.metadata:
        try:
            value = parse_json(content.metadata[key], str(content.path))
        except UserError:
            value = None
    return value if isinstance(value, dict) else {}


def _from_own(path: Path, content: Mapping[str, Any], branch: str) -> Backbone:
    key = "model" if branch == ONLINE else "target"
    source = content.get(key)
    if branch == TARGET and source is None:
        config = content.get("config")
        method = flatten(config if isinstance(config, dict) else {}).get("loss.method", "intl")
        raise UserError(f"{path} has no moving-average copy (trained with loss.method={method})")
    if not isinstance(source, dict):
        raise UserError(f"{path} is not a complete checkpoint: expected a state dict as '{key}'")
    prefix = "backbone."
    state = {
        key[len(prefix) :]: value
        for key, value in source.items()
        if isinstance(value, Tensor) and key.startswith(prefix)
    }
    if not state:
        raise UserError(f"{path}: no key of '{key}' begins with '{prefix}' ({first_keys(source)})")
    run = content.get("run")
    method = run.get("method") if isinstance(run, dict) else None
    method, run = origin_of(method, run, path)
    run = run_so_far(run, content, str(path))
    branches = (ONLINE, TARGET) if content.get("target") is not None else (ONLINE,)
    config = content.get("config")
    parts = [config.get(part) if isinstance(config, dict) else None for part in ("model", "data")]
    model, data = (part if isinstance(part, dict) else {} for part in parts)
    sources = {"branch": stated(key), **sources_of_run(run)}
    if method is not None:
        sources["method"] = stated("run.method")
    return build_backbone(
        path,
        state,
        "intl-transfer checkpoint",
        sources=sources,
        branch=branch,
        method=method,
        pretrain_run=run,
        dropped=[],
        settings=own_settings(data.get("normalize"), path),
        branches=branches,
        stem=model.get("stem"),
        format_stem=FORMER_STEM,
    )
