"""Lightning: Lightning-AI/pytorch-lightning, pytorch_lightning/callbacks/weight_averaging.py.

Its WeightAveraging saves the average as the network, ``state_dict``, and the trained network in
``current_model_state``, beside ``averaging_state``, so that loading the file gives the average.
"""

from __future__ import annotations

from intl_transfer.conversion.adapters.base import ONLINE, TARGET, Layout

VERSION = "pytorch-lightning_version"

WITH_AVERAGE = Layout(
    "Lightning, with WeightAveraging",
    {TARGET: r"state_dict/.*", ONLINE: r"current_model_state/.*"},
    "state_dict/",
    top=(VERSION, "current_model_state", "averaging_state"),
)
