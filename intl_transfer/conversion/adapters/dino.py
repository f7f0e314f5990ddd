"""DINO with a ResNet-50: facebookresearch/dino, main_dino.py and utils.py.

Dictionaries ``student`` (online) and ``teacher`` (target), each ``module.backbone.*``. By default
the teacher, as the authors' evaluations do (``--checkpoint_key teacher``).
"""

from __future__ import annotations

from intl_transfer.conversion.adapters.base import ONLINE, TARGET, Layout
from intl_transfer.conversion.reading import Content

_NETWORK = r"/(?:module\.)?(?:backbone\.)?"


def _method(content: Content) -> str | None:
    """Other methods also have teacher and student; DINO's files include its loss's center."""
    is_dino = "dino_loss" in content.values or "dino_loss/center" in content.tensors
    return "DINO" if is_dino else None


LAYOUT = Layout(
    "DINO",
    {TARGET: rf"teacher{_NETWORK}", ONLINE: rf"student{_NETWORK}"},
    "teacher/module.backbone.",
    required_keys=(r"^(?:teacher|student)/",),
    method_name=_method,
)
