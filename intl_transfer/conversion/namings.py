"""The ways in which checkpoints spell the tensors of one ResNet, each to torchvision's and back."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Naming:
    """One spelling of a ResNet's tensors, behind whatever prefix.

    Attributes:
        block: matches a tensor inside a residual block; its group ``prefix`` is what comes before.
        to_torchvision: from a name without prefix; None for a part that is not of the backbone,
            such as a head.
        from_torchvision: the other direction.
    """

    block: re.Pattern[str]
    to_torchvision: Callable[[str], str | None]
    from_torchvision: Callable[[str], str]


_INSIDE = r"\.\d+\.(?:conv[123]|bn[123]|downsample)\."
_STAGES = {4: 1, 5: 2, 6: 3, 7: 4}
_NUMBERS = {str(number) for number in _STAGES}


def _same(name: str) -> str | None:
    # Of a top-level name that only another kind of ResNet has (a second convolution in the stem),
    # the audit has to hear.
    return name if re.match(r"(?:conv\d|bn\d|layer\d|stem)\.", name) else None


def _numbered(name: str) -> str | None:
    first, _, rest = name.partition(".")
    if first in ("0", "1"):
        return f"{'conv1' if first == '0' else 'bn1'}.{rest}"
    if first in _NUMBERS:
        return f"layer{_STAGES[int(first)]}.{rest}"
    return None


def _to_numbers(name: str) -> str:
    first, _, rest = name.partition(".")
    numbers = {"conv1": 0, "bn1": 1, **{f"layer{v}": k for k, v in _STAGES.items()}}
    return f"{numbers[first]}.{rest}"


TORCHVISION = Naming(re.compile(rf"(?P<prefix>(?:.*?[./])?)layer[1-4]{_INSIDE}"), _same, str)
# `nn.Sequential(*list(resnet.children())[:-1])`: modules by number, in torchvision's order.
# Numbers say little: other networks number their stages as well, and have norms called bn1.
_NUMBERED = re.compile(r"(?P<prefix>(?:.*?[./])?)[4-7]\.\d+\.conv[123]\.")
SEQUENTIAL = Naming(_NUMBERED, _numbered, _to_numbers)
NAMINGS = (TORCHVISION, SEQUENTIAL)
