"""MoCo v1 and v2: facebookresearch/moco, moco/builder.py and main_moco.py.

``state_dict/module.encoder_q.*`` is the trained encoder, ``module.encoder_k.*`` its moving average;
the queue and the heads (``fc``) are left out. By default the trained one, as the authors' own
converter takes it. The version is inferred from the head: one linear layer, or two with a ReLU.
Many later methods keep these names; a file with further modules or layers, or without a queue, is
not called MoCo.
"""

from __future__ import annotations

from intl_transfer.conversion.adapters.base import ANY, ONLINE, TARGET, Layout
from intl_transfer.conversion.reading import Content


def _version(content: Content) -> str | None:
    if any(key.endswith("encoder_q.fc.2.weight") for key in content.tensors):
        return "MoCo v2"
    linear = any(key.endswith("encoder_q.fc.weight") for key in content.tensors)
    return "MoCo v1" if linear else None


LAYOUT = Layout(
    "MoCo v1/v2",
    {ONLINE: rf"{ANY}encoder_q\.", TARGET: rf"{ANY}encoder_k\."},
    "state_dict/module.encoder_q.",
    required_keys=(r"encoder_q\.",),
    method_name=_version,
    only=(r"queue$", r"queue_ptr$"),
    head=(r"fc\.(?:[02]\.)?(?:weight|bias)$",),
    needs=(r"^queue$",),
)
