"""Detectron2's own: facebookresearch/detectron2, detectron2/checkpoint/detection_checkpoint.py.

A backbone file (``model/stem.conv1.weight``, ``model/res2.0.…``), or the ResNet of a detector:
``backbone.*`` with ``roi_heads.res5`` (C4) or ``backbone.bottom_up.*`` (FPN). A ``.pkl`` holds
numpy arrays. Image preprocessing is inferred from batch norms with folded statistics, which only
weights from Caffe have; otherwise torchvision's is assumed. (Files of this project state it
themselves.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from intl_transfer.conversion.adapters.base import ONLINE, TARGET, is_averaged, places_in
from intl_transfer.conversion.detectron2 import (
    from_detectron2,
    is_detectron2,
    to_detectron2,
    torchvision_name,
)
from intl_transfer.conversion.evidence import Fact, inferred, stated
from intl_transfer.conversion.reading import Content
from intl_transfer.conversion.settings import CAFFE, IMAGENET, Settings
from intl_transfer.errors import UserError
from intl_transfer.models import Stem

_WRAPPERS = re.compile(r"^(?:module\.)+")
_OF_A_DETECTOR = re.compile(r"(?:backbone\.bottom_up\.|backbone\.|roi_heads\.)?")


class Detectron2:
    """See :class:`intl_transfer.conversion.adapters.base.Adapter`."""

    name = "Detectron2"

    def branches(self, content: Content) -> list[str]:
        """A detector has one network; its moving average may be in another dictionary."""
        return list(_networks(content))

    def to_torchvision(self, content: Content, branch: str) -> tuple[dict[str, Tensor], list[str]]:
        """Raises a UserError for tensors that torchvision's ResNet does not have."""
        tensors = _networks(content)[branch][1]
        try:
            state = from_detectron2(tensors)
        except UserError as error:
            raise UserError(f"{content.path}: {error}") from None
        return state, [key for key in tensors if torchvision_name(key) is None]

    def from_torchvision(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """A backbone file."""
        return {
            "model": to_detectron2(state),
            "__author__": "intl-transfer",
            # Makes Detectron2 match res5 in the box head of C4 and in the bottom-up network of FPN.
            "matching_heuristics": True,
        }

    def prefix(self, content: Content, branch: str) -> str:
        """Its dictionary."""
        folder = _networks(content)[branch][0]
        return f"{folder}/" if folder not in ("", "model") else ""

    def method(self, content: Content) -> Fact | None:
        """Unknown; files of this project state it elsewhere."""
        return None

    def small_stem(self, content: Content) -> Stem | None:
        """It has none."""
        return None

    def settings(self, content: Content) -> Settings:
        """See the module."""
        if _folded(_tensors(content)):
            return CAFFE.known_by(inferred("batch norms folded as in weights from Caffe"))
        if content.values.get("__author__") == "torchvision":
            return IMAGENET.known_by(stated("the file's author, torchvision"))
        return IMAGENET


def _networks(content: Content) -> dict[str, tuple[str, dict[str, Tensor]]]:
    """Branch to dictionary and tensors; empty if the file also has ResNets elsewhere."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in content.tensors.items():
        folder, _, name = key.rpartition("/")
        groups.setdefault(folder, {})[_WRAPPERS.sub("", name)] = tensor
    found = {folder: inner for folder, inner in groups.items() if is_detectron2(inner)}
    for place in places_in(content.tensors):
        folder, _, prefix = place.prefix.rpartition("/")
        if folder not in found or not _OF_A_DETECTOR.fullmatch(_WRAPPERS.sub("", prefix)):
            return {}
    averages = [folder for folder in found if is_averaged(folder)]
    trained = [folder for folder in found if folder not in averages]
    if len(found) == 1:
        return {ONLINE: next(iter(found.items()))}
    if len(averages) == len(trained) == 1:
        named = {ONLINE: trained[0], TARGET: averages[0]}
        return {branch: (folder, found[folder]) for branch, folder in named.items()}
    return {}


def _tensors(content: Content) -> dict[str, Tensor]:
    """Those of the default network; empty if there is none."""
    return next((inner for _, inner in _networks(content).values()), {})


def _folded(tensors: Mapping[str, Tensor]) -> bool:
    """Whether every batch norm of the ResNet has mean 0 and variance 1 (less its epsilon)."""
    method_name = [v for k, v in tensors.items() if k.endswith("norm.running_mean") and "res" in k]
    variances = [v for k, v in tensors.items() if k.endswith("norm.running_var") and "res" in k]
    return (
        bool(method_name)
        and all(not mean.any() for mean in method_name)
        and all(
            torch.allclose(v.float(), torch.ones((), device=v.device), atol=2e-5) for v in variances
        )
    )


DETECTRON2 = Detectron2()
