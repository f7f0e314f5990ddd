"""The evidence for each fact about a checkpoint: five levels, the same everywhere.

Tensors prove themselves; what is said *around* them does not. Only what a file states and what was
read from its configuration is called known. Names of tensors are no proof: other people's code
keeps the names of the methods that it began from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

from intl_transfer.runs.records import Evidence

#: What evidence is recorded of, in the order in which it is shown.
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
    """Where one fact is from.

    Attributes:
        level: the kind of evidence.
        detail: what was read, or which names it was inferred from; "" where there is no more to
            say.
    """

    level: Evidence
    detail: str = ""

    @property
    def is_known(self) -> bool:
        """Whether the file or its configuration says it."""
        return self.level in ("stated in the file", "read from its configuration")

    @property
    def is_assumed(self) -> bool:
        """Whether nothing says it."""
        return self.level == "assumed"

    def __str__(self) -> str:
        return f"{self.level} ({self.detail})" if self.detail else self.level

    def as_json(self) -> dict[str, str]:
        """As a provenance holds it: a :class:`intl_transfer.runs.records.FactSource`."""
        return {"level": self.level, "detail": self.detail}


ASSUMED = Source("assumed")


def stated(where: str) -> Source:
    """Stated in the file, in so many words."""
    return Source("stated in the file", where)


def configured(where: str) -> Source:
    """Read from the configuration that the file carries, or that lies beside it."""
    return Source("read from its configuration", where)


def inferred(why: str) -> Source:
    """Inferred from names, which others may have too."""
    return Source("inferred from names", why)


def told(option: str) -> Source:
    """Said by the user, with an option."""
    return Source("told by the user", option)


def from_json(value: Any) -> Source | None:
    """The source that a file written by :meth:`Source.as_json` holds; None for anything else."""
    if not isinstance(value, Mapping):
        return None
    level, detail = value.get("level"), value.get("detail")
    if level not in get_args(Evidence) or not isinstance(detail, str):
        return None
    return Source(cast(Evidence, level), detail)


@dataclass(frozen=True)
class Fact:
    """Something that is said of a checkpoint, and by what evidence.

    Attributes:
        value: what is said.
        source: where it is from.
    """

    value: str
    source: Source


def of_images(evidence: Mapping[str, Mapping[str, str]]) -> list[str]:
    """By what evidence it is said how a network takes images, facts of one source together.

    Args:
        evidence: of a provenance.
    """
    facts: dict[str, list[str]] = {}
    for fact in ("pixels", "channels", "strides"):
        if (source := from_json(evidence.get(fact))) is not None:
            facts.setdefault(str(source), []).append(fact)
    return [f"{', '.join(names)}: {source}" for source, names in facts.items()]
