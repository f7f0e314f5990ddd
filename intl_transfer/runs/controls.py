"""Controls: evaluations without one thing that a score should depend on.

A benchmark measures something only if its scores fall when there is nothing to be measured. Three
things can be taken from an evaluation, and each run of that kind is a row of its own in tables:

- the labels: names of the training objects are shuffled, so that pictures say nothing of
  them. What is left is what can be scored without looking: the commonest class, or a detector's
  boxes under names drawn at random.
- the pictures, of training and tests: each channel becomes ``(1 - a) x + a u`` with ``u`` uniform
  from 0 to 255 and ``a`` the knob. At 1 a picture says nothing.
- what the weights have learned: the elements of every layer's weights are put in another order, so
  that each layer keeps its distribution. What is left is a random start of these distributions.
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

Pixels = NDArray[np.uint8]
T = TypeVar("T")

# Streams of their own, so that nothing else that a seed decides is the same.
_LABELS, _WEIGHTS = 0x1ABE15, 0x3E1647


@dataclass
class ControlConfig:
    """What is taken from an evaluation; nothing, of an ordinary one.

    Attributes:
        shuffle_labels: shuffle the training labels, by the seed of the run.
        noise: share of every picture that is noise, 0 to 1.
        permute_weights: put the elements of each layer's weights in another order, by that seed.
    """

    shuffle_labels: bool = False
    noise: float = 0.0
    permute_weights: bool = False


def in_words(settings: Mapping[str, Any]) -> str:
    """What a control is called in tables; "" for an ordinary run.

    Args:
        settings: ``shuffle_labels``, ``noise`` and ``permute_weights``, in any case; those that
            are absent are off.
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
    """The same labels in an order that has nothing to do with where they were."""
    order = np.random.default_rng((_LABELS, seed)).permutation(len(labels))
    return [labels[int(place)] for place in order]


def noisy(image: Pixels, strength: float) -> Pixels:
    """An image of which a share is uniform noise.

    The noise follows from the image, so that it is the same in every epoch and on every machine.

    Args:
        image: uint8, any shape.
        strength: 0 leaves the image, 1 leaves nothing of it.

    Returns:
        uint8, the same shape.
    """
    if not strength:
        return image
    digest = hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest()
    noise = np.random.default_rng(int.from_bytes(digest[:16], "little")).integers(
        0, 256, image.shape, dtype=np.uint8
    )
    share = round(256 * strength)
    mixed = (image.astype(np.int32) * (256 - share) + noise.astype(np.int32) * share + 128) >> 8
    return mixed.astype(np.uint8)


def permuted(state: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Weights whose layers keep their elements, each in another order.

    Vectors of one layer (mean and deviation of a batch norm, its weight and bias) are put in the
    same order, so that what belongs together stays together.

    Args:
        state: by name, ``LAYER.weight`` and the like.
        seed: of the order.
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
