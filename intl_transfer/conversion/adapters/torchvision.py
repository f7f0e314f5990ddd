"""torchvision's names, without prefix or behind wrappers: torchvision, timm, and many methods.

pytorch/vision, torchvision/models/resnet.py; huggingface/pytorch-image-models,
timm/models/resnet.py. The final files of Barlow Twins, VICReg, DINO and DenseCL and the converted
ones of SimCLR and BYOL are of this form; it does not say which method made them.
"""

from __future__ import annotations

from intl_transfer.conversion.adapters.base import ANY, ONLINE, Layout

LAYOUT = Layout("torchvision", {ONLINE: ANY}, "")
