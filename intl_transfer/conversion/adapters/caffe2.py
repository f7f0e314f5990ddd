"""Caffe2's blob names: facebookresearch/Detectron, and Detectron2's MSRA/R-50.pkl.

``res2_0_branch2a_w``, ``res2_0_branch2a_bn_s``, …, bare, in ``blobs`` or in ``model``; see
facebookresearch/detectron2, detectron2/checkpoint/c2_model_loading.py. These networks take BGR
pixels without division and stride in 1x1 convolutions. If statistics were folded into scale and
bias, mean 0 and variance 1 minus epsilon are restored, as in a new FrozenBatchNorm2d of Detectron2.
Biases of convolutions, which Detectron2 does not have either, are omitted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from intl_transfer.conversion.adapters.base import ONLINE
from intl_transfer.conversion.evidence import Fact, inferred
from intl_transfer.conversion.reading import Content
from intl_transfer.conversion.settings import CAFFE, Settings
from intl_transfer.errors import UserError
from intl_transfer.models import Stem

_EPSILON = 1e-5
_BLOCK = re.compile(r"res([2-5])_(\d+)_branch(1|2[abc])_(w|bn_\w+)")
_STEM = re.compile(r"(?:conv1_(w)|res_conv1_(bn_\w+))")
_NORM = {
    "bn_s": "weight",
    "bn_gamma": "weight",
    "bn_b": "bias",
    "bn_beta": "bias",
    "bn_rm": "running_mean",
    "bn_riv": "running_var",
    "bn_running_mean": "running_mean",
    "bn_running_var": "running_var",
}
_WRITTEN = {"weight": "bn_s", "bias": "bn_b", "running_mean": "bn_rm", "running_var": "bn_riv"}


class Caffe2:
    """See :class:`intl_transfer.conversion.adapters.base.Adapter`."""

    name = "Caffe2"

    def branches(self, content: Content) -> list[str]:
        """One network."""
        names = (key.rpartition("/")[2] for key in content.tensors)
        return [ONLINE] if any(_BLOCK.fullmatch(name) for name in names) else []

    def to_torchvision(self, content: Content, branch: str) -> tuple[dict[str, Tensor], list[str]]:
        """Restores the statistics that were folded into scale and bias.

        Raises:
            UserError: for a blob that torchvision's ResNet does not have.
        """
        state: dict[str, Tensor] = {}
        rest = []
        for key, tensor in content.tensors.items():
            blob = key.rpartition("/")[2]
            name = _name(blob)
            if name is not None:
                state[name] = tensor
            elif re.match(r"res[2-5]_\d+_", blob) and not blob.endswith(("_b", "_momentum")):
                raise UserError(f"{content.path}: '{blob}' has no place in torchvision's ResNet")
            else:
                rest.append(blob)
        for name in [name for name in state if state[name].ndim == 1 and name.endswith("weight")]:
            norm = name.removesuffix("weight")
            state.setdefault(f"{norm}running_mean", torch.zeros(state[name].shape, device="cpu"))
            state.setdefault(
                f"{norm}running_var", torch.ones(state[name].shape, device="cpu") - _EPSILON
            )
        return state, rest

    def from_torchvision(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Blobs, with their statistics."""
        return {
            "model": {
                _blob(name): tensor
                for name, tensor in state.items()
                if not name.endswith("num_batches_tracked")
            },
            "__author__": "Caffe2",
            "matching_heuristics": True,
        }

    def prefix(self, content: Content, branch: str) -> str:
        """None."""
        return ""

    def method(self, content: Content) -> Fact | None:
        """Not known."""
        return None

    def small_stem(self, content: Content) -> Stem | None:
        """It has none."""
        return None

    def settings(self, content: Content) -> Settings:
        """Caffe's."""
        return CAFFE.known_by(inferred("Caffe2's names"))


def _name(blob: str) -> str | None:
    """Torchvision's name of a blob, or None."""
    stem = _STEM.fullmatch(blob)
    block = _BLOCK.fullmatch(blob)
    if stem:
        place, number, kind = "", "1", stem.group(1) or stem.group(2)
    elif block:
        stage, index, branch, kind = block.groups()
        place = f"layer{int(stage) - 1}.{index}."
        number = "" if branch == "1" else str("abc".index(branch[1]) + 1)
    else:
        return None
    if kind == "w":
        return f"{place}conv{number}.weight" if number else f"{place}downsample.0.weight"
    if kind not in _NORM:
        return None
    norm = f"bn{number}" if number else "downsample.1"
    return f"{place}{norm}.{_NORM[kind]}"


def _blob(name: str) -> str:
    """The blob of a torchvision name."""
    match = re.fullmatch(r"(?:layer(\d)\.(\d+)\.)?(?:(conv|bn)(\d)|downsample\.(\d))\.(\w+)", name)
    assert match is not None, name
    stage, index, module, number, shortcut, kind = match.groups()
    norm = module == "bn" or shortcut == "1"
    end = _WRITTEN[kind] if norm else "w"
    if stage is None:
        return f"res_conv1_{end}" if norm else f"conv1_{end}"
    branch = "1" if shortcut else f"2{'abc'[int(number) - 1]}"
    return f"res{int(stage) + 1}_{index}_branch{branch}_{end}"


CAFFE2 = Caffe2()
