"""All stages one after the other, as a user runs them, with the mission's backbone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from intl_transfer.runs import read_manifest, read_results

ROOT = Path(__file__).resolve().parents[1]


def step(folder: Path, *command: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": "datasets"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.e2e
def test_resnet50_from_images_to_the_table(tmp_path):
    tool = ["-m", "intl_transfer.cli"]
    sizes = ["--objects-train", 24, "--objects-val", 8, "--scenes-train", 6, "--scenes-val", 3]
    step(tmp_path, *tool, "data", "shapes", *sizes)

    train = step(
        *(tmp_path, ROOT / "pretrain" / "train.py", "--config", "shapes_r50"),
        *("--output-dir", "runs/pretrain", "optim.epochs=1", "optim.batch_size=8"),
        *("model.projector_hidden=64", "model.embedding=64", "log.steps=1"),
    )
    assert "INTL, resnet50 on shapes: 24 images" in train

    converted = step(tmp_path, *tool, "convert", "runs/pretrain", "weights/intl_r50.pth")
    assert "intl-transfer backbone: resnet50" in converted
    assert "method INTL: stated in" in converted

    detect = [ROOT / "detection" / "train_net.py"]
    short = ["SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "TEST.PRECISE_BN.NUM_ITER", 1]
    for layout in ("coco", "voc"):
        for start in ("weights/intl_r50.pth", "random"):
            step(
                *(tmp_path, *detect, "--config", f"shapes_{layout}_R50_C4.yaml"),
                *("--weights", start, "--output-dir", f"runs/{layout}_{Path(start).stem}"),
                *short,
            )

    as_json = ("--format", "json", "--layout", "dataset", "--tables", "detection")
    tables = json.loads(step(tmp_path, *tool, "collect", "runs", *as_json))
    assert [(t["dataset"], len(t["rows"])) for t in tables] == [
        ("shapes_coco_val", 2),
        ("shapes_voc_test", 2),
    ]
    pretraining = read_manifest(tmp_path / "runs" / "pretrain")
    for table in tables:
        assert "resnet50-C4" in table["architecture"]
        rows = {row["initialization"]: row for row in table["rows"]}
        assert set(rows) == {"INTL", "random init"}
        (run,) = rows["INTL"]["runs"]
        assert run["pretraining_run"] == "runs/pretrain"
        assert run["provenance"]["pretrain_run"]["id"] == pretraining["id"]
        assert rows["random init"]["runs"][0]["weights_sha256"] is None
    results = read_results(tmp_path / "runs" / "coco_intl_r50")
    assert set(results["metrics"]) == {"box", "mask"}
    assert (tmp_path / "runs" / "voc_random" / "predictions.png").stat().st_size > 10_000
