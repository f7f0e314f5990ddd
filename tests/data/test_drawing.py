from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from intl_transfer.data.drawing import DrawnObject, color, draw_objects, mask_outlines


def drawn(*objects: DrawnObject, size=(200, 160)) -> np.ndarray:
    picture = Image.new("RGB", size, (128, 128, 128))
    before = np.asarray(picture).copy()
    image = draw_objects(picture, objects, ["a", "b"])
    assert (np.asarray(picture) == before).all()  # a copy is drawn on
    assert image.size == size
    return np.asarray(image).astype(int)


def on(image: np.ndarray, label: int) -> np.ndarray:
    """Where a picture has the color of a class, or nearly."""
    return np.abs(image - color(label)).max(axis=2) < 30


def test_classes_have_colors_of_their_own():
    shades = [color(label) for label in range(90)]
    assert len(set(shades)) == 90
    first = np.array(shades[:10])
    distance = np.abs(first[:, None] - first[None]).sum(axis=2) + 1000 * np.eye(10, dtype=int)
    assert distance.min() > 60


def test_boxes_solid_dashed_and_thin():
    box = (20, 40, 150, 120)
    is_match, wrong, left_out = (
        on(drawn(DrawnObject(0, box, is_match=value)), 0)[119:122, 30:140]
        for value in (True, False, None)
    )
    assert is_match.any(axis=0).all()
    share = wrong.any(axis=0).mean()
    assert 0.4 < share < 0.8
    assert is_match.sum() > 1.5 * left_out.sum()


def test_masks_are_tinted_and_small_things_stay_visible():
    large = DrawnObject(0, (10, 30, 190, 150), [[10, 30, 190, 30, 190, 150, 10, 150]])
    small = DrawnObject(1, (80, 70, 110, 100), [[80, 70, 110, 70, 110, 100, 80, 100]])
    for order in ((large, small), (small, large)):
        image = drawn(*order)
        expected = [0.63 * 128 + 0.37 * np.array(color(label)) for label in (0, 1)]
        assert np.abs(image[60, 150] - expected[0]).max() < 6
        assert np.abs(image[85, 95] - expected[1]).max() < 6
    assert (image[10, 100] == 128).all()


@pytest.mark.parametrize("box", [(-20, -9, 5000, 400), (3, 3, 3, 3), (199, 159, 260, 300)])
@pytest.mark.parametrize("size", [(200, 160), (1, 1), (300, 2)])
def test_boxes_beyond_the_picture_and_tiny_pictures(box, size):
    drawn(DrawnObject(0, box, [[1, 1], []], score=0.5), size=size)


def test_outlines_give_the_mask_again():
    generator = np.random.default_rng(0)
    from PIL import ImageDraw

    for _ in range(5):
        mask = Image.new("1", (80, 60))
        x, y = generator.integers(5, 30, 2)
        ImageDraw.Draw(mask).ellipse((int(x), int(y), int(x) + 30, int(y) + 22), fill=1)
        array = np.asarray(mask)
        again = Image.new("1", (80, 60))
        for outline in mask_outlines(array):
            ImageDraw.Draw(again).polygon([v - 0.5 for v in outline], fill=1)
        both = np.asarray(again) & array
        assert both.sum() / (np.asarray(again) | array).sum() > 0.97
    assert mask_outlines(np.zeros((5, 5), bool)) == []


def test_things_scale_with_their_picture():
    object_ = DrawnObject(1, (1, 2, 3, 4), [[1, 2, 3, 4, 5, 6]], 0.5, False).scaled(2)
    assert object_ == DrawnObject(1, (2, 4, 6, 8), [[2, 4, 6, 8, 10, 12]], 0.5, False)
