"""The evidence for each fact about a checkpoint: five levels.

Weights can be verified, metadata cannot. Only facts stated in the file or read from its
configuration count as known. Names of tensors are not proof, since code derived from a method keeps
its names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

from intl_transfer.runs.records import Evidence

#: Facts with recorded evidence, in display order.
FACTS = (
    "pixels",
    "channels",
    "strides",
    "method",
    "epochs",
    "dataset",
    "branch",
    "stem",
)


@dataclass(frozen=True)
class Source:
    """The source of one fact.

    Attributes:
        level: the kind of evidence.
        detail: what was read, or the names it was inferred from; may be empty.
    """

    level: Evidence
    detail: str = ""

    @property
    def is_known(self) -> bool:
        """Whether the file or its configuration states it."""
        return self.level in ("stated in the file", "read from its configuration")

    @property
    def is_assumed(self) -> bool:
        """Whether it is assumed."""
        return self.level == "assumed"

    @property
    def rank(self) -> int:
        """Of two sources the one with the higher rank counts: known, not assumed, assumed."""
        return 2 * self.is_known or int(not self.is_assumed)

    def __str__(self) -> str:
        return f"{self.level} ({self.detail})" if self.detail else self.level

    def as_json(self) -> dict[str, str]:
        """As stored in a provenance: a :class:`intl_transfer.runs.records.FactSource`."""
        return {"level": self.level, "detail": self.detail}


ASSUMED = Source("assumed")


def stated(where: str) -> Source:
    """Stated explicitly in the file."""
    return Source("stated in the file", where)


def configured(where: str) -> Source:
    """Read from the configuration in the file or next to it."""
    return Source("read from its configuration", where)


def inferred(why: str) -> Source:
    """Inferred from names, which other methods may share."""
    return Source("inferred from names", why)


def given_by_user(option: str) -> Source:
    """Given by the user, with an option."""
    return Source("told by the user", option)


def from_json(value: Any) -> Source | None:
    """Reads what :meth:`Source.as_json` wrote; None for anything else."""
    if not isinstance(value, Mapping):
        return None
    level, detail = value.get("level"), value.get("detail")
    if level not in get_args(Evidence) or not isinstance(detail, str):
        return None
    return Source(cast(Evidence, level), detail)


@dataclass(frozen=True)
class Fact:
    """A fact about a checkpoint, with its evidence.

    Attributes:
        value: of the fact.
        source: its evidence.
    """

    value: str
    source: Source


def of_images(evidence: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The evidence for image preprocessing, with facts grouped by source.

    Args:
        evidence: of a provenance.
    """
    facts: dict[str, list[str]] = {}
    for fact in ("pixels", "channels", "strides"):
        if (source := from_json(evidence.get(fact))) is not None:
            facts.setdefault(str(source), []).append(fact)
    return [f"{', '.join(names)}: {source}" for source, names in facts.items()]
