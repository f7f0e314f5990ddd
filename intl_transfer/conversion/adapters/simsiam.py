"""SimSiam: facebookresearch/simsiam, simsiam/builder.py.

``state_dict/module.encoder.*`` beside ``module.predictor.*``; one encoder, no moving average.
"""

from __future__ import annotations

from intl_transfer.conversion.adapters.base import ANY, ONLINE, Layout

LAYOUT = Layout(
    "SimSiam",
    {ONLINE: rf"{ANY}encoder\."},
    "state_dict/module.encoder.",
    required_keys=(rf"^{ANY}predictor\.\d",),
    method_name="SimSiam",
    only=(r"predictor\.(?:[03]\.weight|3\.bias|1\.\w+)$",),
    head=(r"fc\.(?:[036]\.weight|6\.bias|[147]\.\w+)$",),
    exact=True,
)
