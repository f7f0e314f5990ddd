"""SwAV: facebookresearch/swav, src/resnet50.py.

The ResNet's names behind ``module.``, beside ``projection_head`` and ``prototypes``; in
``state_dict`` of a checkpoint, bare in the published files.
"""

from __future__ import annotations

from intl_transfer.conversion.adapters.base import ANY, ONLINE, Layout

LAYOUT = Layout(
    "SwAV",
    {ONLINE: ANY},
    "state_dict/module.",
    required_keys=(rf"^{ANY}prototypes\.", rf"^{ANY}projection_head\."),
    method_name="SwAV",
    # DeepCluster v2, of the same repository, has several prototypes.
    only=(r"projection_head\.(?:[013]\.)?\w+$", r"prototypes\.weight$"),
)
