"""Who wrote this checkpoint? Formats are detected from keys, never from a file's name.

Everything is brought to one form: a ResNet's state dict under torchvision's names, without the
classifier. The formats are in :mod:`intl_transfer.conversion.adapters`.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from intl_transfer.conversion.adapters import Adapter, recognize
from intl_transfer.conversion.adapters.base import ALIASES, ONLINE, TARGET, chosen, quoted
from intl_transfer.conversion.audit import check_whole, has_small_stem
from intl_transfer.conversion.evidence import (
    ASSUMED,
    FACTS,
    Source,
    inferred,
    stated,
)
from intl_transfer.conversion.folders import network_file, read_sharded
from intl_transfer.conversion.identify import shard
from intl_transfer.conversion.reading import Content, first_keys, read_content, unwrapped
from intl_transfer.conversion.refusals import count, refuse_odd, unknown
from intl_transfer.conversion.settings import IMAGENET, Settings, from_config, from_statistics
from intl_transfer.conversion.stated import (
    branch_source,
    epochs_of,
    evidence_before,
    sources_of_run,
    with_sources,
)
from intl_transfer.data.statistics import statistics_of
from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.files.jsons import parse_json
from intl_transfer.models import STEMS, Stem
from intl_transfer.runs import MANIFEST, RESULTS, read_manifest, read_results, sha256_file
from intl_transfer.runs.aliases import earlier_spellings
from intl_transfer.runs.checkpoint import FORMAT, load_newest
from intl_transfer.runs.checkpoint import read_checkpoint as read_own_checkpoint
from intl_transfer.runs.settings import flatten

_OURS = stated("this project's pretraining")
# The small stem of this project's files from before they named it.
_FORMER_STEM: Stem = "cifar"
#: Of a file that says itself which stem its network has.
STATED = "the file"


@dataclass(frozen=True)
class Backbone:
    """A backbone and where it comes from.

    Attributes:
        state: torchvision-named tensors, float32 (counters int64), without ``fc``.
        source_path: the file that was read.
        source_sha256: its hash.
        source_format: who wrote it.
        branch: ``online`` or ``target``; a prefix where the format is not known.
        method: pretraining method, where the file says.
        pretrain_run: the pretraining run, where the file says.
        dropped: names in the file that are not of this network's backbone.
        settings: how the network takes its images.
        epochs: of pretraining, where the file says.
        branches: the networks that the file holds.
        prefix: before the names of this network's tensors in the file, for messages.
        provenance: what a file that this project converted says of its source; None for others.
        label: a word of the user's own for it.
        stem: ``imagenet``, or of a 3x3 stem ``cifar`` or ``cifar_published``: both have the same
            shapes.
        sources: by what evidence method, epochs, dataset, branch and stem are said, by the names of
            :data:`intl_transfer.conversion.evidence.FACTS`; those of the images are the settings'.
    """

    state: dict[str, Tensor]
    source_path: str
    source_sha256: str
    source_format: str
    branch: str = ONLINE
    method: str | None = None
    pretrain_run: dict[str, Any] | None = None
    dropped: list[str] = field(default_factory=list)
    settings: Settings = IMAGENET
    epochs: int | None = None
    branches: tuple[str, ...] = (ONLINE,)
    prefix: str = ""
    provenance: dict[str, Any] | None = None
    label: str | None = None
    stem: Stem = "imagenet"
    sources: Mapping[str, Source] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """The file, and where in it the network lies, for messages."""
        return f"{self.source_path}{_behind(self.prefix)}"

    @property
    def stem_source(self) -> str | None:
        """Where the stem is known from, in words; None where it is assumed."""
        source = self.sources.get("stem")
        return None if source is None or source.is_assumed else source.detail or str(source)

    def evidence(self) -> dict[str, Source]:
        """By what evidence each fact is said, in the order that they are shown in."""
        found = {**self.sources, **self.settings.sources()}
        return {fact: found[fact] for fact in FACTS if fact in found}


def load_backbone(path: str | Path, branch: str | None = None) -> dict[str, Tensor]:
    """Reads any known checkpoint as a torchvision-named ResNet state dict.

    Args:
        path: a pretraining run's directory or a checkpoint file.
        branch: ``"online"`` or ``"target"`` (the moving-average copy) where a file holds both; the
            format's default if None.

    Returns:
        Name to tensor, float32, without the classifier.

    Raises:
        UserError: if the file is absent, damaged, unsafe or of no known format.
    """
    return read_backbone(path, branch).state


def read_backbone(path: str | Path, branch: str | None = None) -> Backbone:
    """As :func:`load_backbone`, with the backbone's origin.

    In a pretraining run's directory the exported backbone is read (``target`` and unfinished runs:
    the newest whole checkpoint), in a fine-tuning run's the detector.
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


