from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MapDataset,
    MetadataCatalog,
    ToIterableDataset,
)
from detectron2.data.common import AspectRatioGroupedDataset, DatasetFromList
from detectron2.data.samplers import TrainingSampler
from PIL import Image

from detection import stream as module
from detection.config import load_config
from detection.images import Mapper, TestImages
from detection.stream import Examples, ImageError, TrainingStream, build_stream, seed_iteration
from intl_transfer.errors import UserError
from tests.detection.conftest import TINY


def records(count: int) -> list[dict]:
    """Sizes at random, some of them square."""
    sizes = np.random.default_rng(0).choice([40, 50, 60], (count, 2)).tolist()
    return [{"width": w, "height": h, "number": n} for n, (w, h) in enumerate(sizes)]


def draw(record):
    """A mapper that uses all three generators."""
    return {**record, "drawn": (random.random(), np.random.rand(), torch.rand(()).item())}


def as_rank(monkeypatch, rank: int, ranks: int) -> None:
    monkeypatch.setattr(module.comm, "get_rank", lambda: rank)
    monkeypatch.setattr(module.comm, "get_world_size", lambda: ranks)


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (0, 3), (2, 3)])
@pytest.mark.parametrize("grouped", [True, False])
def test_the_order_is_detectron2s(monkeypatch, rank, ranks, grouped):
    as_rank(monkeypatch, rank, ranks)
    data, rows = records(23), 4
    sampler = TrainingSampler(len(data), seed=5)
    theirs = ToIterableDataset(MapDataset(DatasetFromList(data), dict), sampler)
    expected = []
    if grouped:
        for batch in itertools.islice(AspectRatioGroupedDataset(theirs, rows), 30):
            expected += [item["number"] for item in batch]
    else:
        expected = [item["number"] for item in itertools.islice(theirs, 30 * rows)]
    stream = TrainingStream(Examples(data, draw, grouped), rows, seed=5)
    found = [item["number"] for batch in itertools.islice(stream, 30) for item in batch]
    assert found == expected
    assert len(set(found)) == 23


def test_entered_anywhere_with_any_number_of_loading_processes_it_is_the_same():
    data = records(11)
    whole = TrainingStream(Examples(data, draw, True), 3, seed=1)
    batches = list(itertools.islice(whole, 12))
    for start, workers in ((5, 0), (5, 2), (0, 1)):
        stream = TrainingStream(Examples(data, draw, True), 3, 1, workers)
        stream.start = start
        assert list(itertools.islice(stream, 12 - start)) == batches[start:]
    # An image is another one each time it comes.
    drawn = [item["drawn"] for batch in batches for item in batch]
    assert len(set(drawn)) == len(drawn)
    other = TrainingStream(Examples(data, draw, True), 3, seed=2)
    assert next(iter(other)) != batches[0]
    statistics = list(itertools.islice(whole.for_statistics(), 12))
    assert statistics != batches
    assert statistics == list(itertools.islice(whole.for_statistics(), 12))


def test_ranks_share_every_image_of_a_pass(monkeypatch):
    seen = []
    for rank in range(3):
        as_rank(monkeypatch, rank, 3)
        stream = TrainingStream(Examples(records(12), draw, False), 2, seed=4)
        seen += [index for _, _, index in itertools.islice(stream.plan(), 4)]
    assert sorted(seen) == list(range(12))


def test_augmentation_leaves_the_generators_alone():
    seed_iteration(3, 7)
    first = torch.rand(2), np.random.rand(), random.random()
    seed_iteration(3, 7)
    next(iter(TrainingStream(Examples(records(4), draw, True), 2, seed=0)))
    second = torch.rand(2), np.random.rand(), random.random()
    assert torch.equal(first[0], second[0])
    assert first[1:] == second[1:]
    seed_iteration(3, 8)
    assert np.random.rand() != first[1]


def test_detectron2s_augmentations_are_covered(registered):
    sizes = ["SEED", "0", "INPUT.MIN_SIZE_TRAIN", "(48, 64, 80)", "INPUT.MAX_SIZE_TRAIN", "96"]
    cfg = load_config("shapes_coco_R18_C4", [*TINY, *sizes])
    one = list(itertools.islice(build_stream(cfg), 6))
    cfg.DATALOADER.NUM_WORKERS = 2
    two = list(itertools.islice(build_stream(cfg), 6))
    shapes, boxes = set(), set()
    for a, b in zip(itertools.chain(*one), itertools.chain(*two), strict=True):
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
        shapes.add(tuple(a["image"].shape))
        left = a["instances"].gt_boxes.tensor[0, 0].item() / a["image"].shape[2]
        boxes.add((a["file_name"], round(left, 3)))
    assert len(shapes) == 3
    assert len(boxes) > len({name for name, _ in boxes})  # flipped at times
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    with pytest.raises(UserError, match="only 'TrainingSampler'"):
        build_stream(cfg)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(tmp_path, workers):
    (tmp_path / "half.jpg").write_bytes(b"\xff\xd8\xffhalf")

    def read(record):
        return np.asarray(Image.open(record["file_name"]))

    data = [{"width": 2, "height": 1, "file_name": str(tmp_path / "half.jpg")}]
    stream = TrainingStream(Examples(data, read, True), 1, 0, workers)
    with pytest.raises(ImageError, match=r"half\.jpg cannot be used"):
        next(iter(stream))


@pytest.mark.parametrize("image_format", ["RGB", "BGR", "L"])
def test_examples_are_detectron2s(registered, image_format):
    cfg = load_config("shapes_coco_R18_C4", [*TINY, "INPUT.FORMAT", image_format])
    for name in ("shapes_coco_train", "shapes_voc_trainval"):
        for record in DatasetCatalog.get(name):
            for training in (True, False):
                ours, theirs = (kind(cfg, training) for kind in (Mapper, DatasetMapper))
                seed_iteration(0, 0)
                one = ours(record)
                seed_iteration(0, 0)
                other = theirs(record)
                assert one.keys() == other.keys()
                assert torch.equal(one["image"], other["image"])
                if training:
                    boxes = [e["instances"].gt_boxes.tensor for e in (one, other)]
                    assert torch.equal(*boxes)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_the_evaluation_cannot_read_is_named(tmp_path, workers):
    sixteen = np.full((40, 60), 40_000, np.uint16)
    Image.fromarray(sixteen).save(tmp_path / "deep.png")
    Image.new("RGB", (60, 40)).save(tmp_path / "half.jpg")
    half = (tmp_path / "half.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(half[: len(half) // 2])
    files = [{"file_name": str(tmp_path / n), "image_id": n} for n in ("deep.png", "half.jpg")]
    DatasetCatalog.register("half_a_set", lambda: files)
    MetadataCatalog.get("half_a_set").set(thing_classes=["a"])
    try:
        cfg = load_config("shapes_coco_R18_C4", [*TINY, "DATALOADER.NUM_WORKERS", str(workers)])
        batches = iter(TestImages(cfg, "half_a_set"))
        assert (next(batches)[0]["image"] == 40_000 >> 8).all()
        with pytest.raises(ImageError, match=r"half\.jpg cannot be read .*; repair it"):
            next(batches)
    finally:
        DatasetCatalog.remove("half_a_set")
        MetadataCatalog.remove("half_a_set")
