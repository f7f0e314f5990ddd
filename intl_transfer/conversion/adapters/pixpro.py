"""PixPro: zdaxie/PixPro, contrast/models/PixPro.py.

``model/module.encoder.*`` is the trained encoder, ``module.encoder_k.*`` its moving average. By
default the former, as the authors' converter (transfer/detection) takes it.
"""

from __future__ import annotations

from intl_transfer.conversion.adapters.base import ANY, ONLINE, TARGET, Layout

_LAYERS = r"(?:linear[12]|bn1)\."

LAYOUT = Layout(
    "PixPro",
    {ONLINE: rf"{ANY}encoder\.", TARGET: rf"{ANY}encoder_k\."},
    "model/module.encoder.",
    required_keys=(rf"^{ANY}encoder\.", r"(?:encoder_k|projector_k)\."),
    method_name="PixPro",
    only=(
        rf"(?:projector(?:_instance)?(?:_k)?|predictor|value_transform)\.{_LAYERS}",
        r"value_transform\.(?:weight|bias)$",
    ),
    needs=(r"^projector\.",),
)
