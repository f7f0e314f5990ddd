"""Controls: evaluations with one factor removed that the score should depend on.

A benchmark is meaningful only if its scores drop when there is nothing to measure. One of three
factors can be removed from an evaluation; each such run is a separate row in tables:

- the labels: training labels are shuffled, so that images carry no information about them. What
  remains is chance level: the most frequent class, or a detector's boxes with random classes.
- the images, for training and test: each channel becomes ``(1 - a) x + a u`` with ``u`` uniform
  from 0 to 255 and ``a`` the noise level. At 1 nothing of the image is left.
- the learned weights: the elements of each layer's weights are permuted, which keeps the
distribution per layer. What remains is a random initialization with these distributions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from intl_transfer.errors import UserError

Pixels = NDArray[np.uint8]
T = TypeVar("T")

#: What a noise level can be, for messages; images are blended in 256 steps.
NOISE_LEVELS = "a number from 0 to 1, and if not 0 above 1/512, below which no pixel would change"
_STEPS = 256
# Separate random streams, independent of all others with the same seed.
_LABELS, _WEIGHTS = 0x1ABE15, 0x3E1647


@dataclass
class ControlConfig:
    """The factor removed from an evaluation; none for an ordinary one.

    Attributes:
        shuffle_labels: shuffle the training labels, by the seed of the run.
        noise: noise level of images, 0 to 1.
        permute_weights: permute the elements of each layer's weights, by that seed.
    """

    shuffle_labels: bool = False
    noise: float = 0.0
    permute_weights: bool = False


def in_words(settings: Mapping[str, Any]) -> str:
    """The name of a control in tables; "" for an ordinary run.

    Args:
        settings: ``shuffle_labels``, ``noise`` and ``permute_weights``, in any case; missing ones
            are off.
    """
    found = {key.rpartition(".")[2].lower(): value for key, value in settings.items()}
    noise = found.get("noise")
    words = {
        "labels shuffled": found.get("shuffle_labels"),
        f"noise {noise:g}" if isinstance(noise, (int, float)) else f"noise {noise}": noise,
        "weights permuted": found.get("permute_weights"),
    }
    return ", ".join(text for text, is_on in words.items() if is_on)


def shuffled(labels: Sequence[T], seed: int) -> list[T]:
    """The labels in random order.

    Raises:
        UserError: if all are the same, so that their order changes nothing.
    """
    if len(set(labels)) < 2:
        raise UserError(
            f"shuffled labels: all {len(labels)} labels are of one class, and shuffling them "
            "changes nothing. Leave this control out, or use one of the others"
        )
    order = np.random.default_rng((_LABELS, seed)).permutation(len(labels))
    return [labels[int(place)] for place in order]


def is_noise_level(strength: float) -> bool:
    """Whether a noise level is one of :data:`NOISE_LEVELS`."""
    return strength == 0 or (0 < strength <= 1 and round(_STEPS * strength) > 0)


def noisy(image: Pixels, strength: float) -> Pixels:
    """Blends an image with uniform noise.

    The noise follows from the image, so that it is the same in every epoch and on every machine.

    Args:
        image: uint8, any shape.
        strength: noise level; 0 keeps the image, 1 is pure noise.

    Returns:
        uint8, the same shape.
    """
    if not strength:
        return image
    digest = hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest()
    noise = np.random.default_rng(int.from_bytes(digest[:16], "little")).integers(
        0, 256, image.shape, dtype=np.uint8
    )
    share = round(_STEPS * strength)
    mixed = (image.astype(np.int32) * (_STEPS - share) + noise.astype(np.int32) * share + 128) >> 8
    return mixed.astype(np.uint8)


def permuted(state: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Weights with the elements of each layer permuted.

    Vectors of a layer (a batch norm's mean, variance, weight and bias) share one permutation.

    Args:
        state: by name, ``LAYER.weight`` and the like.
        seed: of the permutations.
    """
    orders: dict[tuple[str, int], Tensor] = {}
    found = {}
    for name in sorted(state):
        tensor = state[name]
        layer = name.rpartition(".")[0] if tensor.dim() == 1 else name
        key = layer, tensor.numel()
        if key not in orders:
            digest = hashlib.sha256(f"{_WEIGHTS}:{seed}:{layer}".encode()).digest()
            rng = np.random.default_rng(int.from_bytes(digest[:16], "little"))
            orders[key] = torch.from_numpy(rng.permutation(tensor.numel()))
        order = orders[key].to(tensor.device)
        found[name] = tensor.flatten()[order].reshape(tensor.shape)
    return found
