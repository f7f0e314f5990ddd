"""The backbone of a checkpoint, with its origin and the evidence for each fact."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from intl_transfer.conversion.adapters.base import ONLINE
from intl_transfer.conversion.audit import check_numbers, check_whole, has_small_stem
from intl_transfer.conversion.evidence import ASSUMED, FACTS, Source, inferred, stated
from intl_transfer.conversion.settings import IMAGENET, Settings, from_statistics
from intl_transfer.data.statistics import statistics_of
from intl_transfer.errors import UserError
from intl_transfer.files.jsons import parse_json
from intl_transfer.models import STEMS, Stem
from intl_transfer.runs import sha256_file

_OURS = stated("this project's pretraining")
# The small stem in files of this project that do not state it (earlier versions).
FORMER_STEM: Stem = "cifar"
#: For a file that states its network's stem.
STATED = "the file"


@dataclass(frozen=True)
class Backbone:
    """A backbone and its origin.

    Attributes:
        state: torchvision-named tensors, float32 (counters int64), without ``fc``.
        source_path: the file that was read.
        source_sha256: its hash.
        source_format: the format's name.
        branch: ``online`` or ``target``; a prefix for unknown formats.
        method: pretraining method, if known.
        pretrain_run: the pretraining run, if stated.
        dropped: names in the file that do not belong to this backbone.
        settings: image preprocessing.
        epochs: of pretraining, if stated.
        branches: the networks in the file.
        prefix: of this network's tensors in the file, for messages.
        provenance: the source recorded in a file converted by this project; None for others.
        label: the user's name for it.
        stem: ``imagenet``, or for a 3x3 stem ``cifar`` or ``cifar_published``, which have the same
            shapes.
        sources: evidence for method, epochs, dataset, branch and stem, by the names in
            :data:`intl_transfer.conversion.evidence.FACTS`; for image preprocessing see
            ``settings``.
        files: all that were read for it, the first is ``source_path``.
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
    files: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """The file and the network's prefix in it, for messages."""
        return f"{self.source_path}{_behind(self.prefix)}"

    @property
    def stem_source(self) -> str | None:
        """The evidence for the stem, as text; None if it is assumed."""
        source = self.sources.get("stem")
        return None if source is None or source.is_assumed else source.detail or str(source)

    def evidence(self) -> dict[str, Source]:
        """The evidence for each fact, in display order."""
        found = {**self.sources, **self.settings.sources()}
        return {fact: found[fact] for fact in FACTS if fact in found}


def own_settings(normalize: Any, path: Path) -> Settings:
    """The settings of this project's pretraining, from its normalization statistics.

    Args:
        normalize: from a checkpoint's configuration or, as JSON, a backbone file; None in files of
            earlier versions, which always used ImageNet's.
        path: the file, for messages.
    """
    value = "imagenet" if normalize is None else normalize
    if isinstance(value, str) and value.startswith("{"):
        with contextlib.suppress(UserError):  # reported below
            value = parse_json(value, str(path))
    return from_statistics(statistics_of(value, f"{path}: normalize"), _OURS)


def _stem(
    state: Mapping[str, Tensor], named: Any, format_stem: Stem | None, path: Path
) -> tuple[Stem, Source]:
    """The stem of a network, with the evidence."""
    is_small = has_small_stem(state)
    if named is not None:
        if named not in STEMS or is_small != (named != "imagenet"):
            size = "x".join(map(str, state["conv1.weight"].shape[-2:]))
            raise UserError(
                f"{path} states the stem '{named}'; expected one of {', '.join(STEMS)} that "
                f"fits a first convolution of {size}. Upgrade intl-transfer if the file is newer"
            )
        return named, stated(STATED)
    if not is_small:
        return "imagenet", stated("its shape")
    return (format_stem, inferred("the format")) if format_stem else ("cifar", ASSUMED)


def build_backbone(
    path: Path,
    state: Mapping[str, Tensor],
    kind: str,
    *,
    dropped: list[str],
    stem: Any = None,
    format_stem: Stem | None = None,
    sha256: str | None = None,
    files: Iterable[Path] = (),
    **facts: Any,
) -> Backbone:
    """Checks a network and builds its record.

    Args:
        path: the file.
        state: the network under torchvision's names.
        kind: the format's name.
        dropped: names of omitted tensors.
        stem: stated in the file, if it is.
        format_stem: type of a 3x3 stem in the format, if known.
        sha256: of the file; computed if None.
        files: that were read beside it.
        facts: further fields of :class:`Backbone`.

    Raises:
        UserError: if the network is not a complete ResNet, has numbers that are not finite or
            negative variances, or contradicts the stated stem.
    """
    dropped = [*dropped, *(key for key in state if key.startswith("fc."))]
    state = {
        key: tensor.detach().float() if tensor.is_floating_point() else tensor
        for key, tensor in state.items()
        if not key.startswith("fc.")
    }
    try:
        check_whole(state)
        check_numbers(state)
    except UserError as error:
        raise UserError(f"{path}{_behind(facts.get('prefix', ''))}: {error}") from None
    facts["stem"], source = _stem(state, stem, format_stem, path)
    earlier = facts.get("sources", {})
    # The evidence for the stem of a converted file is that of its conversion.
    kept = earlier.get("stem") if stem is not None else None
    facts["sources"] = {**earlier, "stem": kept or source}
    digest = sha256 or sha256_file(path)
    read = tuple(dict.fromkeys(str(file.resolve()) for file in (path, *files)))
    return Backbone(state, read[0], digest, kind, dropped=dropped, files=read, **facts)


def _behind(prefix: str) -> str:
    """The location of a network in a file, for messages."""
    return f", behind '{prefix}'" if prefix else ""


def origin_of(method: Any, run: Any, path: Path) -> tuple[str | None, dict[str, Any] | None]:
    """The pretraining that a file states, if it can be stored in a report."""
    try:
        run = parse_json(run, str(path)) if isinstance(run, str) else run
        json.dumps(run, allow_nan=False)
        if isinstance(run, dict | None) and isinstance(method, str | None):
            return method, run
    except (TypeError, ValueError, UserError):
        pass  # neither JSON nor representable in JSON
    warnings.warn(f"{path}: its pretraining metadata is unreadable and ignored")
    return None, None