def _from_run(folder: Path, wish: str | None) -> Backbone:
    branch = _one_of_two(wish)
    manifest = read_manifest(folder)
    if manifest.stage == "detection" and (folder / "model_final.pth").exists():
        return _from_file(folder / "model_final.pth", wish)
    if manifest.stage != "pretrain":
        raise UserError(
            f"{folder} holds a '{manifest.stage}' run; expected a pretraining run, or a "
            "detector with its model_final.pth"
        )
    exported = folder / "backbone.safetensors"
    if exported.exists() and branch == ONLINE:
        found = _from_file(exported, wish)
        # A safetensors file has no checksums of its own; the run's results hold its hash.
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
            f"checkpoint that can be read; its status is '{manifest.status}'"
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
        return _network_in(path, branch)
    except UserError as error:
        part = shard(path)  # which may hold all of a network, or a part
        if part is None or part in str(error):
            raise
        raise UserError(f"{error}. It is {part}") from None


def _network_in(path: Path, branch: str | None) -> Backbone:
    content, sha256 = _opened(path)
    if content.values.get("format") == FORMAT:
        # Read again, with every record's checksum verified.
        return _from_own(path, read_own_checkpoint(path), _one_of_two(branch))
    found = recognize(content)
    if found is None:
        raise UserError(f"{path}: {unknown(content)}")
    adapter, branches = found
    branch, wish = _branch_of(path, content, adapter, branches, branch)
    try:
        state, dropped = adapter.to_torchvision(content, branch)
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    refuse_odd(content, adapter.prefix(content, branch))
    content.verify(state.values())
    said = {key: _said(content, key) for key in ("provenance", "config")}
    origin: Mapping[str, Any] = said["provenance"] or content.metadata
    kind = adapter.name
    settings = _settings_stated(content, said["config"]) or adapter.settings(content)
    known = said["provenance"].get("stem_source") is not None  # else it was assumed
    stem = said["provenance"].get("stem") if known else None
    format_stem = adapter.small_stem
    before = evidence_before(said["provenance"])
    if "pretrain_run" in content.metadata:
        kind = "intl-transfer backbone"
        settings = _trained_on(content.metadata.get("normalize"), path)
        stem, format_stem = content.metadata.get("stem"), _FORMER_STEM
    method, run = _origin(origin.get("method"), origin.get("pretrain_run"), path)
    sources: dict[str, Source] = {"branch": branch_source(adapter, branches, wish)}
    if method is not None:
        sources["method"] = stated("method")
    elif (fact := adapter.method(content)) is not None:
        method, sources["method"] = fact.value, fact.source
    epochs, counted = epochs_of(content)
    if counted is not None:
        sources["epochs"] = counted
    sources |= sources_of_run(run) | before
    if said["provenance"]:
        settings = with_sources(settings, before)
    return _backbone(
        path,
        state,
        kind,
        branch=branch,
        method=method,
        pretrain_run=run,
        dropped=dropped,
        settings=settings,
        epochs=epochs,
        branches=tuple(branches),
        prefix=adapter.prefix(content, branch),
        provenance=said["provenance"] or None,
        stem=stem,
        format_stem=format_stem,
        sources=sources,
        sha256=sha256,
    )


def _branch_of(
    path: Path, content: Content, adapter: Adapter, branches: list[str], branch: str | None
) -> tuple[str, str | None]:
    """The network to read, and the one that was asked for, as the file spells it.

    Raises:
        UserError: if there are several and none is the default, or not the one asked for.
    """
    if branch is not None and branch not in branches:
        branch = unwrapped(branch)  # as whoever knows the file writes it
    if branch is None and len(branches) > 1 and not {ONLINE, TARGET}.issuperset(branches):
        counts = ", ".join(f"{quoted(n)} ({count(content, n)} tensors)" for n in branches)
        raise UserError(
            f"{path}: tensors of {len(branches)} ResNets, or of one whose names are mixed, behind "
            f"the prefixes {counts}. Choose one with --branch PREFIX, as in: intl-transfer convert "
            f"{path} OUT --branch {shlex.quote(branches[0].strip(chr(39)))}"
        )
    return chosen(branches, branch, f"{path} ({adapter.name})"), branch


def _opened(path: Path) -> tuple[Content, str | None]:
    """A file's content, or that of the files that an index names; the latter with their hash."""
    if path.name.endswith(".index.json"):
        return read_sharded(path)
    return read_content(path), None


