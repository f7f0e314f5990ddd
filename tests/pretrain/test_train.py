from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import tarfile

import numpy as np
import pytest
import torch
from safetensors import safe_open

from intl_transfer.conversion import convert, read_backbone
from intl_transfer.conversion.command import _pretraining
from intl_transfer.errors import UserError
from intl_transfer.models import Encoder, build_backbone, build_projector
from intl_transfer.runs import read_manifest, read_metrics, read_results, sha256_file
from intl_transfer.runs.changes import changes_of
from intl_transfer.runs.checkpoint import load_newest
from intl_transfer.runs.config import load_config
from pretrain.checks import check, without_trace_loss
from pretrain.config import OptimConfig, PretrainConfig
from pretrain.learner import learning_rate, only_warmup, parameter_groups
from pretrain.train import begun
from tests.pretrain.running import ROOT, assert_same, backbone, train
from tests.results.synthetic import pretraining_run


@pytest.mark.parametrize(
    "overrides",
    [(), ("loss.method=intl_ema", "data.workers=1"), ("engine.precision=bf16",)],
    ids=["intl", "ema", "bf16"],
)
def test_resuming_is_bit_identical(images, tmp_path, overrides):
    train(images, tmp_path / "whole", *overrides)
    # Stopped in the middle of the first epoch, and again in the second.
    stops = [*overrides, "engine.stop_after_steps=2"]
    train(images, tmp_path / "parts", *stops)
    assert read_manifest(tmp_path / "parts")["status"] == "interrupted"
    assert read_results(tmp_path / "parts") is None
    train(images, tmp_path / "parts", *stops)
    train(images, tmp_path / "parts", *overrides)
    assert_same(tmp_path / "whole", tmp_path / "parts")
    losses = {
        name: {row["step"]: row["loss"] for row in read_metrics(tmp_path / name)}
        for name in ("whole", "parts")
    }
    assert losses["whole"] == losses["parts"]
    assert sorted(losses["whole"]) == [1, 2, 3, 4, 5, 6]
    again = train(images, tmp_path / "parts", *overrides)
    assert "is finished; nothing to do" in again.stdout
    assert len(read_manifest(tmp_path / "parts")["sessions"]) == 3


