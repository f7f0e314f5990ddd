"""VISSL: facebookresearch/vissl, vissl/models/trunks/resnext.py, extra_scripts/convert_vissl_*.py.

``classy_state_dict/base_model/model/trunk/_feature_blocks.*`` of a training, or
``_feature_blocks.*`` alone (also in ``model_state_dict``) of an extracted trunk. A second encoder
in the loss's state (``classy_state_dict/loss/…``) is the target; by default the trunk is taken.
"""

from __future__ import annotations

from intl_transfer.conversion.adapters.base import ONLINE, TARGET, Layout

LAYOUT = Layout(
    "VISSL",
    {
        ONLINE: r"(?!classy_state_dict/loss/)(?:.*[/.])?_feature_blocks\.",
        TARGET: r"classy_state_dict/loss/.*_feature_blocks\.",
    },
    "classy_state_dict/base_model/model/trunk/_feature_blocks.",
    required_keys=(r"_feature_blocks\.",),
)
