"""Training and test images of an evaluation: lists of classes and of images, orders of classes."""

from __future__ import annotations

import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from intl_transfer.errors import UserError
from intl_transfer.evaluation.batches import described, open_sets, seen_in_training
from intl_transfer.evaluation.config import DataConfig
from intl_transfer.runs import read_manifest, read_results
from intl_transfer.runs.distributed import Ranks
from tests.evaluation.test_stage import KINDS, evaluate

ALONE = Ranks(0, 1, 0, torch.device("cpu"))


def opened(train, test, **settings):
    return open_sets(DataConfig("set", str(train), str(test), **settings), ALONE)


def shown(source):
    """Images of a source by the name of their class."""
    return Counter(source.classes[label] for label in source.labels)


def in_folders(root):
    """The same as torchvision counts them."""
    folder = ImageFolder(str(root))
    return Counter(folder.classes[label] for label in folder.targets)


@pytest.fixture
def two(tmp_path):
    listing = tmp_path / "two.txt"
    listing.write_text("red\nblue\n")
    return str(listing)


@pytest.fixture
def every_third(classes, tmp_path):
    """A list of a third of the training images."""
    files = [Path(name) for name, _ in ImageFolder(str(classes / "train")).samples[::3]]
    listing = tmp_path / "some.txt"
    listing.write_text("".join(f"{file.parent.name}/{file.name}\n" for file in files))
    return str(listing)


@pytest.mark.parametrize("percent", [10, 50, 100])
def test_a_share_of_the_labels_is_drawn_within_a_list_of_classes(classes, two, percent):
    """All labels of these classes were used, and the results said 10 % of them, listed."""
    train, test, labels = opened(
        *(classes / "train", classes / "test"), subset=two, labels_percent=percent
    )
    whole = in_folders(classes / "train")
    assert shown(train) == {c: round(whole[c] * percent / 100) for c in ("blue", "red")}
    assert shown(test) == {c: in_folders(classes / "test")[c] for c in ("blue", "red")}
    assert labels == {"labels": "drawn"}


def test_results_say_how_labels_were_chosen(classes, trained, two, every_third, tmp_path):
    small, semi = ["optim.batch_size=4", "optim.epochs=1"], KINDS["semi"]
    evaluate(classes, trained, tmp_path / "drawn", *semi, *small, f"data.subset={two}")
    listed = [f"data.subset={every_third}", f"data.labels_percent={100 / 3}"]
    evaluate(classes, trained, tmp_path / "listed", *semi, *small, *listed)
    for how in ("drawn", "listed"):
        assert read_results(tmp_path / how)["protocol"]["labels"] == how
        assert read_manifest(tmp_path / how).dataset["train"].images == 12


def test_a_list_of_images_has_the_share_that_is_stated(classes, every_third):
    sets = (classes / "train", classes / "test")
    for percent in (100 / 3, 30):  # a rounded image per class
        train, _, labels = opened(*sets, subset=every_third, labels_percent=percent)
        assert (len(train), labels) == (12, {"labels": "listed"})
    with pytest.raises(UserError, match=r"12 of 36 images, 33\.3333 % of the labels, and .* is 10"):
        opened(*sets, subset=every_third, labels_percent=10)


def test_a_list_of_images_leaves_the_test_images_whole(classes, every_third, tmp_path):
    train, test, labels = opened(classes / "train", classes / "test", subset=every_third)
    assert (len(train), labels) == (12, {})
    assert shown(test) == in_folders(classes / "test")
    shutil.copytree(classes / "train", tmp_path / "less")
    shutil.rmtree(tmp_path / "less" / "green")
    listing = tmp_path / "one.txt"
    listing.write_text("red/1\nblue/1\n")
    for subset in (None, str(listing)):  # with which a third of the test images was left out
        with pytest.raises(UserError, match="'green' is in one of them only; expected the same"):
            opened(tmp_path / "less", classes / "test", subset=subset)


@pytest.fixture
def numbered(tmp_path):
    """Images of twelve numbered classes, in folders and in shards."""
    rng = np.random.default_rng(0)
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for number in range(12):
            (tmp_path / "folders" / str(number)).mkdir(parents=True)
            for key in range(2):
                file = tmp_path / "folders" / str(number) / f"{number}_{key}.png"
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(file)
                archive.add(file, file.name)
                label = tmp_path / "label"
                label.write_text(str(number))
                archive.add(label, f"{file.stem}.cls")
    return {"folders": tmp_path / "folders", "shards": tmp_path / "shard.tar"}


@pytest.mark.parametrize("subset", [None, range(11, -1, -1), (10, 2, 1)])
@pytest.mark.parametrize("test", ["folders", "shards"])
@pytest.mark.parametrize("train", ["folders", "shards"])
def test_classes_are_matched_by_name(train, test, subset, numbered, tmp_path):
    """10 follows 1 in folders, and 9 in shards: "in another order", which was an error."""
    if subset is not None:
        (tmp_path / "list.txt").write_text("\n".join(map(str, subset)))
    listing = str(tmp_path / "list.txt") if subset else None
    sets = opened(numbered[train], numbered[test], subset=listing)[:2]
    assert list(sets[0].classes) == list(sets[1].classes)
    for source in sets:
        assert shown(source) == {str(number): 2 for number in subset or range(12)}
        for index, label in enumerate(source.labels):
            assert Path(source.name(index)).name.startswith(f"{source.classes[label]}_")


def test_every_image_is_its_own_neighbor_in_another_layout(numbered, classes, trained, tmp_path):
    sets = [f"data.train={numbered['shards']}", f"data.test={numbered['folders']}"]
    evaluate(classes, trained, tmp_path / "run", "kind=knn", "k=1", *sets)
    assert read_results(tmp_path / "run")["metrics"]["top1"] == 100


def test_training_images_that_are_tested_on_are_said(classes, tmp_path):
    """Of the same folder, by a link, or copied."""
    train = classes / "train"
    (tmp_path / "link").symlink_to(train)
    copied = shutil.copytree(train, tmp_path / "copy")
    places = {classes / "test": False, train: True, tmp_path / "link": True, copied: True}
    for place, is_said in places.items():
        data = DataConfig("set", str(train), str(place))
        images = described(*open_sets(data, ALONE)[:2], ALONE)
        places = {"data.train": str(train), "data.test": str(place)}
        said = seen_in_training(places, [images["train"], images["test"]])
        assert (said is not None) == is_said