def test_a_run_directory_says_all(images, tmp_path):
    done = train(images, tmp_path / "run", "seed=3", "engine.milestone_epochs=1")
    assert "ETA" in done.stdout
    manifest, results = read_manifest(tmp_path / "run"), read_results(tmp_path / "run")
    assert manifest["status"] == "finished"
    assert (manifest["seed"], results["seed"]) == (3, 3)
    assert manifest["config"]["optim"]["batch_size"] == 8
    assert results["steps"] == 6
    assert math.isfinite(results["final_loss"])
    file = tmp_path / "run" / results["backbone_file"]
    assert results["backbone_sha256"] == sha256_file(file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert json.loads(metadata["pretrain_run"])["id"] == manifest["id"]
    reference, _ = build_backbone("resnet18")
    reference.load_state_dict(backbone(tmp_path / "run"))
    other = train(images, tmp_path / "run", "seed=4", check=False)
    assert other.returncode == 2
    assert "seed: 3 before, 4 now" in other.stderr
    assert_epochs_done_are_stated(tmp_path / "run", tmp_path / "former.pt")


def assert_epochs_done_are_stated(run, former):
    """A checkpoint of the middle had all of the schedule, and shared the final one's row."""
    middle, end = (run / "checkpoints" / f"step_0000000{step}.pt" for step in (3, 6))
    whole = read_backbone(run).pretrain_run
    assert whole["epochs"] == 2
    assert read_backbone(end).pretrain_run == whole
    found = read_backbone(middle).pretrain_run
    assert found == {**whole, "epochs": 1, "planned_epochs": 2}
    # Those of earlier versions state the step alone.
    content = torch.load(middle, weights_only=True)
    del content["progress"]["epoch"]
    torch.save(content, former)
    assert read_backbone(former).pretrain_run == found
    torch.save({**content, "progress": {"step": 2}}, former)
    report = convert(former, former.with_suffix(".safetensors"))
    assert "epochs 0.666667 of 2: stated" in _pretraining(report)
    del content["manifest"]["dataset"], content["progress"]
    torch.save(content, former)
    unknown = read_backbone(former)
    assert unknown.pretrain_run == {**whole, "epochs": None, "planned_epochs": 2}
    assert "epochs" not in unknown.sources


def test_a_damaged_checkpoint_is_passed_over(images, tmp_path):
    train(images, tmp_path / "whole")
    partial = tmp_path / "partial"
    train(images, partial, "engine.stop_after_steps=4", "engine.checkpoint_steps=1")
    newest = sorted((partial / "checkpoints").glob("*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    done = train(images, partial)
    assert f"{newest.name} is damaged" in done.stderr
    assert "from step 3" in done.stdout
    assert_same(tmp_path / "whole", partial)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["intl", "intl_ema"])
def test_two_ranks_train_what_one_process_trains(images, tmp_path, method):
    # One step: from then on rounding alone drives two trainings of a tiny network apart. That the
    # gradients are exact is tested in float64, in tests/models.
    settings = [f"loss.method={method}", "engine.stop_after_steps=1"]
    train(images, tmp_path / "one", *settings)
    train(images, tmp_path / "two", *settings, ranks=2)
    assert read_manifest(tmp_path / "two")["sessions"][0]["world_size"] == 2
    (one,), (two,) = (read_metrics(tmp_path / name) for name in ("one", "two"))
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    _, one_state = load_newest(tmp_path / "one" / "checkpoints")
    _, two_state = load_newest(tmp_path / "two" / "checkpoints")
    assert len(two_state["rng"]) == 2
    for part in ("model", *(["target"] if method == "intl_ema" else [])):
        assert one_state[part].keys() == two_state[part].keys()
        for name, value in one_state[part].items():
            torch.testing.assert_close(two_state[part][name], value, rtol=1e-3, atol=1e-4)


def test_ranks_that_do_not_divide_the_batch(images, tmp_path):
    done = train(images, tmp_path / "run", ranks=3, check=False)
    assert done.returncode != 0
    assert "3 ranks do not divide the global batch of 8" in done.stderr


def test_one_image_a_rank(images, tmp_path):
    settings = ["optim.batch_size=2", "optim.epochs=1", "engine.stop_after_steps=1"]
    settings.append("loss.trace_weight=0.01")  # the published one is negative
    train(images, tmp_path / "synchronized", *settings, ranks=2)
    settings.append("model.sync_batchnorm=false")
    done = train(images, tmp_path / "own", *settings, ranks=2, check=False)
    assert done.returncode != 0
    assert "2 ranks have one image each of the global batch" in done.stderr


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("power", {"p": 0.3}),
        ("power_ema", {"p": 0.5}),
        ("w_mse", {"shrinkage": 0.1, "whitening_size": 4}),
        ("barlow_twins", {}),
        ("vicreg", {"variance_weight": 10}),
        ("simclr", {"temperature": 0.2}),
    ],
)
def test_other_methods_train_under_the_same_engine(images, tmp_path, method, options):
    settings = [f"loss.options.{name}={value}" for name, value in options.items()]
    train(images, tmp_path / "run", f"loss.method={method}", "optim.base_lr=0.01", *settings)
    losses = [entry["loss"] for entry in read_metrics(tmp_path / "run")]
    assert len(losses) == 6
    assert all(math.isfinite(loss) for loss in losses)
    assert read_results(tmp_path / "run")["method"] not in ("INTL", method)


