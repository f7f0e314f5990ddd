"""A checkpoint format: two ResNets below `networks`, beside a memory that only it has."""

from __future__ import annotations

from intl_transfer.conversion.adapters.base import ONLINE, TARGET, Layout

LAYOUT = Layout(
    "memory bank",
    {ONLINE: r"networks/live\.trunk\.", TARGET: r"networks/slow\.trunk\."},
    "networks/live.trunk.",
    required_keys=(r"^memory$",),
    top=("networks", "memory"),
    method_name="Memory bank",
)
