"""Hugging Face transformers: src/transformers/models/resnet/modeling_resnet.py.

``resnet.embedder.*`` and ``resnet.encoder.stages.*`` in ``model.safetensors``; ``config.json``
states the position of strides, ``preprocessor_config.json`` mean and deviation.
"""

from __future__ import annotations

from intl_transfer.conversion.adapters.base import ANY, ONLINE, Layout
from intl_transfer.conversion.folders import transformers_settings
from intl_transfer.conversion.namings import TRANSFORMERS

LAYOUT = Layout(
    "transformers",
    {ONLINE: rf"{ANY}(?:resnet\.|backbone\.|encoder\.)?"},
    "resnet.",
    required_keys=(r"embedder\.embedder\.convolution\.weight$",),
    pixels=transformers_settings,
    naming=TRANSFORMERS,
)