def test_options_that_a_method_does_not_have():
    for override, expected in {
        "loss.method=simclr loss.options.temprature=1": "Did you mean 'temperature'?",
        "loss.method=intl loss.options.p=1": "loss.options.p: intl takes none",
        "loss.method=power": "loss.method=power needs an exponent",
        "loss.method=power_ema loss.options.p=-1": "p is -1.0; expected a power p >= 0",
        "loss.method=spectral": "loss.method=spectral needs a function: loss.g='1 / (1 + x)'",
        "loss.g=1/x": "loss.g is the function of loss.method=spectral; intl takes none",
        "loss.method=spectral loss.g=open(x)": "'open(x)' is not understood",
        "loss.method=power loss.options.p=1 loss.stable=false": "loss.stable is IterNorm's",
        "loss.method=simclr loss.trace_weight=0.1": "loss.method=simclr has no trace loss",
    }.items():
        config = load_config(
            PretrainConfig, "shapes_r18", override.split(), ROOT / "configs/pretrain"
        )
        with pytest.raises(UserError, match=re.escape(expected)):
            check(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.method=byol", "loss.method is 'byol'; expected one of intl, intl_ema"),
        ("engine.precision=fp8", "engine.precision is 'fp8'"),
        ("views=[{size: 32}]", "views has 1 entry"),
        ("views=[{size: 32, blur: 2}, {size: 32}]", "blur is 2"),
        ("data.root=absent", "no image folder absent"),
        ("data.subset=absent.txt", "the subset list absent.txt cannot be read"),
        ("data.workers=-1", "data.workers is -1; expected 0 or more"),
        ("optim.base_lr=-0.1", "optim.base_lr is -0.1; expected a positive number"),
        ("optim.clip_norm=0", "optim.clip_norm is 0.0; expected null or a positive number"),
        ("optim.optimizer=adam", "optim.optimizer is 'adam'; expected one of sgd, lars"),
        ("optim.batch_size=1", "optim.batch_size is 1; expected at least 2"),
        ("optim.batch_size=4", "loss.trace_weight is null: the published weight"),
        ("loss.iterations=0", "loss.iterations is 0; expected at least 1"),
        ("engine.keep_checkpoints=0", "engine.keep_checkpoints is 0; expected at least 1"),
        ("engine.compile=inductor engine.activation_checkpointing=true", "exclude each other"),
        ("knn.epochs=1", "knn.epochs needs labeled images to classify: knn.test=DIR"),
        ("model.backbone=resnet19", "Did you mean 'resnet18'"),
        ("optim.batch_size=64", "26 images do not fill one global batch of 64"),
    ],
)
def test_bad_settings_are_refused_before_training(images, tmp_path, override, message):
    settings = override.split() if override.startswith("engine.compile") else [override]
    done = train(images, tmp_path / "run", *settings, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.projector_layers=0", "model.projector_layers is 0; expected at least 1"),
        ("model.projector_hidden=0", "model.projector_hidden is 0; expected at least 1"),
        ("model.embedding=-1", "model.embedding is -1; expected at least 1"),
        ("engine.compile=foo", "engine.compile is 'foo'; expected null or one of "),
        ("optim.weight_decay=.inf", "optim.weight_decay is inf; expected a finite number"),
        ("optim.clip_norm=.nan", "optim.clip_norm is nan; expected a finite number"),
        ("loss.trace_weight=.nan", "loss.trace_weight is nan; expected a finite number"),
        ("loss.trace_weight=-1", "loss.trace_weight is -1.0; expected null or 0 or more"),
        (
            "loss.method=barlow_twins loss.options.eps=-1",
            "loss.options.eps is -1.0; expected a num",
        ),
        ("loss.method=vicreg loss.options.eps=0", "loss.options.eps is 0.0; expected a number > 0"),
        (
            "loss.method=simclr loss.options.temperature=.inf",
            "loss.options.temperature is inf; exp",
        ),
        ("knn.size=0", "knn.size is 0; expected null or at least 1"),
        ("log.seconds=-1", "log.seconds is -1.0; expected 0 or more"),
    ],
)
def test_numbers_out_of_range_are_named_before_anything_is_built(override, message):
    with pytest.raises(UserError, match=re.escape(message)):
        begun("shapes_r18", override.split(), "runs/none")


def test_a_batch_whose_published_trace_weight_is_0_is_named():
    config = begun("shapes_r18", ["optim.batch_size=8"], "runs/none")
    assert "0.01 (log2 x - 3), is 0 for optim.batch_size=8" in without_trace_loss(config)
    for more in ("optim.batch_size=16", "loss.trace_weight=0", "loss.method=vicreg"):
        config = begun("shapes_r18", ["optim.batch_size=8", more], "runs/none")
        assert not without_trace_loss(config)