def _settings_stated(content: Content, config: dict[str, Any]) -> Settings | None:
    """How a file that this project converted says that its network takes images."""
    # What was assumed when it was converted is no better known since.
    assumed = False
    for key in ("config_source", *earlier_spellings("config_source")):
        assumed |= key in content.values and content.values[key] is None
        assumed |= content.metadata.get(key) == "null"
    return from_config(config, ASSUMED if assumed else stated("config"))


def _trained_on(normalize: Any, path: Path) -> Settings:
    """The settings of this project's pretraining by the statistics that it took.

    Args:
        normalize: as a checkpoint's configuration or, as JSON, a backbone's file has it; None in
            those of before it was a setting, when ImageNet's were taken always.
        path: the file, for messages.
    """
    value = "imagenet" if normalize is None else normalize
    if isinstance(value, str) and value.startswith("{"):
        with contextlib.suppress(UserError):  # refused below
            value = parse_json(value, str(path))
    return from_statistics(statistics_of(value, f"{path}: normalize"), _OURS)


def _said(content: Content, key: str) -> dict[str, Any]:
    """What a file that this project converted says of itself; empty for others."""
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
        raise UserError(f"{path} is not a whole checkpoint: expected a state dict as '{key}'")
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
    method, run = _origin(method, run, path)
    branches = (ONLINE, TARGET) if content.get("target") is not None else (ONLINE,)
    config = content.get("config")
    parts = [config.get(part) if isinstance(config, dict) else None for part in ("model", "data")]
    model, data = (part if isinstance(part, dict) else {} for part in parts)
    sources = {"branch": stated(key), **sources_of_run(run)}
    if method is not None:
        sources["method"] = stated("run.method")
    return _backbone(
        path,
        state,
        "intl-transfer checkpoint",
        sources=sources,
        branch=branch,
        method=method,
        pretrain_run=run,
        dropped=[],
        settings=_trained_on(data.get("normalize"), path),
        branches=branches,
        stem=model.get("stem"),
        format_stem=_FORMER_STEM,
    )


def _stem(
    state: Mapping[str, Tensor], said: Any, format_stem: Stem | None, path: Path
) -> tuple[Stem, Source]:
    """Which stem a network has, and where that is from."""
    is_small = has_small_stem(state)
    if said is not None:
        if said not in STEMS or is_small != (said != "imagenet"):
            size = "x".join(map(str, state["conv1.weight"].shape[-2:]))
            raise UserError(
                f"{path} says that its stem is '{said}'; expected one of {', '.join(STEMS)} that "
                f"fits a first convolution of {size}. Upgrade intl-transfer if the file is newer"
            )
        return said, stated(STATED)
    if not is_small:
        return "imagenet", stated("its shape")
    return (format_stem, inferred("the format")) if format_stem else ("cifar", ASSUMED)


def _backbone(
    path: Path,
    state: Mapping[str, Tensor],
    kind: str,
    *,
    dropped: list[str],
    stem: Any = None,
    format_stem: Stem | None = None,
    sha256: str | None = None,
    **facts: Any,
) -> Backbone:
    dropped = [*dropped, *(key for key in state if key.startswith("fc."))]
    state = {
        key: tensor.detach().float() if tensor.is_floating_point() else tensor
        for key, tensor in state.items()
        if not key.startswith("fc.")
    }
    try:
        check_whole(state)
    except UserError as error:
        raise UserError(f"{path}{_behind(facts.get('prefix', ''))}: {error}") from None
    facts["stem"], source = _stem(state, stem, format_stem, path)
    earlier = facts.get("sources", {})
    # What a file of this project's converter says of its stem is as good as it was then.
    kept = earlier.get("stem") if stem is not None else None
    facts["sources"] = {**earlier, "stem": kept or source}
    digest = sha256 or sha256_file(path)
    return Backbone(state, str(path.resolve()), digest, kind, dropped=dropped, **facts)


def _behind(prefix: str) -> str:
    """Where in a file a network lies, for messages."""
    return f", behind '{prefix}'" if prefix else ""


def _origin(method: Any, run: Any, path: Path) -> tuple[str | None, dict[str, Any] | None]:
    """What a file says of its pretraining, if it is such that a report can hold it."""
    try:
        run = parse_json(run, str(path)) if isinstance(run, str) else run
        json.dumps(run, allow_nan=False)
        if isinstance(run, dict | None) and isinstance(method, str | None):
            return method, run
    except (TypeError, ValueError, UserError):
        pass  # neither JSON nor what JSON can hold
    warnings.warn(f"{path}: what it says of its pretraining is not readable; left out")
    return None, None
