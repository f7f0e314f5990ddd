"""Few labels, and RetinaNet: lists that are fixed, and whole runs that land in a table."""

from __future__ import annotations

import json
import shutil
from itertools import islice

import pytest
import torch
from detectron2.data import get_detection_dataset_dicts
from hypothesis import given
from hypothesis import strategies as st

from detection import datasets, labels
from detection.config import load_config
from detection.stream import build_stream
from intl_transfer.data import detection_contents, label_lists
from intl_transfer.errors import UserError
from intl_transfer.results import collect
from intl_transfer.results.render import render
from intl_transfer.results.tables import build_tables
from intl_transfer.runs import read_manifest, read_metrics, read_results
from tests.detection.conftest import TINY

RETINANET = "shapes_coco_R18_RetinaNet"
#: Ids 1 to 10 by `for i in $(seq 10); do printf 0:$i | sha256sum; done`, sorted.
BY_SHA256 = ["7", "4", "9", "10", "3", "8", "2", "6", "5", "1"]


def test_a_list_is_what_sha256_says():
    assert label_lists.drawn(range(1, 11), 0.3, 0) == sorted(BY_SHA256[:3])
    assert label_lists.drawn(range(1, 11), 0.01, 0) == BY_SHA256[:1]


@given(
    ids=st.sets(st.integers(0, 10**6) | st.text("ab_0", min_size=7), min_size=1, max_size=60),
    shares=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    seed=st.integers(0, 99),
)
def test_lists_are_nested_and_of_their_size(ids, shares, seed):
    less, more = sorted(shares)
    small, large = (label_lists.drawn(list(ids), share, seed) for share in (less, more))
    assert set(small) <= set(large) <= set(map(str, ids))
    assert abs(len(large) - more * len(ids)) <= 0.5 or len(large) == 1
    assert large == label_lists.drawn(sorted(ids, key=str), more, seed)
    assert len(label_lists.drawn(list(ids), 1.0, seed)) == len(ids)


def changed(**values):
    cfg = load_config("shapes_coco_R18_C4")
    for key, value in values.items():
        cfg.DATASETS.LABELS[key] = value
    return cfg


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"FRACTION": 0.0}, "expected a fraction above 0, up to 1"),
        ({"FRACTION": 10.0}, "expected a fraction above 0, up to 1"),
        ({"FRACTION": 0.5, "SEED": -1}, "SEED is -1"),
        ({"FRACTION": 0.5, "LIST": "some.txt"}, "are both given"),
        ({"LIST": "gone.txt"}, "gone.txt does not exist; expected image ids"),
        ({"LIST": "empty.txt"}, "names no image"),
        ({"LIST": "shared.txt"}, r"names 1 image\(s\) of several training sets, .*: 4, of a, b"),
        ({"LIST": "others.txt"}, r"names 2 image\(s\) that are not in a, b, the first: 8"),
    ],
)
def test_lists_that_cannot_be(tmp_path, monkeypatch, values, message):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "others.txt").write_text("1\n9\n8\n")
    (tmp_path / "shared.txt").write_text("1\n4\nb:3\n")
    with pytest.raises(UserError, match=message):
        labels.chosen(changed(**values), {"a": [1, 2, 4], "b": ["3", "4"]})


def test_a_list_over_several_sets_names_the_set_of_each_image(tmp_path):
    """What was written is what is read, as a comparison of pairs says, also of shared ids."""
    sets = {"a": [1, 2, 3, 4], "b": [1, 2, 3, 4, "a:1"], "c": ["x"]}
    drawn = labels.chosen(changed(FRACTION=0.5), sets)
    pairs = {(name, one) for name, ids in drawn.items() for one in ids}
    labels.write_list(tmp_path, drawn)
    lines = (tmp_path / labels.FILE).read_text().splitlines()
    assert {tuple(line.split(":", 1)) for line in lines} == pairs
    assert len(lines) == len(pairs) == 6
    assert labels.chosen(changed(LIST=str(tmp_path / labels.FILE)), sets) == drawn
    (tmp_path / "own.txt").write_text("x\na:1\nb:a:1\n")  # ids alone where one set has them
    found = labels.chosen(changed(LIST=str(tmp_path / "own.txt")), sets)
    assert found == {"a": ["1"], "b": ["a:1"], "c": ["x"]}


