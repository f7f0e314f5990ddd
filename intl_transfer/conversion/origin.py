"""The provenance of a network, for reports, converted files and results."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from intl_transfer.conversion.backbone import Backbone
from intl_transfer.runs.private import portable_path
from intl_transfer.runs.records import Initialization, Provenance

# Facts of a network itself, and those that a user may have added to its file's.
_OF_NOW = (
    *("branch", "backbone", "method", "pretrain_run", "label"),
    *("stem", "stem_source", "pixels", "evidence"),
)


def provenance_of(backbone: Backbone, architecture: str) -> dict[str, Any]:
    """The provenance of a backbone, for reports, converted files and results.

    That of a converted file is its source's, however often it was converted since; facts given by
    the user or assumed are those of now.
    """
    found = {
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
        "pixels": {**backbone.settings.described(), "source": backbone.settings.source},
        "evidence": {fact: source.as_json() for fact, source in backbone.evidence().items()},
    }
    earlier = (backbone.provenance or {}).items()
    kept = {key: value for key, value in earlier if isinstance(key, str) and isinstance(value, str)}
    return {**found, **kept, **{key: found[key] for key in _OF_NOW if key in found}}


def initialization(
    weights_sha256: str | None = None, provenance: Mapping[str, Any] | None = None
) -> Initialization:
    """The initialization of a network, for results.

    Args:
        weights_sha256: of the file that was loaded; None for random initialization.
        provenance: of the file, if stated.

    Returns:
        With the kind ``random``, ``pretrained`` or ``supervised``.
    """
    method: str | None = "random init"
    kind = "random"
    if weights_sha256 is not None:
        method = provenance.get("method") if provenance else None
        # Its first word: "self-supervised" is another, as is any that qualifies it.
        supervised = re.match(r"\s*supervised\b", method or "", re.IGNORECASE)
        kind = "supervised" if supervised else "pretrained"
    origin = None if provenance is None else Provenance.of(dict(provenance), "provenance")
    return Initialization(
        kind=kind, method=method, weights_sha256=weights_sha256, provenance=origin
    )
