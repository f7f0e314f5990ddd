"""DenseCL: WXinlong/DenseCL, openselfsup/models/densecl.py.

``state_dict/encoder_q.0.*`` (again as ``backbone.*``) and its moving average ``encoder_k.0.*``,
with a second queue for the dense part. By default the former, as its tool extracts it; the
published file is that, a plain torchvision state dict.
"""

from __future__ import annotations

from intl_transfer.conversion.adapters.base import ANY, ONLINE, TARGET, Layout

LAYOUT = Layout(
    "DenseCL",
    {ONLINE: rf"{ANY}encoder_q\.0\.", TARGET: rf"{ANY}encoder_k\.0\."},
    "state_dict/encoder_q.0.",
    required_keys=(r"(?:^|[./])queue2$",),
    duplicate_prefix=rf"{ANY}backbone\.",
    method_name="DenseCL",
    only=(r"encoder_[qk]\.1\.mlp2?\.[02]\.", r"queue2?(?:_ptr)?$"),
)
