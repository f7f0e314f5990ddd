"""SimCLR in PyTorch: sthalles/SimCLR and Spijkervet/SimCLR.

The first keeps the projector as the backbone's ``fc`` (``state_dict/backbone.fc.0``), the second
beside it (``encoder.*``, ``projector.0`` and ``.2`` without biases). Both train on pixels of 0 to 1
without normalization; but other code with these names often normalizes, so the range is assumed,
and the report names SimCLR's own.

Google's own weights, converted to PyTorch by tonylins/simclr-converter, use torchvision's names and
cannot be distinguished from others: they too were trained on pixels of 0 to 1 (``--pixels unit``).
"""

from __future__ import annotations

from intl_transfer.conversion.adapters.base import ANY, ONLINE, Layout
from intl_transfer.conversion.evidence import Source
from intl_transfer.conversion.settings import IMAGENET

_PIXELS = IMAGENET.known_by(
    Source("assumed", "if the code is SimCLR's own, which does not normalize: --pixels unit"),
    IMAGENET.strides_source,
)

HEAD_INSIDE = Layout(
    "SimCLR",
    {ONLINE: rf"{ANY}backbone\."},
    "state_dict/backbone.",
    required_keys=(r"backbone\.fc\.0\.weight$", r"backbone\.fc\.2\.weight$"),
    method_name="SimCLR",
    pixels=_PIXELS,
    only=(),
    head=(r"fc\.[02]\.(?:weight|bias)$",),
    exact=True,
)
HEAD_BESIDE = Layout(
    "SimCLR",
    {ONLINE: rf"{ANY}encoder\."},
    "encoder.",
    required_keys=(rf"^{ANY}projector\.0\.weight$", rf"^{ANY}projector\.2\.weight$"),
    method_name="SimCLR",
    pixels=_PIXELS,
    only=(r"projector\.[02]\.weight$",),
    exact=True,
)
