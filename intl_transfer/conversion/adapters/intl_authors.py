"""INTL's authors: winci-ai/INTL, methods/base.py, methods/intl_m.py and main.py.

``state_dict/module.backbone.*`` beside ``module.projection.*``, and with a moving average
``module.momentum_backbone.*``. By default the trained network, which their evaluate.py takes.
(Their detection/convert-pretrain-to-detectron2.py looks for ``module.backcone.`` and so writes a
file without tensors.) Their ResNet (src/resnet.py) has a layer of zero padding before its stem;
with the 3x3 stem of CIFAR it stays, which no tensor shows.
"""

from __future__ import annotations

from intl_transfer.conversion.adapters.base import ANY, ONLINE, TARGET, Layout
from intl_transfer.conversion.reading import Content


def _method(content: Content) -> str:
    momentum = any("momentum_backbone." in key for key in content.tensors)
    return "INTL + EMA" if momentum else "INTL"


LAYOUT = Layout(
    "INTL's authors",
    {ONLINE: rf"{ANY}backbone\.", TARGET: rf"{ANY}momentum_backbone\."},
    "state_dict/module.backbone.",
    required_keys=(rf"^{ANY}projection\.\d+\.weight$",),
    method_name=_method,
    only=(r"(?:momentum_)?projection\.",),
    small_stem="cifar_published",
)
