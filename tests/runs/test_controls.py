"""What controls take away, and that they take nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from intl_transfer.models import build_backbone
from intl_transfer.runs.controls import in_words, noisy, permuted, shuffled

IMAGES = hnp.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3)))


@settings(max_examples=50, deadline=None)
@given(IMAGES, st.floats(0, 1))
def test_noise_is_mixed_by_its_share(image, strength):
    """Against the formula in float64, with the noise that is left at full strength."""
    noise = noisy(image, 1.0).astype(np.float64)
    mixed = noisy(image, strength)
    assert mixed.dtype == np.uint8
    expected = (1 - strength) * image + strength * noise
    assert np.abs(mixed - expected).max() <= 1.5  # half of a level, and 1/512 of the share
    assert (noisy(image, 0.0) == image).all()
    assert (noisy(image, strength) == mixed).all()


def test_at_full_strength_nothing_of_the_picture_is_left():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)
    left = noisy(image, 1.0)
    correlation = np.corrcoef(image.ravel().astype(float), left.ravel().astype(float))[0, 1]
    assert abs(correlation) < 4 / np.sqrt(image.size)
    counts = np.bincount(left.ravel(), minlength=256)
    chi2 = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert chi2 < 255 + 5 * np.sqrt(2 * 255)  # uniform
    half = np.corrcoef(image.ravel().astype(float), noisy(image, 0.5).ravel().astype(float))[0, 1]
    assert half == pytest.approx(np.sqrt(0.5), abs=0.02)  # two uniforms of equal weight


def test_shuffled_labels_are_the_same_ones_and_say_nothing():
    labels = [n % 8 for n in range(4000)]
    found = shuffled(labels, 3)
    assert sorted(found) == sorted(labels)
    assert shuffled(labels, 3) == found
    assert shuffled(labels, 4) != found
    agreeing = np.mean(np.array(found) == labels)
    assert agreeing == pytest.approx(1 / 8, abs=5 * np.sqrt(1 / 8 * 7 / 8 / 4000))


def test_permuted_weights_keep_each_layers_elements_and_a_batch_norms_pairs():
    torch.manual_seed(0)
    network, _ = build_backbone("resnet18")
    begun = ("conv1.", "bn1.", "layer1.")  # the others are larger, and no different
    state = {k: v for k, v in network.state_dict().items() if k.startswith(begun)}
    for name in ("bn1", "layer1.0.bn1"):  # mean and deviation that can be told to belong together
        width = state[f"{name}.weight"].numel()
        for place, part in enumerate(("weight", "bias", "running_mean", "running_var"), 1):
            state[f"{name}.{part}"] = torch.arange(width) * 10.0 + place
    found = permuted(state, 0)
    assert found.keys() == state.keys()
    moved = 0
    for name, tensor in state.items():
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name].flatten().sort().values, tensor.flatten().sort().values)
        moved += not torch.equal(found[name], tensor)
    assert moved == 5 + 2 * 4  # convolutions, and vectors that are not all alike
    for name in ("bn1", "layer1.0.bn1"):
        kept = found[f"{name}.weight"] - 1
        assert torch.equal(found[f"{name}.running_var"] - 4, kept)
        assert torch.equal(found[f"{name}.bias"] - 2, kept)
    first, later = (state[n].flatten() for n in ("layer1.0.conv1.weight", "conv1.weight"))
    assert (
        abs(torch.corrcoef(torch.stack([first, found["layer1.0.conv1.weight"].flatten()]))[0, 1])
        < 0.03
    )
    assert torch.equal(permuted(state, 0)["conv1.weight"], found["conv1.weight"])
    assert not torch.equal(permuted(state, 1)["conv1.weight"].flatten(), later)
    network.load_state_dict(found, strict=False)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ""),
        ({"control.noise": 0.0, "control.shuffle_labels": False}, ""),
        ({"CONTROL.NOISE": 0.5}, "noise 0.5"),
        ({"control.shuffle_labels": True}, "labels shuffled"),
        ({"PERMUTE_WEIGHTS": True, "NOISE": 1.0}, "noise 1, weights permuted"),
    ],
)
def test_words(given, words):
    assert in_words(given) == words
