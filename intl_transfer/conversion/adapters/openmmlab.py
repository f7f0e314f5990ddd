"""OpenMMLab's ResNets: OpenSelfSup, open-mmlab/mmselfsup, mmpretrain and mmdetection.

``state_dict/backbone.*`` beside ``meta``; momentum methods also ``encoder_q.0.*`` or
``online_net.0.*`` (the same network again) and the moving average ``encoder_k.0.*`` or
``target_net.0.*``. By default ``backbone``, as tools/model_converters/extract_backbone_weights.py
takes it. The method is read from the configuration in ``meta``.
"""

from __future__ import annotations

from intl_transfer.conversion.adapters.base import ANY, ONLINE, TARGET, Layout
from intl_transfer.conversion.adapters.mm_config import configuration, first
from intl_transfer.conversion.evidence import Fact, configured
from intl_transfer.conversion.reading import Content

_ALGORITHMS = {
    "MoCo": "MoCo",
    "MOCO": "MoCo",
    "MoCoV3": "MoCo v3",
    "BYOL": "BYOL",
    "SimCLR": "SimCLR",
    "SimSiam": "SimSiam",
    "SwAV": "SwAV",
    "BarlowTwins": "Barlow Twins",
    "DenseCL": "DenseCL",
    "ODC": "ODC",
    "NPID": "NPID",
    "DeepCluster": "DeepCluster",
}


# By the neck, the only difference between MoCo v2 and v1.
_NECKS = {"MoCoV2Neck": "MoCo v2", "NonLinearNeckV1": "MoCo v2", "LinearNeck": "MoCo v1"}


def _method(content: Content) -> Fact | None:
    """The algorithm in the file's configuration."""
    config = configuration(content.values.get("meta"))
    kind = first(config, "model", "type")
    if not isinstance(kind, str):
        return None
    name = _ALGORITHMS.get(kind.rpartition(".")[2])
    if name == "MoCo":
        name = _NECKS.get(str(first(config, "model", "neck", "type")), name)
    return Fact(name, configured(f"model.type={kind}")) if name else None


# mmengine's EMAHook saves the average as the network, and the trained network separately
# (`EMAHook._swap_ema_state_dict`), so that loading the file gives the average.
WITH_AVERAGE = Layout(
    "OpenMMLab",
    {
        TARGET: r"state_dict/(?:module\.)?backbone\.",
        ONLINE: r"ema_state_dict/(?:module\.)*backbone\.",
    },
    "state_dict/backbone.",
    top=("meta",),
    required_keys=(r"^ema_state_dict/",),
    method_name=_method,
)
LAYOUT = Layout(
    "OpenMMLab",
    {
        ONLINE: rf"{ANY}(?:backbone|encoder_q\.0|online_net\.0)\.",
        TARGET: rf"{ANY}(?:encoder_k|target_net|momentum_encoder)\.(?:module\.)?0\.",
    },
    "state_dict/backbone.",
    top=("meta",),
    duplicate_prefix=rf"{ANY}(?:backbone|encoder_q\.0|online_net\.0)\.",
    method_name=_method,
)
