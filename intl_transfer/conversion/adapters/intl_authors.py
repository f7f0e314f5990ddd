"""INTL's authors: winci-ai/INTL, methods/base.py, methods/intl_m.py and main.py.

``state_dict/module.backbone.*`` beside ``module.projection.*``, and with a moving average
``module.momentum_backbone.*``. By default the trained network, which their evaluate.py takes.
(Their detection/convert-pretrain-to-detectron2.py looks for ``module.backcone.`` and so writes a
file without tensors.) Other code has these names, too: theirs has a projector of three linear
layers with batch norms between, the last one alone with a bias. Their ResNet (src/resnet.py) has a
layer of zero padding before its stem; with the 3x3 stem of CIFAR it stays, which no tensor shows.
"""

from __future__ import annotations

from intl_transfer.conversion.adapters.base import ANY, ONLINE, TARGET, Layout
from intl_transfer.conversion.reading import Content

_LAYERS = r"(?:[036]\.weight|6\.bias|[14]\.\w+)"


def _method(content: Content) -> str:
    momentum = any("momentum_backbone." in key for key in content.tensors)
    return "INTL + EMA" if momentum else "INTL"


LAYOUT = Layout(
    "INTL's authors",
    {ONLINE: rf"{ANY}backbone\.", TARGET: rf"{ANY}momentum_backbone\."},
    "state_dict/module.backbone.",
    required_keys=(rf"^{ANY}projection\.\d+\.weight$",),
    method_name=_method,
    only=(rf"(?:momentum_)?projection\.{_LAYERS}$",),
    needs=(r"^projection\.6\.bias$",),
    stem="cifar_published",
)
