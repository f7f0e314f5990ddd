"""Whole evaluations: results, tables, stopping and continuing, several ranks, bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torchvision.datasets import ImageFolder

from intl_transfer.cli import main
from intl_transfer.data.shapes import ShapesSpec, make_shapes
from intl_transfer.errors import UserError
from intl_transfer.evaluation.batches import drawn_labels
from intl_transfer.evaluation.command import configuration
from intl_transfer.evaluation.features import EvaluationImages, extract_features, on_every_rank
from intl_transfer.results import TableOptions, build_tables, collect
from intl_transfer.runs import read_manifest, read_metrics, read_results
from intl_transfer.runs.distributed import Ranks
from tests.ranks import run_ranks, run_stage

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
# Two epochs of four steps (36 images), of which semi sees half.
SMALL = [
    "data.size=32",
    "data.workers=0",
    "optim.epochs=2",
    "optim.batch_size=8",
    "optim.milestones=[1]",
    "engine.device=cpu",
    "engine.threads=1",
    "log.steps=1",
    "log.tensorboard=false",
]
SPLITS = {"train": "train", "test": "val"}
KINDS = {
    "linear": [],
    "cached": ["data.augment=false"],
    "semi": ["kind=semi", "data.labels_percent=50", "optim.backbone_lr=0.01"],
    "knn": ["kind=knn", "k=3"],
}


def words(classes, weights, output, *more):
    learns = "kind=knn" not in more
    small = [word for word in SMALL if learns or not word.startswith("optim.")]
    return [
        "evaluate",
        *("--weights", str(weights), "--config", "shapes_linear", "--output-dir", str(output)),
        *small,
        f"data.train={classes / 'train'}",
        f"data.test={classes / 'test'}",
        "data.name=colors",
        *more,
    ]


def evaluate(*arguments, expected=0):
    assert main(words(*arguments)) == expected


def started(arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "intl_transfer", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def learned(output):
    return load_file(output / "classifier.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_becomes_a_row_of_a_table(kind, classes, trained, tmp_path, capsys):
    output = tmp_path / "run"
    evaluate(classes, trained, output, *KINDS[kind], "--method", "MoCo v2", "--epochs", "200")
    results, manifest = read_results(output), read_manifest(output)
    assert (manifest["stage"], manifest["status"]) == ("evaluation", "finished")
    assert results["initialization"]["weights_sha256"] == manifest["inputs"][0]["sha256"]
    # Above chance, as colors are easy, even for features that have seen none.
    assert results["metrics"]["top1"] > 40
    assert results["metrics"].get("top5") is None  # of three classes, five guesses are no test
    if kind != "knn":
        assert results["epoch"] == results["protocol"]["epochs"] == 2
        rows = [row for row in read_metrics(output) if "loss" in row]
        assert [row["step"] for row in rows] == list(range(1, 1 + (4 if kind == "semi" else 8)))
        assert rows[-1]["lr"] == pytest.approx(rows[0]["lr"] / 10)
        tested = [row["test_top1"] for row in read_metrics(output) if "test_top1" in row]
        assert len(tested) == 2
        assert tested[-1] == results["metrics"]["top1"]
    found = collect([tmp_path])
    (table,) = [t for t in build_tables(found, TableOptions()) if t.dataset == "colors"]
    (row,) = table.rows
    assert row.method == "MoCo v2"
    assert next(iter(row.metrics.values())).mean == pytest.approx(results["metrics"]["top1"])
    capsys.readouterr()
    evaluate(classes, trained, output, *KINDS[kind], "--method", "MoCo v2", "--epochs", "200")
    assert "nothing to do" in capsys.readouterr().out


def test_statistics_that_did_not_normalize_the_images_are_not_in_a_title(
    classes, trained, tmp_path, capsys
):
    """Weights that state theirs use those; random ones the data set's, ImageNet's by default."""
    stated = ["--pixels", "imagenet", "--method", "MoCo v2"]
    top1 = {}
    for name, weights, more in (
        ("plain", trained, stated),
        ("named", trained, [*stated, "data.normalize=cifar10", "seed=1"]),
        ("usual", "random", ["model.backbone=resnet18"]),
        ("imagenet", "random", ["model.backbone=resnet18", "data.normalize=imagenet", "seed=1"]),
        ("cifar", "random", ["model.backbone=resnet18", "data.normalize=cifar10"]),
    ):
        evaluate(classes, weights, tmp_path / name, *KINDS["knn"], *more)
        said = "data.normalize is not used" in capsys.readouterr().out
        assert said == (name == "named")
        top1[name] = read_results(tmp_path / name)["metrics"]["top1"]
    assert top1["plain"] == top1["named"]
    found = build_tables(collect([tmp_path], cache=False), TableOptions())
    (table,) = [table for table in found if table.dataset == "colors"]
    assert "normalize" not in table.title
    rows = sorted(sorted(run.path.name for run in row.runs) for row in table.rows)
    assert rows == [["cifar"], ["imagenet", "usual"], ["named", "plain"]]


def test_products_are_exact_whatever_was_allowed_before(classes, trained, tmp_path):
    torch.set_float32_matmul_precision("high")  # as by a variable of NVIDIA's containers
    evaluate(classes, trained, tmp_path / "run", *KINDS["knn"])
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("kind", ["linear", "cached", "semi"])
def test_a_run_in_pieces_is_the_whole_run(kind, classes, trained, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    evaluate(classes, trained, whole, *KINDS[kind])
    evaluate(classes, trained, parts, *KINDS[kind], "engine.stop_after_steps=1")
    assert read_manifest(parts)["status"] == "interrupted"
    evaluate(classes, trained, parts, *KINDS[kind], "engine.stop_after_steps=2")
    evaluate(classes, trained, parts, *KINDS[kind])
    one, other = learned(whole), learned(parts)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert read_results(whole)["metrics"] == read_results(parts)["metrics"]


def test_a_signal_stops_it_and_the_same_command_goes_on(classes, trained, tmp_path):
    output, long = tmp_path / "run", ["optim.epochs=200", "log.test_epochs=0"]
    process = started(words(classes, trained, output, *long))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(read_metrics(output)) < 3:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 75, printed
    assert "stopped by SIGTERM after step" in printed
    done = read_metrics(output)[-1]["step"]
    evaluate(classes, trained, output, *long, "engine.stop_after_steps=2")
    steps = [row["step"] for row in read_metrics(output)]
    assert steps == list(range(1, done + 3))


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_give_what_one_process_gives(kind, classes, trained, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    evaluate(classes, trained, one, *KINDS[kind])
    assert run_stage(main, 2, words(classes, trained, two, *KINDS[kind])) == [0, 0]
    assert read_results(one)["metrics"]["top1"] == pytest.approx(
        read_results(two)["metrics"]["top1"], abs=1e-6 if kind != "semi" else 5
    )
    if kind != "knn":
        # Of a network that learns as a whole, rounding grows from step to step.
        near = {"rtol": 1e-3, "atol": 2e-3} if kind == "semi" else {"rtol": 1e-4, "atol": 1e-5}
        left, right = learned(one), learned(two)
        for key in left:
            torch.testing.assert_close(left[key], right[key], **near)


def test_what_learned_loads_into_torchvision(classes, trained, tmp_path):
    evaluate(classes, trained, tmp_path / "run", *KINDS["semi"])
    network = torchvision.models.resnet18(num_classes=3)
    network.load_state_dict(learned(tmp_path / "run"))
    evaluate(classes, trained, tmp_path / "head")
    head = learned(tmp_path / "head")
    assert sorted(head) == ["fc.bias", "fc.weight"]
    network.load_state_dict(head, strict=False)


@pytest.mark.parametrize("start", ["random", "MoCo v2"])
def test_a_backbone_trained_on_labels_is_a_start_for_others(
    start, classes, trained, tmp_path, capsys
):
    settings = [*KINDS["semi"][:1], "data.labels_percent=100", *KINDS["semi"][2:]]
    settings += ["model.backbone=resnet18", "data.normalize=cifar10", "seed=3"]
    known = [] if start == "random" else ["--method", start, "--pixels", "imagenet"]
    evaluate(
        classes, "random" if start == "random" else trained, tmp_path / "run", *settings, *known
    )
    file, out = tmp_path / "run/classifier.safetensors", tmp_path / "out.pth"
    assert main(["convert", str(file), str(out)]) == 0
    assert "fc.weight" in capsys.readouterr().out  # dropped, and said
    provenance = json.loads(out.with_suffix(".json").read_text())["provenance"]
    run, manifest = provenance["pretrain_run"], read_manifest(tmp_path / "run")
    method = "supervised" if start == "random" else "MoCo v2, then labels"
    assert provenance["method"] == run["method"] == method
    assert (run["id"], run["epochs"], run["dataset"], run["seed"]) == (
        manifest["id"],
        2,
        "colors",
        3,
    )
    assert run["settings"]["data.labels_percent"] == 100
    assert run["settings"]["dataset.train.images"] == 36
    sha = manifest["inputs"][0]["sha256"] if known else None
    assert run["settings"].get("weights_sha256") == sha
    # ResNet-18's published recipes start no branch at zero.
    assert run["settings"].get("model.zero_init_residual") is (None if known else False)
    assert manifest["config"]["model"]["zero_init_residual"] is bool(known)
    levels = {key: fact["level"] for key, fact in provenance["evidence"].items()}
    assert {levels[key] for key in ("method", "epochs", "dataset", "pixels")} == {
        "stated in the file"
    }
    # CIFAR-10's mean as published, where labels alone trained it.
    mean = [125.3, 123.0, 113.9] if start == "random" else [123.675, 116.28, 103.53]
    assert provenance["pixels"]["mean"] == pytest.approx(mean, abs=0.1)
    detectron2 = torch.load(out, weights_only=True)["model"]
    torch.testing.assert_close(
        torch.as_tensor(detectron2["stem.conv1.weight"]), learned(tmp_path / "run")["conv1.weight"]
    )


def test_another_run_is_not_continued(classes, trained, tmp_path, capsys):
    output = tmp_path / "run"
    evaluate(classes, trained, output)
    evaluate(classes, trained, output, "optim.lr=0.2", expected=2)
    assert "optim.lr: 0.03 before, 0.2 now" in capsys.readouterr().err
    evaluate(classes, "random", output, "model.backbone=resnet18", expected=2)
    assert "weights sha256: " in capsys.readouterr().err
    evaluate(classes, trained, tmp_path / "absent", "data.test=nowhere", expected=2)
    assert "no image folder nowhere" in (printed := capsys.readouterr().err)
    assert "Give another with data.test=DIR" in printed
    moved = tmp_path / "moved"
    shutil.copytree(classes, moved)
    evaluate(moved, trained, output)  # data may lie elsewhere


def test_checkpoints_without_their_manifest_are_the_same_run_or_refused(
    classes, trained, tmp_path, capsys
):
    first, copy, old = (tmp_path / name for name in ("first", "copy", "old"))
    evaluate(classes, trained, first, "engine.stop_after_steps=3")
    for folder in (copy, old):
        shutil.copytree(first / "checkpoints", folder / "checkpoints")
    evaluate(classes, trained, copy, "optim.lr=3", "seed=5", expected=2)
    assert "optim.lr: 0.03 before, 3.0 now; seed: 0 before, 5 now" in capsys.readouterr().err
    evaluate(classes, "random", copy, "model.backbone=resnet18", expected=2)
    assert "weights sha256" in capsys.readouterr().err
    assert not (copy / "manifest.json").exists()
    evaluate(classes, trained, copy)
    evaluate(classes, trained, first)
    one, other = learned(first), learned(copy)
    assert all(torch.equal(one[key], other[key]) for key in one)
    manifest = read_manifest(copy)
    assert manifest.id == read_manifest(first).id
    assert manifest.sessions[-1].continues["run"] == manifest.id
    # Those of before this version state no settings.
    for file in (old / "checkpoints").iterdir():
        content = torch.load(file, weights_only=True)
        content.pop("manifest")
        torch.save(content, file)
    evaluate(classes, trained, old, expected=2)
    assert "does not state the settings of its run" in capsys.readouterr().err
    evaluate(classes, trained, old, "--allow-config-change")
    assert read_manifest(old).sessions[-1].continues["run"] is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=4294967296", "seed is 4294967296; expected a whole number from 0 to 4294967295"),
        ("optim.weight_decay=.inf", "optim.weight_decay is inf; expected a finite number"),
        ("optim.head_std=.nan", "optim.head_std is nan; expected a finite number"),
        ("log.seconds=-1", "log.seconds is -1.0; expected 0 or more"),
    ],
)
def test_numbers_out_of_range_are_named(override, message):
    with pytest.raises(UserError, match=message):
        configuration("shapes_linear", [override])


def test_a_run_is_not_continued_on_other_images(classes, trained, tmp_path, capsys):
    images, output = tmp_path / "images", tmp_path / "run"
    shutil.copytree(classes, images)
    evaluate(images, trained, output, "engine.stop_after_steps=1")
    shutil.copy(images / "train" / "red" / "0.png", images / "train" / "blue" / "0.png")
    evaluate(images, trained, output, expected=2)
    assert (
        "contains a run with different settings (dataset.train.digest: " in capsys.readouterr().err
    )
    evaluate(images, trained, output, "--allow-config-change")
    changes = read_manifest(output).sessions[-1].changes
    assert list(changes) == ["dataset.train.digest"]


def test_sets_of_other_classes_are_refused(classes, trained, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(classes, other)
    (other / "test" / "red").rename(other / "test" / "rot")
    evaluate(other, trained, tmp_path / "run", expected=2)
    printed = capsys.readouterr().err
    assert (
        "data.train has 3 classes and data.test 3, of which 'red' is in one of them only" in printed
    )
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_a_list_of_classes_counts_for_both_sets(classes, trained, tmp_path):
    listing = tmp_path / "two.txt"
    listing.write_text("red\nblue\n")
    evaluate(classes, trained, tmp_path / "run", f"data.subset={listing}")
    assert learned(tmp_path / "run")["fc.weight"].shape[0] == 2


def test_unreadable_images_are_counted_and_limited(classes, trained, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(classes, broken)
    for part in ("train", "test"):
        (broken / part / "red" / "1.png").write_bytes(b"no image")
    output = tmp_path / "run"
    evaluate(broken, trained, output, "data.max_unreadable=0.1")
    assert read_results(output)["unreadable_images"] == 2
    shutil.copy(classes / "train" / "red" / "1.png", broken / "train" / "red" / "1.png")
    for kind in ("linear", "cached", "semi", "knn"):
        evaluate(broken, trained, tmp_path / kind, *KINDS[kind], expected=2)
        assert "over the limit" in capsys.readouterr().err
        assert read_manifest(tmp_path / kind)["status"] == "failed"


def test_a_loss_that_is_not_finite_ends_it(classes, trained, tmp_path, capsys):
    wild = ["optim.lr=1e38", "optim.weight_decay=9"]
    evaluate(classes, trained, tmp_path / "run", *wild, expected=2)
    assert "use a smaller optim.lr" in capsys.readouterr().err


def test_settings_that_were_changed_on_purpose_count(classes, trained, tmp_path):
    output = tmp_path / "run"
    evaluate(classes, trained, output, "engine.stop_after_steps=1")
    changed = ["optim.lr=0.5", "optim.milestones=[9]", "--allow-config-change"]
    evaluate(classes, trained, output, *changed)
    rates = [row["lr"] for row in read_metrics(output) if "lr" in row]
    assert rates == [0.03, *[0.5] * 7]
    assert read_results(output)["protocol"]["lr"] == 0.5
    assert read_manifest(output)["config"]["model"]["backbone"] == "resnet18"


def test_a_run_of_before_goes_on_as_it_began(classes, trained, tmp_path, capsys):
    """Its configuration lacks what was no setting then; crops were bicubic, tags left aside."""
    whole, output = tmp_path / "whole", tmp_path / "run"
    former = ["data.interpolation=bicubic", "data.exif_orientation=false"]
    evaluate(classes, trained, whole, *former)
    evaluate(classes, trained, output, "engine.stop_after_steps=1", *former)
    manifest = json.loads((output / "manifest.json").read_text())
    for key in ("interpolation", "exif_orientation", "crop_pct", "normalize"):
        del manifest["config"]["data"][key]
    del manifest["config"]["optim"]["base_batch_size"]
    (output / "manifest.json").write_text(json.dumps(manifest))
    changes = ["data.interpolation=bilinear", "data.exif_orientation=true"]
    evaluate(classes, trained, output, *changes, expected=2)
    refused = capsys.readouterr().err
    assert "data.interpolation: bicubic before, bilinear now" in refused
    assert "data.exif_orientation: False before, True now" in refused
    evaluate(classes, trained, output)
    manifest = read_manifest(output)
    assert manifest["status"] == "finished"
    assert manifest["config"]["data"]["interpolation"] == "bicubic"
    assert manifest["config"]["data"]["exif_orientation"] is False
    assert read_results(output)["metrics"] == read_results(whole)["metrics"]


def test_too_large_a_batch_is_refused(classes, trained, tmp_path, capsys):
    evaluate(classes, trained, tmp_path / "run", "optim.batch_size=64", expected=2)
    assert "36 images do not fill one global batch of 64" in capsys.readouterr().err


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    percent=st.floats(0.5, 100),
)
def test_drawn_labels_are_a_share_of_each_class(labels, percent):
    every = np.array(labels, np.int64)
    chosen = drawn_labels(every, percent)
    assert list(chosen) == sorted(set(chosen.tolist()))
    for label in set(labels):
        own = int((every == label).sum())
        assert int((every[chosen] == label).sum()) == max(1, round(own * percent / 100))
    assert np.array_equal(chosen, drawn_labels(every, percent))


def shares(rank, world_size, root):
    from intl_transfer.data.sources import open_source

    ranks = Ranks(rank, world_size, rank, CPU)
    images = EvaluationImages(open_source(root), 8)
    part = extract_features(torch.nn.Flatten(), images, ranks)
    return [part.numpy() for part in on_every_rank(*part, images, ranks)]


@pytest.mark.parametrize("broken", [(), (0,), (1, 4, 5, 20)])
@pytest.mark.parametrize("ranks", [2, 3])
def test_every_rank_has_all_features_in_order(classes, ranks, broken, tmp_path):
    """With an unreadable image they were in the order of ranks, and training saw other batches."""
    root = tmp_path / "test"
    shutil.copytree(classes / "test", root)
    samples = ImageFolder(str(root)).samples
    for index in broken:
        Path(samples[index][0]).write_bytes(b"no image")
    alone = shares(0, 1, root)
    assert alone[1].tolist() == [y for i, (_, y) in enumerate(samples) if i not in broken]
    for found in run_ranks(shares, ranks, root):
        assert all(np.array_equal(a, b) for a, b in zip(alone, found, strict=True))


def test_the_classifier_says_what_it_is(classes, trained, tmp_path):
    from safetensors import safe_open

    evaluate(classes, trained, tmp_path / "run")
    with safe_open(tmp_path / "run" / "classifier.safetensors", "pt") as file:
        facts = file.metadata()
    assert facts["architecture"] == "resnet18"
    assert json.loads(facts["classes"]) == ["blue", "green", "red"]


def test_scores_fall_to_chance_as_the_signal_goes(tmp_path, trained, capsys):
    """A benchmark that does not move is not measuring; and controls are rows of their own kind."""
    data = make_shapes(
        tmp_path / "shapes",
        ShapesSpec(objects_train=128, objects_val=160, scenes_train=1, scenes_val=1),
    )
    controls = {
        "none": [],
        "some": ["control.noise=0.6"],
        "noise": ["control.noise=1.0"],
        "labels": ["control.shuffle_labels=true"],
        "weights": ["control.permute_weights=true"],
    }
    scores = {}
    for name, words in controls.items():
        output = tmp_path / "runs" / name
        arguments = ["evaluate", "--weights", str(trained), "--config", "shapes_knn"]
        arguments += ["--output-dir", str(output), "engine.threads=1"]
        arguments += [f"data.{k}={data}/classification/{v}" for k, v in SPLITS.items()]
        assert main([*arguments, *words]) == 0
        scores[name] = read_results(output)["metrics"]["top1"]
    assert "control: noise 1" in capsys.readouterr().out
    chance, spread = 100 / 8, 100 * (1 / 8 * 7 / 8 / 160) ** 0.5
    for name in ("noise", "labels"):
        assert abs(scores[name] - chance) < 3.5 * spread, scores
    assert scores["none"] > chance + 8 * spread, scores
    assert scores["noise"] < scores["some"] < scores["none"], scores
    # The same table, below the row that they are of; the best of the column is none of them.
    (table,) = build_tables(collect([tmp_path / "runs"], cache=False))
    ordinary, *others = table.rows
    assert not ordinary.control
    assert all(row.control for row in others)
    assert sorted(row.method.split(" (")[0] for row in others) == [
        *("control: labels shuffled", "control: noise 0.6", "control: noise 1"),
        "control: weights permuted",
    ]
    assert not any(mark.best for row in others for mark in row.marks.values())
