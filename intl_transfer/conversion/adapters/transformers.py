"""Hugging Face transformers: src/transformers/models/resnet/modeling_resnet.py.

``resnet.embedder.*`` and ``resnet.encoder.stages.*`` in ``model.safetensors``.
"""

from __future__ import annotations

from intl_transfer.conversion.adapters.base import ANY, ONLINE, Layout
from intl_transfer.conversion.namings import TRANSFORMERS

LAYOUT = Layout(
    "transformers",
    {ONLINE: rf"{ANY}(?:resnet\.|backbone\.|encoder\.)?"},
    "resnet.",
    required_keys=(r"embedder\.embedder\.convolution\.weight$",),
    naming=TRANSFORMERS,
)
