"""DINO with a ResNet-50: facebookresearch/dino, main_dino.py and utils.py.

Dictionaries ``student`` (online) and ``teacher`` (target), each ``module.backbone.*``. By default
the teacher, as the authors' evaluations do (``--checkpoint_key teacher``).
"""

from __future__ import annotations

from intl_transfer.conversion.adapters.base import ONLINE, TARGET, Layout

_NETWORK = r"/(?:module\.)?(?:backbone\.)?"

LAYOUT = Layout(
    "DINO",
    {TARGET: rf"teacher{_NETWORK}", ONLINE: rf"student{_NETWORK}"},
    "teacher/module.backbone.",
    marks=(r"^(?:teacher|student)/",),
    means="DINO",
)
