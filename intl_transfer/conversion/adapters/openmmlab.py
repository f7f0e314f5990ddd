"""OpenMMLab's ResNets: OpenSelfSup, open-mmlab/mmselfsup, mmpretrain and mmdetection.

``state_dict/backbone.*`` beside ``meta``; momentum methods also ``encoder_q.0.*`` or
``online_net.0.*`` (the same network again) and the moving average ``encoder_k.0.*`` or
``target_net.0.*``. By default ``backbone``, as tools/model_converters/extract_backbone_weights.py
takes it. A configuration with ``style='caffe'`` strides in 1x1 convolutions.
"""

from __future__ import annotations

import re
from dataclasses import replace

from intl_transfer.conversion.adapters.base import ANY, ONLINE, TARGET, Layout
from intl_transfer.conversion.reading import Content
from intl_transfer.conversion.settings import CAFFE, IMAGENET, Settings
from intl_transfer.files.placeholders import plain

_ALGORITHMS = {
    "MoCo": "MoCo v2",
    "MOCO": "MoCo v2",
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


def _configuration(content: Content) -> str:
    meta = plain(content.values.get("meta"))
    for text in (meta.get("config"), meta.get("cfg")) if isinstance(meta, dict) else ():
        if isinstance(text, str):
            return text
    return ""


def _method(content: Content) -> str | None:
    """The algorithm that the configuration kept in the file names."""
    pattern = r"model\s*=\s*dict\(\s*type\s*=\s*['\"](\w+)['\"]"
    found = re.search(pattern, _configuration(content))
    return _ALGORITHMS.get(found.group(1)) if found else None


def _pixels(content: Content) -> Settings:
    text = _configuration(content)
    if re.search(r"style\s*=\s*['\"]caffe['\"]", text):
        return replace(CAFFE, said_by="style='caffe' in the file's configuration")
    return replace(IMAGENET, said_by="the file's configuration") if text else IMAGENET


LAYOUT = Layout(
    "OpenMMLab",
    {
        ONLINE: rf"{ANY}(?:backbone|encoder_q\.0|online_net\.0)\.",
        TARGET: rf"{ANY}(?:encoder_k|target_net|momentum_encoder)\.(?:module\.)?0\.",
    },
    "state_dict/backbone.",
    top=("meta",),
    again=rf"{ANY}(?:backbone|encoder_q\.0|online_net\.0)\.",
    means=_method,
    pixels=_pixels,
)
