"""Barlow Twins: facebookresearch/barlowtwins, main.py.

Checkpoints hold ``model/module.backbone.*`` beside a projector and the loss's own batch norm
``module.bn``; the final ``resnet50.pth`` is a plain torchvision state dict.
"""

from __future__ import annotations

from intl_transfer.conversion.adapters.base import ANY, ONLINE, Layout

LAYOUT = Layout(
    "Barlow Twins",
    {ONLINE: rf"{ANY}backbone\."},
    "model/module.backbone.",
    required_keys=(rf"^{ANY}projector\.0\.weight$", rf"^{ANY}bn\.running_mean$"),
    method_name="Barlow Twins",
    # Three linear layers without biases.
    only=(r"projector\.(?:[036]\.weight|[14]\.\w+)$", r"bn\.(?:running_\w+|num_batches_tracked)$"),
)
