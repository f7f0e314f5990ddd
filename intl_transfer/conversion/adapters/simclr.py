"""SimCLR in PyTorch: sthalles/SimCLR and Spijkervet/SimCLR.

The first keeps the projector as the backbone's ``fc`` (``state_dict/backbone.fc.0``), the second
beside it (``encoder.*``, ``projector.*``). Both train on pixels of 0 to 1 without normalisation.

Google's own weights, brought to PyTorch by tonylins/simclr-converter, lie under torchvision's
names and cannot be told from others: they too were trained on pixels of 0 to 1 (``--pixels unit``).
"""

from __future__ import annotations

from dataclasses import replace

from intl_transfer.conversion.adapters.base import ANY, ONLINE, Layout
from intl_transfer.conversion.settings import UNIT

_PIXELS = replace(UNIT, said_by="the format: its training does not normalise")

HEAD_INSIDE = Layout(
    "SimCLR",
    {ONLINE: rf"{ANY}backbone\."},
    "state_dict/backbone.",
    marks=(r"backbone\.fc\.0\.weight$", r"backbone\.fc\.2\.weight$"),
    means="SimCLR",
    pixels=_PIXELS,
)
HEAD_BESIDE = Layout(
    "SimCLR",
    {ONLINE: rf"{ANY}encoder\."},
    "encoder.",
    marks=(rf"^{ANY}projector\.0\.weight$",),
    means="SimCLR",
    pixels=_PIXELS,
)
