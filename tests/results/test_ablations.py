"""Sweeps that were really trained, tiny: every experiment is a row of its own, seeds are one."""

from __future__ import annotations

import json
import shutil
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from intl_transfer.cli import main as intl_transfer
from intl_transfer.results import build_tables, collect
from intl_transfer.runs import read_results
from pretrain import train as pretraining
from tests.pretrain.running import TINY

VARIANTS = {
    "base0": [],
    "base1": ["seed=1"],
    "t8": ["loss.iterations=8"],
    "no_trace": ["loss.trace_weight=0"],
    "batch": ["loss.axis=batch"],
    "p03": ["loss.method=power", "loss.options.p=0.3", "loss.trace_weight=null"],
    "p05": ["loss.method=power", "loss.options.p=0.5", "loss.trace_weight=null"],
}
ROWS = {
    "INTL, channel axis, iterations 4": ["base0", "base1"],
    "INTL, iterations 8": ["t8"],
    "INTL, batch axis": ["batch"],
    "IterNorm": ["no_trace"],
    "Spectral power p = 0.3": ["p03"],
    "Spectral power p = 0.5": ["p05"],
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 4)):
        for number, label in enumerate(("blue", "green", "red")):
            (root / part / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 160, (32, 32, 3), dtype=np.uint8)
                pixels[..., number] += 60
                Image.fromarray(pixels).save(root / part / label / f"{i}.png")
    return root


def evaluate(images, weights, folder, config, *overrides):
    status = intl_transfer(
        [
            *("evaluate", "--weights", str(weights), "--config", config),
            *("--output-dir", str(folder), "data.name=colors", "data.workers=0"),
            *(f"data.train={images}/train", f"data.test={images}/test"),
            *("engine.threads=1", "log.tensorboard=false", *overrides),
        ]
    )
    assert status == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory, images):
    """Seven pretrainings, each evaluated; one of them also by other protocols."""
    root, threads = tmp_path_factory.mktemp("runs"), torch.get_num_threads()
    tiny = ["model.backbone=resnet18", "data.workers=0", "loss.trace_weight=0.01", "optim.epochs=1"]
    for name, overrides in VARIANTS.items():
        words = ["train.py", "--config", "shapes_r18", *TINY, *tiny]
        words += [f"data.root={images}/train", "--output-dir", str(root / "pretrain" / name)]
        words += ["knn.epochs=0"]
        with mock.patch.object(sys, "argv", [*words, *overrides]):
            assert pretraining.main() == 0
        for size in (32,) if name != "base0" else (32, 48):
            folder = root / "evaluation" / f"knn{size}_{name}"
            knn = (f"data.size={size}", "k=3")
            evaluate(images, root / "pretrain" / name, folder, "shapes_knn", *knn)
    for milestone in (1, 2):
        evaluate(
            *(images, root / "pretrain" / "base0", root / "evaluation" / f"linear{milestone}"),
            *("shapes_linear", "optim.epochs=2", "optim.batch_size=8", "data.augment=false"),
            *("data.size=32", f"optim.milestones=[{milestone}]"),
        )
    torch.set_num_threads(threads)
    return root


def rows_of(table):
    return {row.name: sorted(run.path.name for run in row.runs) for row in table.rows}


def test_every_experiment_is_a_row_of_its_own(runs):
    tables = {table.title: table for table in build_tables(collect([runs], cache=False))}
    size32, size48 = (
        next(table for title, table in tables.items() if f"size {size}" in title)
        for size in (32, 48)
    )
    expected = {name: [f"knn32_{v}" for v in variants] for name, variants in ROWS.items()}
    assert rows_of(size32) == expected
    assert list(rows_of(size48).values()) == [["knn48_base0"]]
    linear = [table for title, table in tables.items() if "linear" in title]
    assert [list(rows_of(table).values()) for table in linear] == [[["linear1"]], [["linear2"]]]
    assert "milestones [1]" in linear[0].title
    assert "milestones [2]" in linear[1].title
    repeated = next(row for row in size32.rows if len(row.runs) == 2)
    (summary,) = repeated.metrics.values()
    assert summary.count == "2 pretrainings"
    assert summary.seeds == (0, 1)


def test_weights_carry_what_decided_them(runs, tmp_path):
    """Without the pretraining runs the same rows come out, by what the backbones carry."""
    shutil.copytree(runs / "evaluation", tmp_path / "alone")
    tables = {t.title: t for t in build_tables(collect([tmp_path / "alone"], cache=False))}
    table = next(table for title, table in tables.items() if "size 32" in title)
    assert rows_of(table) == {name: [f"knn32_{v}" for v in vs] for name, vs in ROWS.items()}


def test_a_converted_backbone_carries_it_too(runs, tmp_path):
    assert intl_transfer(["convert", str(runs / "pretrain" / "t8"), str(tmp_path / "w.pth")]) == 0
    report = json.loads((tmp_path / "w.json").read_text())
    settings = report["provenance"]["pretrain_run"]["settings"]
    assert settings["loss.iterations"] == 8
    assert settings["dataset.train.images"] == 24
    assert "output_dir" not in settings
    assert "engine.threads" not in settings
    assert "seed" not in settings
    found = read_results(runs / "evaluation" / "knn32_t8").initialization.provenance
    assert found.pretrain_run.settings == settings


def earlier(folder):
    """Makes a run one of before the setting existed: residual branches started at zero."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["config"]["model"]["zero_init_residual"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_random_weights_that_begin_otherwise_are_other_rows(runs, images, tmp_path):
    knn = ("shapes_knn", "data.size=32", "k=3", "model.backbone=resnet18")
    for seed in (0, 1):
        evaluate(images, "random", tmp_path / f"now{seed}", *knn, f"seed={seed}")
    evaluate(images, "random", tmp_path / "before", *knn, "model.zero_init_residual=true")
    evaluate(images, "random", tmp_path / "asked", *knn, "model.zero_init_residual=true", "seed=1")
    earlier(tmp_path / "before")
    # Trained weights do not depend on it.
    for name in ("base0", "base1"):
        shutil.copytree(runs / "evaluation" / f"knn32_{name}", tmp_path / f"knn32_{name}")
    earlier(tmp_path / "knn32_base1")
    (table,) = build_tables(collect([tmp_path], cache=False))
    expected = [["asked", "before"], ["knn32_base0", "knn32_base1"], ["now0", "now1"]]
    assert sorted(rows_of(table).values()) == expected
    assert len(rows_of(table)) == 3
