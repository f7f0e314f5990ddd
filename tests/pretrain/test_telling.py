"""What a run tells: figures, pictures, alarms, the exported backbone."""

from __future__ import annotations

import json
import shutil
import sys
import time
from functools import partial

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from intl_transfer.conversion import load_backbone
from intl_transfer.data.sources import open_source
from intl_transfer.errors import UserError
from intl_transfer.runs import read_manifest, read_metrics, read_results, sha256_file
from intl_transfer.runs.checkpoint import list_checkpoints
from intl_transfer.runs.distributed import Ranks
from intl_transfer.spectral import diagnose
from pretrain.checks import configuration
from pretrain.monitor import KnnSets, sampled_spectrum
from tests.pretrain.running import train


def test_the_spectrum_that_is_kept_is_the_decompositions():
    z = torch.randn(24, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = z - z.mean(1, keepdim=True)
    expected = torch.linalg.svdvals(z).square()
    kept = sampled_spectrum(diagnose([z, z]).eigenvalues)
    ranks = kept["spectrum/ranks"]
    assert (ranks[0], ranks[-1]) == (1, 24)
    assert ranks == sorted(set(ranks))
    relative = (expected / expected[0])[torch.tensor(ranks) - 1]
    assert kept["spectrum/eigenvalues"] == pytest.approx(relative.tolist(), rel=1e-3)
    nothing = sampled_spectrum(torch.zeros(5))
    assert nothing["spectrum/eigenvalues"] == [0.0] * len(nothing["spectrum/ranks"])


def test_figures_reach_every_reader(images, tmp_path, monkeypatch):
    run = tmp_path / "run"
    settings = ["loss.method=intl_ema", "log.diagnostics_steps=2", "log.tensorboard=true"]
    settings += ["log.pictures=true", "log.seconds=0"]
    train(images, run, *settings, "engine.stop_after_steps=3")
    done = train(images, run, *settings)
    for word in ("epoch", "step 6/6", "images/s", "ETA", "mismatch", "trace", "lr", "ema"):
        assert word in done.stdout, word

    rows = read_metrics(run)
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    for row in steps:
        beta = 0.01 * (np.log2(8) - 3)
        assert row["loss"] == pytest.approx(row["mismatch"] + beta * row["trace_loss"], rel=1e-4)
        assert {"lr", "ema_momentum", "images_per_second", "data_time", "epoch"} <= row.keys()
    spectra = [row for row in rows if "spectrum/effective_rank" in row]
    assert [row["step"] for row in spectra] == [2, 4, 6]
    assert {"spectrum/condition", "spectrum/collapsed", "spectrum/alignment"} <= spectra[0].keys()
    ranks, values = spectra[0]["spectrum/ranks"], spectra[0]["spectrum/eigenvalues"]
    assert len(ranks) == len(values) <= 32
    assert ranks[0] == 1
    assert values[0] == 1
    # The indicator is lg of the least over the largest, and both ends are told.
    assert np.log10(values[-1]) == pytest.approx(spectra[0]["spectrum/condition"], abs=1e-3)

    board = EventAccumulator(str(run / "tensorboard")).Reload()
    scalars = board.Scalars("loss")
    assert [event.step for event in scalars] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in scalars] == pytest.approx([row["loss"] for row in steps])

    size = read_manifest(run)["details"]
    assert size["backbone_parameters"] == 11_176_512  # ResNet-18 without its classifier
    assert size["backbone_multiply_adds"] == pytest.approx(37.1e6, rel=0.02)  # 1.82 G (32/224)^2

    sheet = np.asarray(Image.open(run / "views.png"))
    assert sheet.shape == (8 * 36 + 4, 32 + 32 + 24 + 16, 3)
    assert sheet[4:36, 4:36].std() > 10


def test_multiply_adds_are_those_that_are_published():
    from pretrain.monitor import network_size

    size = network_size(torchvision.models.resnet50(), 224, torch.device("cpu"))
    assert size["backbone_multiply_adds"] == pytest.approx(4.1e9, rel=0.02)
    assert size["backbone_parameters"] == 25_557_032