def test_a_set_that_is_named_twice_counts_twice(registered):
    """As in Detectron2's records of all images, of which a list leaves some out."""
    twice = "('shapes_coco_train', 'shapes_coco_train')"
    options = [*TINY, "DATASETS.TRAIN", twice, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False"]
    few = load_config("shapes_coco_R18_C4", [*options, "DATASETS.LABELS.FRACTION", "0.5"])
    names = few.DATASETS.TRAIN
    whole = [r["image_id"] for r in get_detection_dataset_dicts(names, filter_empty=False)]
    records, lists = labels.training_records(few)
    kept = lists["shapes_coco_train"]
    expected = [one for one in whole if str(one) in kept]
    assert [record["image_id"] for record in records] == expected
    assert len(expected) == 2 * len(kept) == 6


def test_each_training_set_gives_its_share():
    sets = {
        "voc_2007": [f"{i:06d}" for i in range(40)],
        "voc_2012": [f"2008_{i}" for i in range(80)],
    }
    found = labels.chosen(changed(FRACTION=0.1), sets)
    assert {name: len(ids) for name, ids in found.items()} == {"voc_2007": 4, "voc_2012": 8}


@pytest.mark.parametrize("how", ["LIST", "FRACTION"])
def test_a_whole_list_is_a_full_run(registered, tmp_path, how):
    """The same images in the same order, augmented alike; and the same configuration."""
    full, whole = (load_config("shapes_coco_R18_C4", [*TINY, "SEED", "3"]) for _ in range(2))
    records = build_stream(full)._examples._records
    if how == "LIST":
        listed = tmp_path / "all.txt"
        listed.write_text("".join(f"{r['image_id']}\n" for r in reversed(records)))
        whole.DATASETS.LABELS.LIST = str(listed)
    else:
        whole.DATASETS.LABELS.FRACTION, whole.DATASETS.LABELS.SEED = 0.99, 7  # of six
    streams = [build_stream(full), build_stream(whole)]
    assert whole == full
    assert all(stream.lists == {} for stream in streams)
    batches = [list(islice(stream, 4)) for stream in streams]
    for one, other in zip(*batches, strict=True):
        assert [image["image_id"] for image in one] == [image["image_id"] for image in other]
        assert all(torch.equal(a["image"], b["image"]) for a, b in zip(one, other, strict=True))


def test_what_is_drawn_is_trained_on(registered):
    cfg = load_config("shapes_coco_R18_C4", [*TINY, "SEED", "3", "DATASETS.LABELS.FRACTION", "0.5"])
    stream = build_stream(cfg)
    drawn = {str(image["image_id"]) for batch in islice(stream, 9) for image in batch}
    assert drawn == set(stream.lists["shapes_coco_train"])
    assert len(drawn) == 3


def alike(one, other):
    """To rounding: within one process, memory lies otherwise from run to run, and sums with it.

    The average of RetinaNet's loss is in no state dict: without it steps are 10 % too small.
    """
    found = [torch.load(folder / "model_final.pth", weights_only=True) for folder in (one, other)]
    averages = [content["trainer"]["moving_averages"]["loss_normalizer"] for content in found]
    assert averages[0] == averages[1] != 100
    states = [content["model"] for content in found]
    return all(
        torch.allclose(value.float(), states[1][name].float(), rtol=1e-4, atol=1e-6)
        for name, value in states[0].items()
    )


@pytest.mark.slow
def test_few_labels_and_retinanet_train_resume_and_land_in_a_table(
    stage, backbone_file, tmp_path, capsys, monkeypatch
):
    """A run, what a kill after its second iteration leaves, and both again from their files."""
    opened = []
    monkeypatch.setattr(
        datasets,
        "open_set",
        lambda one: opened.append(one.name) or detection_contents.open_set(one),
    )
    whole, part = tmp_path / "runs" / "whole", tmp_path / "part"
    few = ["DATASETS.LABELS.FRACTION", "0.5"]
    base = ["--config", RETINANET, "--weights", backbone_file]
    budget = [*TINY, *few, "SOLVER.MAX_ITER", "3", "SOLVER.CHECKPOINT_PERIOD", "1"]
    assert stage(*base, "--output-dir", whole, *budget) == 0
    # Looked at before the training, and not again at its end.
    assert opened == ["shapes_coco_train", "shapes_coco_val"]
    output = capsys.readouterr().out
    assert "RetinaNet resnet18-FPN on shapes_coco_train" in output
    assert "50 % of the labels: 3 of 6 images" in output
    results, manifest = read_results(whole), read_manifest(whole)
    assert results.dataset.labels == manifest.dataset["shapes_coco_train"].labels
    assert (whole / labels.FILE).read_text().split() == label_lists.drawn(range(1, 7), 0.5, 0)
    assert results.schedule.name == "shapes-3-50pct"
    assert set(results.metrics) == {"box"}

    shutil.copytree(whole, part)
    for name in ("results.json", "model_final.pth"):
        (part / name).unlink()
    stated = (part / "manifest.json").read_text().replace('"finished"', '"running"')
    (part / "manifest.json").write_text(stated)
    other = [*budget, "DATASETS.LABELS.SEED", "1"]
    assert stage(*base, "--output-dir", part, "--resume", *other) == 2
    assert "DATASETS.LABELS.SEED: 0 before, 1 now" in capsys.readouterr().err
    assert stage(*base, "--output-dir", part, "--resume", *budget) == 0
    assert alike(whole, part)

    # The list that was written, given back, trains the same detector.
    given = tmp_path / "runs" / "given"
    listed = ["DATASETS.LABELS.LIST", whole / labels.FILE, *TINY, *budget[-4:]]
    assert stage(*base, "--output-dir", given, *listed) == 0
    losses = [read_metrics(folder)[0]["total_loss"] for folder in (whole, given)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    digests = {read_results(folder).dataset.labels.digest for folder in (whole, given)}
    assert len(digests) == 1

    assert stage("--weights", whole, "--eval-only", "--output-dir", tmp_path / "again") == 0
    again = json.loads((tmp_path / "again" / "evaluation.json").read_text())
    assert again["metrics"] == results.metrics
    assert again["architecture"]["meta"] == "RetinaNet"

    tables = build_tables(collect([tmp_path / "runs"]))
    assert len(tables) == 2  # a list that is given is told from one that is drawn
    text = render([table for table in tables if table.parts[0].labels == "50 %"], "md")
    assert "RetinaNet resnet18-FPN, schedule shapes-3-50pct" in text
    assert "50 % of the labels (3 of 6 images, seed 0, list" in text
    assert r"shapes\_coco 50 % RetinaNet det. AP50" in text
