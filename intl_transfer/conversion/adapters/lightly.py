"""lightly: lightly-ai/lightly, its examples and benchmarks/imagenet/resnet50.

``backbone.*``, whole or with numbered modules, beside ``projection_head``. What ``backbone`` is
depends: with a ``teacher_backbone`` or ``backbone_momentum`` it is the trained network; with a
``student_backbone`` or ``query_backbone`` (the benchmarks of DINO and MoCo v2) it is the moving
average. Either way it is what lightly evaluates, and the default.
"""

from __future__ import annotations

from intl_transfer.conversion.adapters.base import ANY, ONLINE, TARGET, Layout

_HEAD = rf"^{ANY}(?:\w+_)?(?:projection|prediction)_head"

ONLINE_BACKBONE = Layout(
    "lightly",
    {
        ONLINE: rf"{ANY}backbone\.",
        TARGET: rf"{ANY}(?:teacher_backbone|backbone_momentum|momentum_backbone)\.",
    },
    "state_dict/backbone.",
    required_keys=(_HEAD,),
)
TARGET_BACKBONE = Layout(
    "lightly",
    {TARGET: rf"{ANY}backbone\.", ONLINE: rf"{ANY}(?:student_backbone|query_backbone)\."},
    "state_dict/backbone.",
    required_keys=(_HEAD, rf"^{ANY}(?:student|query)_backbone\."),
)
TEACHER_AND_STUDENT = Layout(
    "lightly",
    {TARGET: rf"{ANY}teacher_backbone\.", ONLINE: rf"{ANY}student_backbone\."},
    "state_dict/teacher_backbone.",
    required_keys=(_HEAD, rf"^{ANY}teacher_backbone\."),
)