def test_weights_and_biases_offline(images, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    own = (sys.executable,)  # which writes the rest as it ends
    train(images, tmp_path / "run", "log.wandb=intl", "engine.stop_after_steps=2", launcher=own)
    (offline,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    (file,) = offline.glob("*.wandb")
    identity = read_manifest(tmp_path / "run")["id"]
    assert identity in file.name
    assert b"images_per_second" in file.read_bytes()


@pytest.mark.parametrize("ranks", [1, 2])
def test_neighbors_are_asked_every_so_many_epochs(images, tmp_path, ranks):
    settings = [f"knn.test={images}", "knn.epochs=2", "knn.k=1", "optim.epochs=3"]
    done = train(images, tmp_path / "run", *settings, ranks=ranks)
    # Each image is its own nearest neighbor.
    assert "epoch 2: 1-NN accuracy 100.00 %" in done.stdout
    assert f"warning: knn.test={images} holds the training images" in done.stdout
    rows = [row for row in read_metrics(tmp_path / "run") if "knn_accuracy" in row]
    assert [(row["step"], row["knn_accuracy"]) for row in rows] == [(6, 100.0), (9, 100.0)]
    assert read_results(tmp_path / "run")["knn_accuracy"] == 100.0


def test_neighbors_do_not_change_the_training(images, tmp_path):
    train(images, tmp_path / "plain")
    train(images, tmp_path / "asked", f"knn.test={images}", "knn.epochs=1")
    one, two = (load_file(tmp_path / name / "backbone.safetensors") for name in ("plain", "asked"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_sets_of_other_classes_are_no_neighbors(images, tmp_path):
    (tmp_path / "other" / "a").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "other" / "a" / "x.png")
    settings = [f"knn.test={tmp_path / 'other'}", "knn.epochs=1"]
    done = train(images, tmp_path / "run", *settings, check=False)
    assert done.returncode == 2
    assert "data.root has 2 classes and knn.test 1, of which" in done.stderr


@pytest.mark.parametrize("damaged", [1, 6, 26])
def test_images_that_neighbors_cannot_read_are_counted_and_limited(images, tmp_path, damaged):
    """As in evaluations; without those of one class, the accuracy is that of the others."""
    tested = tmp_path / "tested"
    shutil.copytree(images, tested)
    for file in sorted(tested.rglob("*.*"))[:damaged]:
        file.write_bytes(b"no image")
    settings = [f"data.root={images}", "data.workers=0", f"knn.test={tested}", "knn.k=1"]
    settings.append("knn.epochs=1")
    config = configuration("shapes_r18", [*settings, "knn.size=8", "data.max_unreadable=0.1"])
    sets, ranks = KnnSets(config, open_source(images)), Ranks(0, 1, 0, torch.device("cpu"))
    if damaged == 1:
        sets.check(ranks)
        assert sets.accuracy(nn.Flatten(), ranks) == 100.0
        assert sets.unreadable == 1
        return
    for ask in (sets.check, partial(sets.accuracy, nn.Flatten())):
        with pytest.raises(UserError, match=rf"^knn\.test: {damaged} of 26 images cannot be read"):
            ask(ranks)


def test_unreadable_images_of_neighbors_are_found_before_the_first_step(images, tmp_path):
    tested = tmp_path / "tested"
    shutil.copytree(images, tested)
    for file in (tested / "b").iterdir():
        file.write_bytes(b"no image")
    done = train(images, tmp_path / "run", f"knn.test={tested}", "knn.epochs=1", check=False)
    assert done.returncode == 2
    assert "knn.test: " in done.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_list_of_classes_leaves_the_others_out_of_the_neighbors(images, tmp_path):
    """As in evaluations: ImageNet-100 is tested on the folder of all 1,000 classes."""
    (tmp_path / "classes.txt").write_text("a\nb\n")
    more = tmp_path / "more"
    shutil.copytree(images, more)
    shutil.copytree(images / "b", more / "c")
    own = open_source(more, tmp_path / "classes.txt")
    settings = [f"data.root={more}", "data.workers=0", f"knn.test={more}", "knn.k=1"]
    settings.append("knn.epochs=1")
    config = configuration("shapes_r18", [*settings, "knn.size=8"])
    sets = KnnSets(config, own)
    described = sets.described()
    assert [described[name].images for name in ("knn_train", "knn_test")] == [len(own)] * 2
    assert sets.accuracy(nn.Flatten(), Ranks(0, 1, 0, torch.device("cpu"))) == 100.0
    (tmp_path / "other" / "b").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "other" / "b" / "x.png")
    config.knn.test, whole = str(tmp_path / "other"), open_source(images)
    with pytest.raises(UserError, match=r"data\.root has 2 classes and knn\.test 1, of which 'a'"):
        KnnSets(config, whole)
    (tmp_path / "classes.txt").write_text("b\n")
    with pytest.raises(UserError, match=r"^data\.root: images of 1 class, 'b', and labels need"):
        KnnSets(config, open_source(more, tmp_path / "classes.txt"))


def test_a_loss_that_is_not_finite_ends_the_run_and_says_what_it_saw(images, tmp_path):
    run = tmp_path / "run"
    settings = ["engine.checkpoint_steps=1", "optim.epochs=20"]
    train(images, run, *settings, "engine.stop_after_steps=3")
    broken = ["optim.base_lr=1e30", "engine.nonfinite_steps=3", "--allow-config-change"]
    done = train(images, run, *settings, *broken, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "NaN or infinity" in done.stderr
    assert "3 consecutive step(s)" in done.stderr
    assert read_manifest(run)["status"] == "failed"
    (file,) = run.glob("nonfinite_step_*.json")
    dump = json.loads(file.read_text())
    newest = list_checkpoints(run / "checkpoints")[0]
    assert dump["last_checkpoint"] == newest.name
    assert newest.name in done.stderr
    assert dump["gradient_norm"].keys() == dump["parameter_norm"].keys()
    assert {"backbone.conv1", "backbone.layer4", "projector"} <= dump["gradient_norm"].keys()
    assert len(dump["views"]) == 3
    assert all(view["rows"] == 8 for view in dump["views"])
    # No checkpoint holds what is not finite: the run continues from there.
    done = train(images, run, *settings, "--allow-config-change", "engine.stop_after_steps=2")
    assert f"from step {int(newest.stem[5:])}" in done.stdout


def test_unreadable_images_are_named_counted_and_limited(images, tmp_path):
    data = tmp_path / "data"
    for file in images.rglob("*.png"):
        (data / file.parent.name).mkdir(parents=True, exist_ok=True)
        (data / file.parent.name / file.name).write_bytes(file.read_bytes())
    (data / "a" / "3.png").write_bytes(b"nothing")
    (data / "b" / "7.png").write_bytes((data / "b" / "7.png").read_bytes()[:300])
    some = ["data.max_unreadable=0.1", "optim.epochs=4"]
    done = train(data, tmp_path / "some", *some, "data.workers=1")
    assert done.stderr.count("replaced by another image") == 2
    assert "a/3.png cannot be read" in done.stderr
    assert "b/7.png cannot be read" in done.stderr
    assert read_results(tmp_path / "some")["unreadable_images"] == 2
    # Two ranks agree with one on the global batch.
    train(data, tmp_path / "one", *some, "engine.stop_after_steps=1")
    train(data, tmp_path / "two", *some, "engine.stop_after_steps=1", ranks=2)
    (one,), (two,) = (read_metrics(tmp_path / name) for name in ("one", "two"))
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    done = train(data, tmp_path / "none", "optim.epochs=4", check=False)
    assert done.returncode == 2
    assert "of 26 images cannot be read, over the limit of data.max_unreadable=0.001" in done.stderr


def test_a_data_set_that_goes_away_ends_the_run(images, tmp_path):
    data = tmp_path / "data"
    (data / "a").mkdir(parents=True)
    for i in range(30):
        (data / "a" / f"{i}.png").write_bytes(b"nothing")
    start = time.monotonic()
    done = train(data, tmp_path / "run", "data.workers=2", check=False)
    assert time.monotonic() - start < 60  # its loading processes do not hold it up
    assert done.returncode == 2
    assert "16 consecutive images cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


# The exported backbone


@pytest.fixture(scope="module")
def exported(images, tmp_path_factory):
    run = tmp_path_factory.mktemp("exported") / "run"
    train(images, run, "model.zero_init_residual=true")
    return run


def test_torchvision_and_timm_load_the_backbone(exported):
    weights = load_file(exported / "backbone.safetensors")
    network = torchvision.models.resnet18()
    loaded = network.load_state_dict(weights, strict=False)
    assert loaded.missing_keys == ["fc.weight", "fc.bias"]
    assert loaded.unexpected_keys == []
    network.fc = torch.nn.Identity()
    network.load_state_dict(weights)
    other = timm.create_model("resnet18", num_classes=0)
    other.load_state_dict(weights)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(images), other.eval()(images))
    ours = load_backbone(exported / "backbone.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in ours.items())


def test_the_model_card_says_where_the_weights_come_from(exported):
    card = (exported / "MODEL_CARD.md").read_text()
    manifest, results = read_manifest(exported), read_results(exported)
    for fact in (
        "INTL",
        "resnet18, imagenet stem",
        "| pretraining data | shapes |",
        "| epochs, steps | 2, 6 |",
        "| batch size | 8 (global) |",
        "sgd, base rate 0.5 x N/256",
        manifest["id"],
        sha256_file(exported / "backbone.safetensors"),
        f"{results['final_loss']:.4f}",
        "| 2 | 24 |",
    ):
        assert fact in card, fact


def test_the_cards_code_runs(exported, monkeypatch, capsys):
    card = (exported / "MODEL_CARD.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(exported)
    exec(compile(code, "card", "exec"), {})
    assert "missing_keys=['fc.weight', 'fc.bias'], unexpected_keys=[]" in capsys.readouterr().out
