"""Controls in fine-tuning: what the loader and the weights are after something was taken."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from detection import labels, weights
from detection.checks import check_settings
from detection.config import load_config
from detection.images import Mapper, read_as
from intl_transfer.errors import UserError
from intl_transfer.runs.controls import noisy
from tests.detection.conftest import TINY
from tests.detection.test_parts import r18


def config(*overrides):
    seeded = ["MODEL.DEVICE", "cpu", "SEED", "0"]
    return load_config("shapes_coco_R18_C4", [*seeded, *TINY, *overrides])


@pytest.mark.parametrize("fraction", ["1.0", "0.5"])
def test_classes_are_dealt_out_anew_and_boxes_stay(registered, fraction):
    usual, _ = labels.training_records(config("DATASETS.LABELS.FRACTION", fraction))
    shuffle = ["CONTROL.SHUFFLE_LABELS", "True", "DATASETS.LABELS.FRACTION", fraction]
    found, _ = labels.training_records(config(*shuffle))

    def of(records, key):
        return [a[key] for record in records for a in record["annotations"]]

    for key in ("bbox", "segmentation", "iscrowd"):
        assert of(found, key) == of(usual, key)
    assert of(found, "category_id") != of(usual, "category_id")
    assert Counter(of(found, "category_id")) == Counter(of(usual, "category_id"))
    again, _ = labels.training_records(config(*shuffle))
    assert of(again, "category_id") == of(found, "category_id")
    other, _ = labels.training_records(config(*shuffle, "SEED", "5"))
    assert of(other, "category_id") != of(found, "category_id")


@pytest.mark.parametrize("is_train", [True, False])
def test_pictures_of_training_and_tests_get_their_share_of_noise(registered, is_train):
    (record, *_), _ = labels.training_records(config())
    steady = ["INPUT.RANDOM_FLIP", "none", "INPUT.MIN_SIZE_TRAIN", "(128,)"]
    steady += ["INPUT.MAX_SIZE_TRAIN", "128", "INPUT.MIN_SIZE_TEST", "128"]
    steady += ["INPUT.MAX_SIZE_TEST", "128"]
    for strength in (0.0, 0.5, 1.0):
        cfg = config(*steady, "CONTROL.NOISE", str(strength))
        image = Mapper(cfg, is_train)(record)["image"].numpy().transpose(1, 2, 0)
        expected = noisy(read_as(record["file_name"], cfg.INPUT.FORMAT), strength)
        assert (image == expected).all()
    assert np.abs(image.mean() - 127.5) < 2


def test_a_permuted_backbone_has_the_same_elements_in_another_order(backbone_file):
    content = weights.read_weights(str(backbone_file))
    model = r18()
    own = weights._backbone_tensors(model)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights.match(name, content["model"]))
    weights.check_loaded(model, content["model"], "w")
    heads = {k: v.clone() for k, v in model.state_dict().items() if k not in own}
    weights.permute_backbone(model, 0)
    for name in ("backbone.stem.conv1.weight", "roi_heads.res5.1.conv2.weight"):
        tensor, before = model.state_dict()[name], weights.match(name, content["model"])
        assert not torch.equal(tensor, before)
        assert torch.equal(tensor.flatten().sort().values, before.flatten().sort().values)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in heads.items())
    with pytest.raises(UserError, match="differs from the file after loading"):
        weights.check_loaded(model, content["model"], "w")


def test_impossible_shares_are_refused():
    with pytest.raises(UserError, match=r"CONTROL\.NOISE is 1\.5; expected a number from 0 to 1"):
        check_settings(config("CONTROL.NOISE", "1.5"))


def test_controls_that_would_change_nothing_are_refused(registered):
    image = np.arange(256, dtype=np.uint8)
    for strength, changes in ((1 / 512, False), (0.0021, True)):
        assert (noisy(image, strength) != image).any() == changes
        cfg = config("CONTROL.NOISE", str(strength))
        if changes:
            check_settings(cfg)
        else:
            with pytest.raises(UserError, match=r"CONTROL\.NOISE is 0\.0019.*above 1/512"):
                check_settings(cfg)
    shuffle = config("CONTROL.SHUFFLE_LABELS", "True")
    records = [{"annotations": [{"category_id": 3}, {"category_id": 3}]}]
    with pytest.raises(UserError, match="all 2 labels are of one class"):
        labels._controlled(shuffle, records)
