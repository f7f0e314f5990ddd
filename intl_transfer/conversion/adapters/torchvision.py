"""torchvision's names, without prefix or behind wrappers: torchvision, timm, and many methods.

pytorch/vision, torchvision/models/resnet.py; huggingface/pytorch-image-models,
timm/models/resnet.py. The final files of Barlow Twins, VICReg, DINO and DenseCL and the converted
ones of SimCLR and BYOL are of this form; it does not say which method made them. The training
scripts of both keep a moving average beside the network (``model_ema/module.*``,
``state_dict_ema``): the target. By default the network.
"""

from __future__ import annotations

from intl_transfer.conversion.adapters.base import ANY, ONLINE, TARGET, Layout

# timm, torchvision, ultralytics, OpenMMLab's EMAHook and people's own loops.
_AVERAGE = (
    r"(?:model_ema|state_dict_ema|ema_state_dict|ema_model|ema_state|ema|swa_model|averaged_model)"
    r"(?:/(?:state_dict|model|module))?"
)

LAYOUT = Layout(
    "torchvision",
    {ONLINE: ANY, TARGET: rf"{_AVERAGE}/(?:module\.|model\.)*"},
    "",
)
