"""``evaluate --check-expected``: published values, refusals before the run, the verdict after."""

from __future__ import annotations

import math

import pytest
import yaml

from intl_transfer.cli import main
from intl_transfer.errors import UserError
from intl_transfer.evaluation.backbone import EvaluatedBackbone
from intl_transfer.evaluation.command import CONFIGS, configuration
from intl_transfer.evaluation.config import Expectation
from intl_transfer.evaluation.expected import compare, expectations
from intl_transfer.results.published import read_published
from intl_transfer.runs.config import load_config
from intl_transfer.runs.records import Initialization, PretrainRun, Provenance
from pretrain.config import PretrainConfig
from tests.evaluation.test_stage import words


def test_values_of_recipes_are_the_published_ones():
    published = read_published()
    linear = {
        (row["method"], epochs): value
        for row in published["imagenet_linear_top1"]
        if row["method"].startswith("INTL")
        for epochs, value in row["epochs"].items()
    }
    small = {
        (row["dataset"], kind): value
        for row in published["small_datasets"]
        if row["method"] == "INTL"
        for kind, value in zip(("top-1", "5-NN", "top-5"), row["values"], strict=True)
    }
    folder = CONFIGS.parent / "pretrain"
    pretrainings = {path.stem for path in folder.glob("*.yaml")}
    checked = 0
    for path in CONFIGS.glob("*.yaml"):
        for item in configuration(path.stem, []).expected:
            assert item.pretraining in pretrainings
            pretraining = load_config(PretrainConfig, item.pretraining, [], folder)
            assert item.epochs == pretraining.optim.epochs
            dataset, _, epochs, *views = item.pretraining.split("_")
            if dataset == "imagenet":
                method = "INTL, multi-crop + EMA" if views else "INTL, two views"
                value = linear[method, int(epochs[2:])]
            else:
                value = small[dataset, "5-NN" if path.stem.endswith("knn") else "top-1"]
            assert (item.metric, item.value) == ("top1", value), path.stem
            assert "INTL README" in item.source
            checked += 1
    assert checked == 10


def test_what_is_expected_is_not_handed_on():
    """imagenet_semi1 and shapes_knn start from files; cifar100 from one with figures of its own."""
    assert configuration("imagenet_semi1", []).expected == []
    (only,) = configuration("cifar100_linear", []).expected
    assert only.pretraining == "cifar100_r18_ep1000"


def subject(recipe, epochs=1000):
    run = PretrainRun(config_name=recipe, epochs=epochs)
    return EvaluatedBackbone(
        None,
        512,
        "resnet18",
        initialization=Initialization(provenance=Provenance(pretrain_run=run)),
    )


def requested(name, *overrides, recipe="cifar10_r18_ep1000", epochs=1000):
    found = configuration(name, list(overrides)), configuration(name, [])
    return expectations(name, *found, "weights", subject(recipe, epochs))


def test_what_cannot_be_compared_is_refused():
    assert requested("cifar10_linear", "data.workers=2", "seed=3")[0].value == 92.6
    with pytest.raises(UserError, match=r"cifar10_linear .* as it is, .*optim.lr"):
        requested("cifar10_linear", "optim.lr=0.02")
    for key, value in (("shuffle_labels", "true"), ("noise", "1.0"), ("permute_weights", "true")):
        with pytest.raises(UserError, match=rf"as it is, .*control\.{key}"):
            requested("cifar10_linear", f"control.{key}={value}")
    with pytest.raises(UserError, match=r"of weights of 1000 epochs; these weights are of 2 "):
        requested("cifar10_linear", epochs=2)
    with pytest.raises(UserError, match="shapes_linear names no expected results"):
        requested("shapes_linear")
    with pytest.raises(UserError, match="these weights are by cifar100_r18_ep1000"):
        requested("cifar10_linear", recipe="cifar100_r18_ep1000")
    with pytest.raises(UserError, match="by a pretraining that they do not name"):
        requested("cifar10_linear", recipe=None)


@pytest.mark.parametrize(
    ("value", "is_as_expected"),
    [(50.5, True), (49.5, True), (50.51, False), (49.4, False), (math.nan, False), (None, False)],
)
def test_the_tolerance_decides(value, is_as_expected):
    item = Expectation("random", "top1", 50.0, 0.5, "a paper")
    found, (line,) = compare({"top1": value}, [item])
    assert found == is_as_expected
    assert ("NOT as expected" in line) != is_as_expected
    assert line.endswith("50 ± 0.5 (a paper)")


@pytest.mark.slow
def test_a_whole_run_says_how_it_compares(classes, tmp_path, capsys):
    """Neighbors of random features, twice: near anything within 100 points, not near 150."""
    values = words(classes, "random", tmp_path / "run")
    overrides = [word for word in values if "=" in word and not word.startswith("optim")]
    config = {}
    for word in [*overrides, "kind=knn", "k=3", "model.backbone=resnet18"]:
        key, _, value = word.partition("=")
        place = config
        *folders, leaf = key.split(".")
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = yaml.safe_load(value)
    for value, tolerance, status in ((50.0, 100.0, 0), (150.0, 1.0, 1)):
        row = {"pretraining": "random", "value": value, "tolerance": tolerance, "source": "here"}
        file = tmp_path / "own.yaml"
        file.write_text(yaml.safe_dump({**config, "expected": [row]}))
        command = ["evaluate", "--weights", "random", "--config", str(file), "--check-expected"]
        assert main([*command, "--output-dir", str(tmp_path / "run")]) == status
        output = capsys.readouterr().out
        assert (
            f"{'NOT as' if status else 'as'} expected: {value:g} ± {tolerance:g} (here)" in output
        )
    assert "is finished; nothing to do" in output