@pytest.mark.parametrize("seed", [-1, 0, 2**32 - 1, 2**32, 10**23])
def test_seeds_are_those_that_the_generators_take(seed):
    """numpy's is the narrowest."""
    state = np.random.get_state()
    try:
        np.random.seed(seed)
    except ValueError:
        with pytest.raises(
            UserError, match=r"seed is .*expected a whole number from 0 to 42949672"
        ):
            begun("shapes_r18", [f"seed={seed}"], "runs/none")
    else:
        assert begun("shapes_r18", [f"seed={seed}"], "runs/none").seed == seed
    finally:
        np.random.set_state(state)


def test_learning_rate_schedule():
    optim = OptimConfig(epochs=10, batch_size=512, base_lr=0.3, warmup_epochs=2)
    rates = [learning_rate(step, 100, 20, optim) for step in range(100)]
    assert rates[0] == pytest.approx(0.6 / 20)
    assert rates[19] == pytest.approx(0.6)
    assert rates[20] == pytest.approx(0.0006 + 0.5994 * (1 + math.cos(math.pi / 80)) / 2)
    assert rates[59] == pytest.approx(0.0006 + 0.5994 / 2)
    assert rates[99] == pytest.approx(0.0006)


@pytest.mark.parametrize(("epochs", "warmup"), [(3, 5), (3, 3), (3, 2.9), (1, 2), (3, 0)])
def test_a_schedule_that_is_all_warm_up_is_said_to_be(epochs, warmup):
    """By the rates themselves: they never fall."""
    optim = OptimConfig(epochs=epochs, batch_size=256, base_lr=0.3, warmup_epochs=warmup)
    steps = 100 * epochs
    rates = [learning_rate(step, steps, round(100 * warmup), optim) for step in range(steps)]
    rises = all(before < after for before, after in itertools.pairwise(rates))
    text = only_warmup(optim)
    assert bool(text) == rises
    assert not text or f"to {100 * max(rates) / 0.3:.0f} % of its peak" in text


def test_weight_decay_spares_one_dimensional_parameters():
    network, width = build_backbone("resnet18")
    encoder = Encoder(network, build_projector(width, 16, 16))
    decayed, free = parameter_groups(encoder, OptimConfig(weight_decay=0.1))
    assert decayed["weight_decay"] == 0.1
    assert all(p.dim() > 1 for p in decayed["params"])
    assert free["weight_decay"] == 0
    assert all(p.dim() == 1 for p in free["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(list(encoder.parameters()))
    (every,) = parameter_groups(encoder, OptimConfig(weight_decay=0.1, decay_1d=True))
    assert len(every["params"]) == len(list(encoder.parameters()))


def test_tar_shards_train_and_resume_bit_identically(images, tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    files = sorted(images.rglob("*.png"))
    for shard in range(3):
        with tarfile.open(shards / f"{shard}.tar", "w") as archive:
            for file in files[shard::3]:
                archive.add(file, f"{file.parent.name}/{file.name}")
    train(shards, tmp_path / "whole", "data.workers=1")
    train(shards, tmp_path / "parts", "data.workers=2", "engine.stop_after_steps=4")
    train(shards, tmp_path / "parts", "data.workers=1")
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_a_run_that_is_there_keeps_what_it_began_with(tmp_path):
    """Manifests of earlier versions lack keys; their runs were made by the defaults of then."""
    output = str(tmp_path / "run")
    given = ["data.name=mine", "data.root=images"]
    assert begun("shapes_r18", given, output).data.exif_orientation
    run = pretraining_run(tmp_path, "run")
    config = dataclasses.asdict(begun("shapes_r18", given, output))
    del config["data"]["exif_orientation"]
    run.manifest.config = config
    run.save()
    goes_on = begun("shapes_r18", given, output)
    assert not goes_on.data.exif_orientation
    assert not changes_of(output, "pretrain", dataclasses.asdict(goes_on))
    other = begun("shapes_r18", [*given, "data.exif_orientation=true"], output)
    assert changes_of(output, "pretrain", dataclasses.asdict(other)) == {
        "data.exif_orientation": {"before": False, "now": True}
    }


def test_a_subset_is_what_is_trained_on(images, tmp_path):
    listing = tmp_path / "one.txt"
    listing.write_text("b\n")
    done = train(images, tmp_path / "run", f"data.subset={listing}")
    assert "13 images, 2 epochs, 2 steps" in done.stdout
