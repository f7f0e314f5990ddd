"""VICReg: facebookresearch/vicreg, main_vicreg.py.

Checkpoints hold ``model/module.backbone.*`` beside a projector whose linear layers have biases; the
final ``resnet50.pth`` is a plain torchvision state dict. Its ResNet pads before the first
convolution instead of in it, which is equivalent.
"""

from __future__ import annotations

from intl_transfer.conversion.adapters.base import ANY, ONLINE, Layout

LAYOUT = Layout(
    "VICReg",
    {ONLINE: rf"{ANY}backbone\."},
    "model/module.backbone.",
    required_keys=(rf"^{ANY}projector\.0\.bias$", rf"^{ANY}projector\.6\.weight$"),
    method_name="VICReg",
    # Linear, norm, ReLU, twice, and a last layer without bias.
    only=(r"projector\.[0134]\.", r"projector\.6\.weight$"),
    exact=True,
)
