"""ResNets behind unknown prefixes: a single one is used, among several the user chooses.

The branches are called by their prefixes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from intl_transfer.conversion.adapters.base import Place, places_in
from intl_transfer.conversion.evidence import Fact
from intl_transfer.conversion.reading import Content
from intl_transfer.conversion.settings import IMAGENET, Settings
from intl_transfer.models import Stem


class Prefixed:
    """See :class:`intl_transfer.conversion.adapters.base.Adapter`."""

    name = "a ResNet behind a prefix"

    def find(self, content: Content) -> dict[str, Place]:
        """Prefix to place."""
        return {place.prefix or "''": place for place in places_in(content.tensors)}

    def branches(self, content: Content) -> list[str]:
        """The prefixes."""
        return list(self.find(content))

    def to_torchvision(self, content: Content, branch: str) -> tuple[dict[str, Tensor], list[str]]:
        """The ResNet behind one of them."""
        return self.find(content)[branch].read(content.tensors)

    def from_torchvision(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Without any prefix."""
        return dict(state)

    def prefix(self, content: Content, branch: str) -> str:
        """The branch's name."""
        return self.find(content)[branch].prefix

    def method(self, content: Content) -> Fact | None:
        """Not known."""
        return None

    def small_stem(self, content: Content) -> Stem | None:
        """Not known."""
        return None

    def settings(self, content: Content) -> Settings:
        """Assumed."""
        return IMAGENET


PREFIXED = Prefixed()
