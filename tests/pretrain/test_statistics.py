"""Images are normalized by the statistics of their data, which stay with the backbone."""

from __future__ import annotations

import json

import pytest
import torch
import torchvision
import yaml
from safetensors import safe_open
from sklearn.neighbors import KNeighborsClassifier
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from intl_transfer.cli import main
from intl_transfer.conversion import read_backbone
from intl_transfer.data.statistics import STATISTICS
from intl_transfer.evaluation.backbone import load_evaluated_backbone
from intl_transfer.evaluation.config import ModelConfig
from intl_transfer.runs import read_results
from tests.pretrain.running import backbone, train
from tests.pretrain.test_engine import batch, learner

NUMBERS = "data.normalize={mean: [0.5, 0.4, 0.3], std: [0.25, 0.2, 0.1]}"


@pytest.mark.parametrize("name", ["imagenet", "cifar10", "cifar100", "numbers"])
def test_the_network_sees_images_normalized_by_them(name):
    made = learner(NUMBERS if name == "numbers" else f"data.normalize={name}")
    seen = []
    made.encoder.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[0]))
    drawn = batch()
    made.step(0, drawn)
    known = STATISTICS.get(name)
    mean, std = (known.mean, known.std) if known else ((0.5, 0.4, 0.3), (0.25, 0.2, 0.1))
    theirs = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    for view, pixels in zip(seen, drawn.views, strict=True):
        torch.testing.assert_close(view, theirs(pixels.permute(0, 3, 1, 2)), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def small(images, tmp_path_factory):
    run = tmp_path_factory.mktemp("small") / "run"
    train(images, run, "data.normalize=cifar10", "model.stem=cifar_published")
    return run


def test_they_stay_with_the_backbone(small, tmp_path, monkeypatch, capsys):
    with safe_open(small / "backbone.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["stem"] == "cifar_published"
    cifar = STATISTICS["cifar10"]
    assert json.loads(metadata["normalize"]) == {"mean": list(cifar.mean), "std": list(cifar.std)}
    card = (small / "MODEL_CARD.md").read_text()
    assert "cifar10's mean (0.4914, 0.4822, 0.4465)" in card
    assert "resnet18, cifar_published stem" in card
    newest = sorted((small / "checkpoints").glob("*.pt"))[-1]
    for source in (small, newest):  # the exported backbone, and a checkpoint
        subject = load_evaluated_backbone(str(source), ModelConfig())
        assert subject.stem == "cifar_published"
        assert subject.settings.pixel_mean == pytest.approx([255 * v for v in cifar.mean])
        assert subject.assumptions() == []
    # The card's code builds the same network.
    monkeypatch.chdir(small)
    scope = {}
    exec(compile(card.split("```python\n")[1].split("```")[0], "card", "exec"), scope)
    assert "unexpected_keys=[]" in capsys.readouterr().out
    pixels = torch.randn(2, 3, 32, 32)
    scope["resnet"].fc = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(
            scope["resnet"].eval()(pixels), subject.network.eval()(pixels), rtol=1e-5, atol=1e-6
        )


def test_they_reach_detectron2(images, tmp_path):
    run = tmp_path / "run"
    train(images, run, NUMBERS, "loss.method=intl_ema")
    for branch in ("online", "target"):
        out = tmp_path / f"{branch}.pth"
        assert main(["convert", str(run), str(out), "--branch", branch]) == 0
        values = yaml.safe_load(out.with_suffix(".yaml").read_text())
        assert values["MODEL"]["PIXEL_MEAN"] == pytest.approx([127.5, 102, 76.5])
        assert values["MODEL"]["PIXEL_STD"] == pytest.approx([63.75, 51, 25.5])
        assert read_backbone(out).settings.pixel_std == (63.75, 51, 25.5)
        report = json.loads(out.with_suffix(".json").read_text())
        assert report["provenance"]["pixels"]["mean"] == [127.5, 102.0, 76.5]
        assert "pretraining" in report["config_source"]


def test_neighbors_see_them_too(images, tmp_path):
    """What a run tells of its nearest neighbors, again by torchvision and scikit-learn."""
    cut = ["views=[{size: 32}, {size: 32}]", "knn.size=40", "knn.k=3", "knn.epochs=2"]
    settings = [f"knn.test={images}", "data.normalize=cifar100", "optim.epochs=2"]
    train(images, tmp_path / "run", *settings, *cut)
    known = STATISTICS["cifar100"]
    theirs = transforms.Compose(
        [
            *(transforms.Resize(45), transforms.CenterCrop(40), transforms.ToTensor()),
            transforms.Normalize(known.mean, known.std),
        ]
    )
    pictures = ImageFolder(images, theirs)
    pixels = torch.stack([picture for picture, _ in pictures])
    network = torchvision.models.resnet18(weights=None)
    network.fc = torch.nn.Identity()
    network.load_state_dict(backbone(tmp_path / "run"))
    with torch.no_grad():
        features = network.eval()(pixels).numpy()
    classifier = KNeighborsClassifier(3, algorithm="brute").fit(features, pictures.targets)
    expected = 100 * classifier.score(features, pictures.targets)
    assert read_results(tmp_path / "run")["knn_accuracy"] == pytest.approx(expected)
    assert 50 < expected < 100
