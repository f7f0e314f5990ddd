"""BYOL in PyTorch: lucidrains/byol-pytorch, yaox12/BYOL-PyTorch, sthalles/PyTorch-BYOL.

A network ``online_*`` and its moving average ``target_*``, the backbone inside as ``net``,
``encoder`` or ``backbone``; the last two repositories number its modules (``encoder.4.0.conv1``).
By default the online network, which the paper evaluates. DeepMind's own weights are pickles of
JAX and Haiku; their PyTorch conversions use torchvision's names.
"""

from __future__ import annotations

from intl_transfer.conversion.adapters.base import ANY, ONLINE, TARGET, Layout
from intl_transfer.conversion.evidence import inferred
from intl_transfer.conversion.namings import SEQUENTIAL
from intl_transfer.conversion.settings import UNIT

_NETWORK = r"(?:_encoder|_network|_net|_backbone)?\.(?:(?:net|encoder|backbone|0)\.)?"
_HEAD = r"(?:projector|projection|projetion|predictor)\."

LAYOUT = Layout(
    "BYOL",
    {ONLINE: rf"{ANY}online{_NETWORK}", TARGET: rf"{ANY}target{_NETWORK}"},
    "model/online_network.encoder.",
    required_keys=(rf"^{ANY}online",),
    duplicate_prefix=rf"{ANY}(?:net|backbone)\.",
    method_name="BYOL",
    only=(
        rf"(?:online|target)_(?:(?:encoder|network)\.)?{_HEAD}",
        r"predictor\.",
        r"(?:net|backbone)\.",
    ),
    needs=(r"predictor\.",),
    naming=SEQUENTIAL,
)
IN_DICTIONARIES = Layout(
    "BYOL",
    {
        ONLINE: r"online_network_state_dict/(?:module\.)?encoder\.",
        TARGET: r"target_network_state_dict/(?:module\.)?encoder\.",
    },
    "online_network_state_dict/encoder.",
    required_keys=(r"^online_network_state_dict/",),
    duplicate_prefix=r"encoder_state_dict/",
    method_name="BYOL",
    pixels=UNIT.known_by(inferred("sthalles/PyTorch-BYOL, whose training does not normalize")),
    naming=SEQUENTIAL,
)
