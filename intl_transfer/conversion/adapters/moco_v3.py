"""MoCo v3: facebookresearch/moco-v3, moco/builder.py.

``state_dict/module.base_encoder.*`` and ``module.momentum_encoder.*``. By default the former, which
the authors' linear evaluation (main_lincls.py) takes.
"""

from __future__ import annotations

from intl_transfer.conversion.adapters.base import ANY, ONLINE, TARGET, Layout

# Of two linear layers without biases, each before a batch norm.
_LAYERS = r"(?:[03]\.weight|[14]\.\w+)"

LAYOUT = Layout(
    "MoCo v3",
    {ONLINE: rf"{ANY}base_encoder\.", TARGET: rf"{ANY}momentum_encoder\."},
    "state_dict/module.base_encoder.",
    required_keys=(r"base_encoder\.",),
    method_name="MoCo v3",
    only=(rf"predictor\.{_LAYERS}$",),
    head=(rf"fc\.{_LAYERS}$",),
    needs=(r"^predictor\.",),
)
