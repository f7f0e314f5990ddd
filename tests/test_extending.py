"""Everything that can be added, added: the files of ``tests/examples``, and no other file changed.

``docs/extending.md`` shows these files as they are; what it calls a row is set here in its table.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from intl_transfer.cli import main
from intl_transfer.conversion import adapters, load_backbone, read_backbone
from intl_transfer.data import sources
from intl_transfer.evaluation import EvaluationImages, extract_features
from intl_transfer.evaluation.backbone import load_evaluated_backbone
from intl_transfer.evaluation.config import ModelConfig
from intl_transfer.evaluation.kinds import KINDS
from intl_transfer.methods import METHODS
from intl_transfer.runs import read_manifest, read_metrics, read_results
from intl_transfer.runs.distributed import Ranks
from pretrain import train as pretraining
from tests.conversion.layouts import small_state
from tests.detection.conftest import TINY as TINY_DETECTOR
from tests.detection.conftest import data, registered, stage  # noqa: F401 - fixtures
from tests.examples.checkpoint_format import LAYOUT
from tests.examples.column import write_results
from tests.examples.data_set import SOURCE
from tests.examples.evaluation import KIND
from tests.examples.method import METHOD, margin_loss
from tests.examples.on_ranks import loss_of_a_rank
from tests.pretrain.running import TINY
from tests.ranks import run_ranks

ROOT = Path(__file__).resolve().parents[1]
ALONE = Ranks(0, 1, 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes told apart by color: 18 images, and the table that names them."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    lines = []
    for number in range(18):
        label = ("blue", "red")[number % 2]
        pixels = rng.integers(0, 120, (40, 40, 3), dtype=np.uint8)
        pixels[..., 2 if label == "blue" else 0] += 100
        Image.fromarray(pixels).save(root / f"{number}.png")
        lines.append(f"{number}.png,{label}\n")
    (root / "labels.csv").write_text("".join(lines))
    return root


@pytest.fixture
def table_source(monkeypatch, tmp_path):
    """The data set, in its table."""
    monkeypatch.setattr(sources, "SOURCES", (SOURCE, *sources.SOURCES))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def collected(folder, capsys):
    """The rows of all tables of runs, by what they are called."""
    capsys.readouterr()
    assert main(["collect", str(folder), "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_method_and_a_data_set(pictures, table_source, tmp_path, monkeypatch, capsys):
    """A method trains on a data set; k nearest neighbors make it a row."""
    monkeypatch.setitem(METHODS, METHOD.name, METHOD)
    settings = [
        *TINY,
        *(f"data.root={pictures}", "data.name=table", "loss.method=margin", "data.workers=0"),
        *("loss.options.margin=0.2", "knn.epochs=1", f"knn.test={pictures}", "knn.k=1"),
    ]
    words = ["--config", "shapes_r18", "--output-dir", str(tmp_path / "run"), *settings]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    assert pretraining.main() == 0
    manifest, results = read_manifest(tmp_path / "run"), read_results(tmp_path / "run")
    assert manifest["dataset"]["train"]["classes"] == 2
    assert results["method"] == "Margin matching + EMA"
    logged = [line for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert len(logged) == 4  # two epochs of two batches
    assert all("ema_momentum" in line for line in logged)  # it has a moving-average target
    assert results["knn_accuracy"] == 100  # each image is its own neighbor
    (table,) = collected(tmp_path, capsys)
    assert [row["initialization"] for row in table["rows"]] == ["Margin matching + EMA"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words, "loss.options.margin=3"])
    assert pretraining.main() == 2
    refused = "loss.options.margin is 3.0; expected a number from 0 to 2"
    assert refused in capsys.readouterr().err


def test_a_loss_is_its_formula_and_that_of_the_global_batch():
    views = [torch.randn(8, 6, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    cosines = [torch.cosine_similarity(views[0].double(), v.double()) for v in views[1:]]
    expected = (1 - torch.stack(cosines) - 0.1).clamp_min(0).mean()
    torch.testing.assert_close(margin_loss(views).double(), expected, rtol=1e-6, atol=0)
    for found in run_ranks(loss_of_a_rank, 2, views):
        assert found == pytest.approx(float(expected), rel=1e-6)


def test_a_checkpoint_format(tmp_path, monkeypatch):
    monkeypatch.setattr(adapters, "ADAPTERS", (LAYOUT, *adapters.ADAPTERS))
    live, slow = small_state(1), small_state(2)
    networks = {f"live.trunk.{name}": tensor for name, tensor in live.items()}
    networks |= {f"slow.trunk.{name}": tensor for name, tensor in slow.items()}
    file = tmp_path / "in.pth"
    torch.save({"networks": networks, "memory": torch.zeros(4, 8)}, file)
    found = read_backbone(file)
    assert (found.source_format, found.method) == ("memory bank", "Memory bank")
    for branch, state in (("online", live), ("target", slow)):
        read = load_backbone(file, branch)
        assert read.keys() >= {name for name in state if not name.endswith("tracked")}
        assert all(torch.equal(tensor, state[name]) for name, tensor in read.items())
    torch.save(LAYOUT.from_torchvision(live), file)
    assert load_backbone(file).keys() == read.keys()


def test_a_detector_head(stage, tmp_path):  # noqa: F811 - a fixture
    import tests.examples.detector_head  # noqa: F401 - registers it with Detectron2

    words = ["--config", "shapes_coco_R18_C4", "--weights", "random", "--output-dir", tmp_path]
    head = ["MODEL.ROI_HEADS.NAME", "Res5ROIHeadsDropout"]
    assert stage(*words, *TINY_DETECTOR, "SOLVER.MAX_ITER", "1", *head) == 0
    assert read_results(tmp_path)["architecture"] == {
        "meta": "Mask R-CNN (Res5ROIHeadsDropout)",
        "backbone": "resnet18",
        "head": "C4",
    }


def test_an_evaluation(pictures, table_source, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(KINDS, "means", KIND)
    words = ["evaluate", "--weights", "random", "--config", "shapes_knn", "kind=means"]
    words += ["--output-dir", str(tmp_path / "run"), "data.size=32", "data.workers=0"]
    words += [f"data.train={pictures}", f"data.test={pictures}", "data.name=table"]
    assert main([*words, "engine.device=cpu", "model.backbone=resnet18"]) == 0
    assert "nearest class mean, resnet18" in capsys.readouterr().out
    results = read_results(tmp_path / "run")
    assert (results["kind"], results["protocol"], results["epoch"]) == ("means", {}, None)
    assert results["metrics"]["top1"] == pytest.approx(accuracy_by_means(pictures))
    (table,) = collected(tmp_path, capsys)
    assert table["title"] == "table, resnet18: means"


def accuracy_by_means(pictures) -> float:
    """The same, one image after the other, in float64."""
    torch.manual_seed(0)
    subject = load_evaluated_backbone("random", ModelConfig("resnet18"))
    images = EvaluationImages(sources.open_source(pictures), 32, interpolation="bicubic")
    found, labels = extract_features(subject.network, images, ALONE, prepare=subject.images)
    features = found.double().numpy()
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    means = [features[labels.numpy() == label].mean(0) for label in (0, 1)]
    right = 0
    for feature, label in zip(features, labels.tolist(), strict=True):
        cosines = [feature @ mean / np.linalg.norm(mean) for mean in means]
        right += int(np.argmax(cosines)) == label
    return 100 * right / len(features)


def test_a_table_column(tmp_path, capsys):
    for seed, figure in enumerate((70.0, 72.0, 77.0)):
        write_results(tmp_path / f"intl_{seed}", "INTL", seed, figure)
    write_results(tmp_path / "moco", "MoCo v2", 0, 69.5)
    assert main(["check", str(tmp_path / "moco")]) == 0
    capsys.readouterr()
    assert main(["collect", str(tmp_path), "--columns", "boundary.F1"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"INTL .*\| 3 .*73\.0 ± 3\.6", printed)  # std of 70, 72, 77: sqrt(13)
    assert re.search(r"MoCo v2 .*\| 1 .*69\.5", printed)


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/extending.md"])
def test_every_addition_is_in_the_table(page):
    """The table stands twice, and says the same; every file and test that it names is there."""
    rows = [line.split("|")[1:-1] for line in table_of(page)]
    assert table_of(page) == table_of("CONTRIBUTING.md")
    assert len(rows) == 7
    for _, files, tests in rows:
        for name in re.findall(r"`([\w./]+\.(?:py|yaml|md))(?:::(\w+))?`", files + tests):
            assert (ROOT / name[0]).is_file(), name
            assert not name[1] or f"def {name[1]}(" in (ROOT / name[0]).read_text(), name


def table_of(page: str) -> list[str]:
    lines = (ROOT / page).read_text().splitlines()
    start = lines.index("| to add | write | test to copy |") + 2
    return lines[start : lines.index("", start)]
